"""Around the stages: what they cannot undo, when they may end, and what is written of them."""

import json
import os
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info

from .evaluation import callbacks_of
from .stage_application import StageApplication
from .stage_progress import StageProgress


def refuse_averaging(trainer: Trainer) -> None:
    """Refuses averaged weights.

    Raises:
        ValueError: with what to use instead.
    """
    averaging = [cb for cb in callbacks_of(trainer) if isinstance(cb, WeightAveraging | StochasticWeightAveraging)]
    if averaging:
        raise ValueError(
            f"StagedUnfreezing cannot roll back averaged weights, got `callbacks` with {type(averaging[0]).__name__}; "
            "remove it, or average in a second run from the best checkpoint."
        )


def check_first_stage(trainer: Trainer, application: StageApplication) -> None:
    """Announces a first stage that trains nothing, and refuses one that nothing evaluates.

    Raises:
        ValueError: there is no evaluation of the whole validation set before training.
    """
    if application.trainable(0):
        return
    rank_zero_info(application.announcement(0))
    if trainer.num_sanity_val_steps != float("inf"):
        name = application.stages[0].name
        raise ValueError(f"Stage {name!r} trains nothing; its evaluation needs Trainer(num_sanity_val_steps=-1).")


def must_go_on(trainer: Trainer) -> bool:
    """Whether ``min_epochs`` or ``min_steps`` forbid to stop after this evaluation."""
    epochs, steps = trainer.min_epochs or 0, trainer.min_steps or 0
    return trainer.current_epoch + 1 < epochs or trainer.global_step < steps


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
