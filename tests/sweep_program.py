"""A program that trains nothing, for sweeps in processes of their own: its score is the distance of x from 3."""

import os
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore

CONFIG = {
    "defaults": ["_self_", {"sweep": "default"}, {"launcher": None}, {"override hydra/job_logging": "stdout"}],
    "hydra": {"searchpath": ["pkg://stagewise.conf"]},
    "name": "program",
    "run_dir": "runs/${name}",
    "resume": None,
    "monitor": {"name": "val/loss", "mode": "min"},
    "x": 1.0,
    "optimizer": {"groups": {"body": {"lr": 1e-5}, "head": {"lr": 1e-3}, "more": {"lr": 1e-3}, "shut": {"lr": 1.0}}},
    "callbacks": {"stages": {"stages": {"all": {"open": {"body": True, "head": True, "more": True}}}}},
}
ConfigStore.instance().store(name="program", node=CONFIG)


@hydra.main(version_base="1.3", config_path=None, config_name="program")
def main(cfg):
    if cfg.x < 0:
        raise ValueError(f"x must not be negative, got {cfg.x}\nand more words")
    if cfg.x > 100:
        raise SystemExit(75)
    Path(cfg.run_dir, f"process_{os.getpid()}").touch()
    return float("nan") if cfg.x == 0 else abs(cfg.x - 3.0)


if __name__ == "__main__":
    main()
