"""Evaluates a checkpoint: ``python evaluate.py checkpoint=checkpoints/phase2/phase2_best.ckpt split=test``."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from stagewise.command_line import offering_names, one_line_errors
from stagewise.train import given

log = logging.getLogger("stagewise.evaluate")


def run(cfg: DictConfig) -> dict[str, float]:
    """Prints the report, writes ``metrics.json`` and figures, returns the metrics."""
    if cfg.compare and not Path(cfg.compare).is_file():
        raise FileNotFoundError(f"no file at compare='{cfg.compare}'; pass the metrics.json of another evaluation.")
    module = instantiate(cfg.module)
    options = given(cfg.options, module.evaluate)
    datamodule = instantiate(data_config(module, cfg))
    trainer: L.Trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    folder = output_folder(cfg)
    metrics, text = module.evaluate(datamodule, trainer, cfg.split, str(folder), **options)
    numbers = {name: None if math.isnan(value) else value for name, value in metrics.items()}  # NaN is no JSON
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=1))
    print(f"{text}\nwritten: {folder}/metrics.json and the pictures beside it")
    if cfg.compare:
        print(instantiate(cfg.comparison)(metrics)[1])
    return metrics


def output_folder(cfg: DictConfig) -> Path:
    """``output``, or a folder beside the checkpoint, of an ensemble beside its first."""
    ensemble = isinstance(cfg.checkpoint, ListConfig)
    first = cfg.checkpoint[0] if ensemble else cfg.checkpoint
    return Path(cfg.output or Path(first).parent / f"{'ensemble' if ensemble else 'evaluation'}_{cfg.split}")


def data_config(module: Any, cfg: DictConfig) -> DictConfig:
    """The data module that the checkpoint was trained with, changed by ``datamodule.…=`` on the command line."""
    stored = module.provenance.get("datamodule")
    if not stored or not str(stored.get("_target_")).startswith("stagewise.datamodules."):
        raise ValueError(f"'{cfg.checkpoint}' names no data module of stagewise; train it with train.py.")
    return OmegaConf.merge(stored, given(cfg.datamodule))  # type: ignore[return-value]


@offering_names("evaluate")
@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Adds Hydra to :func:`run`."""
    with one_line_errors():
        run(cfg)


if __name__ == "__main__":
    main()
