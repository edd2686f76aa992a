"""The score of a split, boxes given: every figure with its interval, and the baselines in the same table."""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from ...datamodules.drains.ceiling import whole_picture_ceiling
from ...datamodules.drains.vocabulary import CLASS_NAMES
from ..figures import draw_confusion
from . import baselines
from .report import as_text
from .scores import DRAWS, NOTHING, confusions, intervals, lead, scores

if TYPE_CHECKING:
    from .module import DrainModule

log = logging.getLogger(__name__)
Rows = dict[str, NDArray[Any]]
MAIN = ("accuracy", "macro_f1")


@torch.inference_mode()
def answer(module: "DrainModule", datamodule: Any, split: str, position: bool = True, context: bool = True) -> Rows:
    """The network's logits for every object of a split.

    Args:
        module: on its device.
        datamodule: set up.
        split: its name.
        position: False leaves it unsaid in the prompts.
        context: False leaves the other objects unsaid.

    Returns:
        ``logits`` (N, 9), ``label``, ``box_type``, ``picture`` (N,), ``metadata`` (N, F), in the order of the split.
    """
    kept = ("label", "box_type", "picture", "metadata")
    training, parts = module.training, []
    module.eval()
    for batch in datamodule.split_dataloader(split):
        batch = {name: value.to(module.device) for name, value in batch.items()}
        batch = datamodule.on_after_batch_transfer(batch, 0)
        if not position:
            batch["position"] = torch.full_like(batch["position"], -1)
        if not context:
            batch["context"] = torch.zeros_like(batch["context"])
        logits = module.network(batch)["logits"]
        parts.append({"logits": logits.cpu().numpy(), **{name: batch[name].cpu().numpy() for name in kept}})
    module.train(training)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate(
    module: "DrainModule", datamodule: Any, split: str, folder: Path, trees: int = 300, draws: int = DRAWS
) -> tuple[dict[str, float], str]:
    """Scores a split and draws the confusion matrix.

    Args:
        module: on its device.
        datamodule: set up.
        split: its name.
        folder: for ``confusion.png``.
        trees: of the features-only forest.
        draws: of the intervals.

    Returns:
        ``{split}/name`` -> number, with ``name/ci_low`` and ``name/ci_high``, the same under ``baseline/{name}/`` (with
        ``lead/``, this network minus the baseline) and ``prompt/{words}/``; ``whole_picture_ceiling``. And the report.
    """
    rows = answer(module, datamodule, split)
    label, picture = rows["label"], rows["picture"]
    said = {"network": rows["logits"].argmax(1)} | _baselines(module, datamodule, split, rows, trees)
    counted = {name: confusions(label, predicted, picture) for name, predicted in said.items()}
    metrics: dict[str, float] = {"objects": float(len(label)), "pictures": float(len(np.unique(picture)))}
    for name, matrix in counted.items():
        prefix = "" if name == "network" else f"baseline/{name}/"
        metrics |= {f"{prefix}{key}": float(value) for key, value in scores(matrix.sum(0)).items()}
        for key, (low, high) in intervals(matrix, draws=draws).items():
            metrics |= {f"{prefix}{key}/ci_low": low, f"{prefix}{key}/ci_high": high}
        for key in MAIN if prefix else ():
            low, high = lead(counted["network"], matrix, key, draws=draws)
            difference = metrics[key] - metrics[f"{prefix}{key}"]
            metrics |= {f"{prefix}lead/{key}": difference}
            metrics |= {f"{prefix}lead/{key}/ci_low": low, f"{prefix}lead/{key}/ci_high": high}
    metrics |= _prompts(module, datamodule, split)
    metrics["whole_picture_ceiling"] = whole_picture_ceiling(label, picture)
    folder.mkdir(parents=True, exist_ok=True)
    matrix = counted["network"].sum(0)[:NOTHING, :NOTHING]
    draw_confusion(matrix, CLASS_NAMES, folder / "confusion.png", f"{split}, boxes given")
    return {f"{split}/{name}": value for name, value in metrics.items()}, as_text(metrics, split, list(counted)[1:])


def _baselines(module: "DrainModule", datamodule: Any, split: str, rows: Rows, trees: int) -> Rows:
    train = datamodule.table("train")
    known = {"metadata": train.features(), "label": train.label}
    found = {
        "majority": baselines.majority(train.label, len(rows["label"])),
        "majority_of_type": baselines.majority_of_type(train.label, rows["box_type"]),
        "features_forest": baselines.features_forest(known, rows["metadata"], rows["box_type"], trees, seed=0),
    }
    if module.zero_shot and split in module.zero_shot:
        found["zero_shot"] = np.array(module.zero_shot[split])
    return found


def _prompts(module: "DrainModule", datamodule: Any, split: str) -> dict[str, float]:
    """Accuracy and macro-F1 with and without what the prompts may say."""
    builder = module.network.builder
    metrics: dict[str, float] = {}
    for position in (False, True) if builder.position else (False,):
        for context in (False, True) if builder.context else (False,):
            rows = answer(module, datamodule, split, position, context)
            found = scores(confusions(rows["label"], rows["logits"].argmax(1), rows["picture"]).sum(0))
            words = " and ".join(name for name, on in (("position", position), ("context", context)) if on) or "plain"
            metrics |= {f"prompt/{words}/{key}": float(found[key]) for key in MAIN}
    return metrics


def finish(module: "DrainModule", trainer: L.Trainer, datamodule: Any, best: str, folder: Path) -> None:
    """Scores the best checkpoint on test.

    Args:
        module: with its weights.
        trainer: of the run.
        datamodule: of the run.
        best: the checkpoint, which gets the metrics.
        folder: of the run; ``evaluation_test`` in it takes the figures and ``metrics.json``.
    """
    if not trainer.is_global_zero:
        return
    module.to(trainer.strategy.root_device)
    target = folder / "evaluation_test"
    module.metrics, text = evaluate(module, datamodule, "test", target, **(module.hparams["evaluation"] or {}))
    numbers = {name: None if math.isnan(value) else value for name, value in module.metrics.items()}  # NaN is no JSON
    (target / "metrics.json").write_text(json.dumps(numbers, indent=1))
    checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(best, weights_only=True)
    module.on_save_checkpoint(checkpoint)
    trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, best)
    log.info("%s\nwritten: %s", text, target)
