"""Evaluates a checkpoint: ``python evaluate.py checkpoint=checkpoints/phase2/phase2_best.ckpt split=test``."""

import json
import logging
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stagewise.train import one_line_errors

log = logging.getLogger("stagewise.evaluate")


def run(cfg: DictConfig) -> dict[str, float]:
    """Prints the report, writes ``metrics.json`` and figures, returns the metrics."""
    module = instantiate(cfg.module)
    datamodule = instantiate(data_config(module, cfg))
    trainer: L.Trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    folder = Path(cfg.output or Path(cfg.checkpoint).parent / f"evaluation_{cfg.split}")
    metrics, text = module.evaluate(datamodule, trainer, cfg.split, str(folder), **cfg.options)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"{text}\nwritten: {folder}/metrics.json and the pictures beside it")
    return metrics


def data_config(module: Any, cfg: DictConfig) -> DictConfig:
    """The data module that the checkpoint was trained with, changed by ``datamodule.…=`` on the command line."""
    stored = module.provenance.get("datamodule")
    if not stored or not str(stored.get("_target_")).startswith("stagewise.datamodules."):
        raise ValueError(f"'{cfg.checkpoint}' names no data module of stagewise; train it with train.py.")
    changes = {k: v for k, v in cfg.datamodule.items() if v is not None}
    return OmegaConf.merge(stored, changes)  # type: ignore[return-value]


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Adds Hydra to :func:`run`."""
    with one_line_errors():
        run(cfg)


if __name__ == "__main__":
    main()
