"""Checks around the stages: what trainer they run on, and whether a checkpoint is theirs."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy

from .evaluation import callbacks_of
from .stage_progress import StageProgress


def refuse_unsupported(trainer: Trainer) -> None:
    """Refuses every strategy but one device and DDP, and averaged weights.

    Raises:
        ValueError: with what to use instead.
    """
    if not is_supported(trainer.strategy):
        raise ValueError(
            f"StagedUnfreezing supports one device and DDP, got `strategy` {type(trainer.strategy).__name__}; "
            "use strategy='ddp', or the package finetuning-scheduler for sharded training."
        )
    averaging = [cb for cb in callbacks_of(trainer) if isinstance(cb, WeightAveraging | StochasticWeightAveraging)]
    if averaging:
        raise ValueError(
            f"StagedUnfreezing cannot roll back averaged weights, got `callbacks` with {type(averaging[0]).__name__}; "
            "remove it, or average in a second run from the best checkpoint."
        )


def is_supported(strategy: Strategy) -> bool:
    """One device or plain DDP; both sharded and XLA strategies inherit from these."""
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(
        strategy, DeepSpeedStrategy | SingleDeviceXLAStrategy
    )


def must_go_on(trainer: Trainer) -> bool:
    """Whether ``min_epochs`` or ``min_steps`` forbid to stop after this evaluation."""
    epochs, steps = trainer.min_epochs or 0, trainer.min_steps or 0
    return trainer.current_epoch + 1 < epochs or trainer.global_step < steps


def check_same(what: str, saved: Any, present: Any) -> None:
    """Refuses a checkpoint of other stages or groups.

    Args:
        what: for the message.
        saved: list of names, or name -> fingerprint, of the checkpoint.
        present: the same of this run.

    Raises:
        ValueError: with the difference.

    >>> check_same("stages", ["heads", "top"], ["heads", "top"])
    """
    if list(saved) == list(present) and (not isinstance(saved, dict) or saved == present):
        return
    lines = [f"  checkpoint: {list(saved)}", f"  here:       {list(present)}"]
    if isinstance(saved, dict):
        changed = [name for name in saved if name in present and saved[name] != present[name]]
        lines += [f"  {name}: {saved[name]} in the checkpoint, {present[name]} here" for name in changed]
    difference = "\n".join(lines)
    raise ValueError(f"The checkpoint has other {what}; resume with the same ones, or start anew:\n{difference}")


def write_summary(trainer: Trainer, path: Path, monitor: str, progress: StageProgress) -> None:
    """Writes ``stages.json``, whole or not at all, on rank 0."""
    if not trainer.is_global_zero:
        return
    keys = ("start_value", "best", "best_evaluation", "reason")
    summary = {"monitor": monitor, "mode": progress.mode, **{key: getattr(progress, key) for key in keys}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**summary, "stages": progress.records}, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
