"""The score of a split: metadata alone, the picture alone and both on the same rows."""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch

from .answers import Rows, answer
from .comparison import compare_modalities, compare_rules
from .pictures import draw_all
from .report import as_text
from .row_file import FILE, write_rows
from .rules import apply_rule, cross_fitted, fit_rule, have_both, make_rule, with_prior
from .scores import DRAWS, figures, kappa_of, tally

if TYPE_CHECKING:
    from .module import FusionModule

log = logging.getLogger(__name__)
RULES = ("average", "tuned", "stacking")


def evaluate(
    module: "FusionModule", datamodule: Any, split: str, folder: Path, draws: int = DRAWS
) -> tuple[dict[str, float], str]:
    """Scores a split, writes ``rows.csv`` and the pictures.

    Args:
        module: on its device.
        datamodule: set up.
        split: its name.
        folder: for the files.
        draws: of the intervals.

    Returns:
        ``{split}/name`` -> number of :func:`~.comparison.compare_modalities`, the same under ``baseline/majority/``;
        ``gap/kappa`` of train minus val; ``rule/KIND/name`` of the rules that learn nothing by gradient, those that
        learn fitted on val, see :func:`~.comparison.compare_rules`; ``train_rows``. And the report.
    """
    rows = {
        name: answer(module, datamodule, name) for name in {split, "train", "val"} & set(datamodule.splits) | {split}
    }
    own, classes = rows[split], module.schema["classes"]
    answers, rules = modalities(module, own), rule_answers(module, rows, split)
    metrics = compare_modalities(answers, own["label"], own["group"], draws)
    metrics |= compare_rules(rules, answers, own["label"], own["group"], draws)
    metrics["train_rows"] = float(sum(module.schema["class_count"]))
    metrics |= _majority(module, own) | _gap(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / FILE, own, answers, classes, int(module.schema["fold"]), split, rules)
    title = f"{split} of fold {module.schema['fold']}"
    draw_all(folder, answers, own["label"], classes, metrics, title)
    text = as_text(metrics, title, list(answers))
    return {f"{split}/{name}": value for name, value in metrics.items()}, text


def modalities(module: "FusionModule", rows: Rows) -> dict[str, Any]:
    """Modality -> (N, K), the model's own last; a row without picture or metadata gets the classes' shares there.

    ``image`` is the branch as it was trained alone; ``image_opened`` what the fusion made of it, where that differs.
    """
    main = str(module.hparams["modality"])
    if main != "fusion":
        return {main: rows["probability"]}
    prior = module.network.prior.cpu()
    found = {"metadata": rows["metadata"], "image": rows["alone"], "image_opened": rows["picture"]}
    if np.array_equal(rows["alone"], rows["picture"], equal_nan=True):
        del found["image_opened"]
    filled = {name: with_prior(torch.from_numpy(p), prior).numpy() for name, p in found.items()}
    return {**filled, "fusion": rows["probability"]}


def _majority(module: "FusionModule", rows: Rows) -> dict[str, float]:
    """The classes' shares in train, for everybody."""
    p = np.tile(module.network.prior.cpu().numpy(), (len(rows["label"]), 1))
    found = figures(tally(p, rows["label"], rows["group"]))
    return {f"baseline/majority/{name}": float(value[0]) for name, value in found.items()}


def _gap(rows: dict[str, Rows]) -> dict[str, float]:
    """How much better the model is on the rows it learned from."""
    if not {"train", "val"} <= set(rows):
        return {}
    train, val = (kappa_of(rows[name]["probability"], rows[name]["label"]) for name in ("train", "val"))
    return {"gap/train_kappa": train, "gap/val_kappa": val, "gap/kappa": train - val}


def rule_answers(module: "FusionModule", rows: dict[str, Rows], split: str) -> dict[str, Any]:
    """Kind -> (N, K), what each rule makes of the same probabilities; train rows of a fitted rule are those of val."""
    if module.network.rule is None or "val" not in rows:
        return {}
    own, options = rows[split], module.hparams["rule"] or {}
    answers = {}
    for kind in RULES:
        rule = make_rule(len(module.schema["classes"]), 0, **{**options, "kind": kind})
        if rule.fitted and split == "val":
            said = cross_fitted(rule, own)
        else:
            if rule.fitted:
                fit_rule(rule, rows["val"])
            said = apply_rule(rule, own)
        answers[kind] = np.where(have_both(own)[:, None], np.nan_to_num(said), own["probability"])
    return answers


def finish(module: "FusionModule", trainer: L.Trainer, datamodule: Any, best: str, folder: Path) -> None:
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
    write_metrics(target / "metrics.json", module.metrics)
    checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(best, weights_only=True)
    module.on_save_checkpoint(checkpoint)
    trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, best)
    log.info("%s\nwritten: %s", text, target)


def write_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Name -> number as JSON, where NaN is null."""
    numbers = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    path.write_text(json.dumps(numbers, indent=1))
