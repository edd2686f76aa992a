"""The score of a split, boxes given or from a detector on: every figure with its interval, baselines in the table."""

import csv
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
from ...datamodules.drains.detections import DetectionSource
from ...datamodules.drains.vocabulary import CLASS_NAMES
from ...datamodules.errors import StagewiseError
from ..figures import draw_confusion
from . import baselines
from .end_to_end import end_to_end
from .report import as_text
from .scores import DRAWS, NOTHING, Counts, confusions, intervals, lead, scores

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

    Raises:
        StagewiseError: the split holds no object.
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
    if not parts:
        raise StagewiseError(f"'{split}' has no object to answer; choose another split, or add its labels.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate(
    module: "DrainModule",
    datamodule: Any,
    split: str,
    folder: Path,
    trees: int = 300,
    draws: int = DRAWS,
    detector: DetectionSource | None = None,
) -> tuple[dict[str, float], str]:
    """Scores a split and draws the confusion matrix.

    Args:
        module: on its device.
        datamodule: set up.
        split: its name.
        folder: for ``answers.csv``, ``confusion.png``, and ``confusion_end_to_end.png`` where there is a detector.
        trees: of the features-only forest.
        draws: of the intervals.
        detector: finds the objects for the end-to-end score; None leaves it out.

    Returns:
        ``{split}/name`` -> number, with ``name/ci_low`` and ``name/ci_high``, the same under ``baseline/{name}/`` (with
        ``lead/``, this network minus the baseline) and ``prompt/{words}/``;
        ``whole_picture_ceiling[/type_known]``; the same figures under ``end_to_end/``, with ``found`` and
        ``false_a_picture``. And the report.
    """
    rows = answer(module, datamodule, split)
    label, picture = rows["label"], rows["picture"]
    said = {"network": rows["logits"].argmax(1)} | _baselines(module, datamodule, split, rows, trees)
    counted = {name: confusions(label, predicted, picture) for name, predicted in said.items()}
    metrics: dict[str, float] = {"objects": float(len(label)), "pictures": float(len(np.unique(picture)))}
    for name, matrix in counted.items():
        prefix = "" if name == "network" else f"baseline/{name}/"
        metrics |= _with_intervals(matrix, prefix, draws)
        metrics |= _lead(counted["network"], matrix, prefix, draws) if prefix else {}
    metrics |= _prompts(module, datamodule, split)
    metrics["whole_picture_ceiling"] = whole_picture_ceiling(label, picture)
    metrics["whole_picture_ceiling/type_known"] = whole_picture_ceiling(label, picture, rows["box_type"])
    folder.mkdir(parents=True, exist_ok=True)
    matrix = counted["network"].sum(0)[:NOTHING, :NOTHING]
    draw_confusion(matrix, CLASS_NAMES, folder / "confusion.png", f"{split}, boxes given")
    _write_answers(folder / "answers.csv", datamodule.table(split), said)
    if detector is not None:
        metrics |= _end_to_end(module, datamodule.table(split), detector, folder, f"{split}, end to end", draws)
    return {f"{split}/{name}": value for name, value in metrics.items()}, as_text(metrics, split, list(counted)[1:])


def _write_answers(path: Path, table: Any, said: Rows) -> None:
    """A row for each object: where it is, what is true, and what the network and each baseline said."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "centre_x", "centre_y", "width", "height", "truth", *said])
        for i, box in enumerate(table.boxes.round(6).tolist()):
            answers = (CLASS_NAMES[k] for k in (table.label[i], *(column[i] for column in said.values())))
            rows.writerow([Path(table.paths[table.picture[i]]).name, *box, *answers])


def _with_intervals(matrix: Counts, prefix: str, draws: int) -> dict[str, float]:
    """Every figure of a matrix a picture, and its interval."""
    metrics = {f"{prefix}{key}": float(value) for key, value in scores(matrix.sum(0)).items()}
    for key, (low, high) in intervals(matrix, draws=draws).items():
        metrics |= {f"{prefix}{key}/ci_low": low, f"{prefix}{key}/ci_high": high}
    return metrics


def _lead(ours: Counts, theirs: Counts, prefix: str, draws: int) -> dict[str, float]:
    """How far the network is ahead of a baseline, and the interval of that."""
    metrics: dict[str, float] = {}
    for key in MAIN:
        metrics[f"{prefix}lead/{key}"] = float(scores(ours.sum(0))[key] - scores(theirs.sum(0))[key])
        low, high = lead(ours, theirs, key, draws=draws)
        metrics |= {f"{prefix}lead/{key}/ci_low": low, f"{prefix}lead/{key}/ci_high": high}
    return metrics


def _end_to_end(
    module: "DrainModule", table: Any, detector: DetectionSource, folder: Path, title: str, draws: int
) -> dict[str, float]:
    counted = end_to_end(module.eval(), table, detector)
    total = counted.sum(0)
    draw_confusion(total, (*CLASS_NAMES, "nothing"), folder / "confusion_end_to_end.png", title)
    return {
        **_with_intervals(counted, "end_to_end/", draws),
        "end_to_end/found": float(total[:NOTHING, :NOTHING].sum() / total[:NOTHING].sum()),
        "end_to_end/false_a_picture": float(total[NOTHING].sum() / len(table.paths)),
    }


def _baselines(module: "DrainModule", datamodule: Any, split: str, rows: Rows, trees: int) -> Rows:
    found: Rows = {}
    if "train" in datamodule.splits:
        train = datamodule.table("train")
        known = {"metadata": train.features(), "label": train.label}
        found["majority"] = baselines.majority(train.label, len(rows["label"]))
        found["majority_of_type"] = baselines.majority_of_type(train.label, rows["box_type"])
        found["features_forest"] = baselines.features_forest(known, rows["metadata"], rows["box_type"], trees, seed=0)
    else:
        log.warning("no baselines: they need the train split, of which this data holds nothing")
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
