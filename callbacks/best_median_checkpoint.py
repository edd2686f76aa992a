"""Keeps a checkpoint of each epoch and the best one, judged by the median of the last evaluations."""

import math
import os
from statistics import median
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from .durable_checkpoint_io import DurableCheckpointIO
from .evaluation import callbacks_of, check_mode, counts, improves, required_value
from .staged_unfreezing import StagedUnfreezing
from .supported import refuse_unsupported


class BestMedianCheckpoint(Checkpoint):
    """Writes ``{prefix}_epoch_{N}.ckpt`` after each evaluation and ``{prefix}_best.ckpt`` when the score improves.

    The score is the median of the last ``window`` evaluations (of as many as there are at first), which keeps one lucky
    evaluation from winning; with ``window=1`` it is the evaluation itself. NaN is no evaluation. The sanity check
    does not count, unless a :class:`StagedUnfreezing` has it as the score to beat; that is epoch 0, and it is judged
    alone. An evaluation after which :class:`StagedUnfreezing` rolled the weights back cannot become the best: its
    weights are gone. Files are written by ``trainer.save_checkpoint`` with this evaluation's decisions inside, and
    nothing outside ``dirpath`` is ever touched: after a resume into another folder the best score goes on, and
    ``best_model_path`` names the old file until it is beaten.

    Args:
        dirpath: folder of the files.
        prefix: how their names start.
        monitor: the logged metric, such as ``val/median_km``.
        mode: min or max.
        window: evaluations in the median.
        keep: best files that stay: ``_best.ckpt`` and the ones it replaced, ``_best_2.ckpt`` and so on.
        every_epoch: whether each epoch's checkpoint is written; N counts from 1.

    Raises:
        ValueError: a number below 1, an unknown mode; a monitor that is not logged; a strategy other than one device
            and DDP.

    >>> BestMedianCheckpoint("checkpoints/phase2", "phase2", monitor="val/median_km").best_score is None
    True
    """

    def __init__(
        self,
        dirpath: str,
        prefix: str,
        monitor: str,
        mode: str = "min",
        window: int = 1,
        keep: int = 1,
        every_epoch: bool = True,
    ) -> None:
        check_mode(mode)
        for argument, value in (("window", window), ("keep", keep)):
            if value < 1:
                raise ValueError(f"`{argument}` must be at least 1, got {value}.")
        self.dirpath = str(dirpath)
        self.prefix = prefix
        self.monitor = monitor
        self.mode = mode
        self.window = window
        self.keep = keep
        self.every_epoch = every_epoch
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.best_model_path = ""
        self._recent: list[float] = []

    @property
    def state_key(self) -> str:
        """Tells two of them in one trainer apart; the folder may change on a resume."""
        return self._generate_state_key(prefix=self.prefix, monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies whose ranks could disagree."""
        refuse_unsupported(trainer, type(self).__name__)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides first and writes then, so that the files carry the decision."""
        is_start = trainer.sanity_checking and any(stages.start_counts for stages in _stages(trainer))
        if not (is_start or counts(trainer)) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        value = required_value(trainer, self.monitor, type(self).__name__)
        epoch = 0 if is_start else trainer.current_epoch + 1
        is_best = self._observe(value, epoch, eligible=not _weights_replaced(trainer))
        if is_best:
            if trainer.is_global_zero:
                self._shift()
            self.best_model_path = self._best(1)
            self._save(trainer, self.best_model_path)
        if self.every_epoch:
            name = f"{self.prefix}_epoch_{epoch}.ckpt"
            self._save(trainer, os.path.join(self.dirpath, name))

    def state_dict(self) -> dict[str, Any]:
        """The best so far and the recent evaluations."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_model_path": self.best_model_path,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there, in whatever folder."""
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.best_model_path, self._recent = state["best_model_path"], list(state["recent"])

    def _observe(self, value: float, epoch: int, eligible: bool) -> bool:
        if math.isnan(value):
            return False
        if epoch:
            self._recent = [*self._recent, value][-self.window :]
        score = median(self._recent) if epoch else value
        if not (eligible and improves(score, self.best_score, self.mode)):
            return False
        self.best_score, self.best_epoch = score, epoch
        return True

    def _save(self, trainer: Trainer, path: str) -> None:
        # how many versions stay is said by `keep` here, not by the plugin's
        options = {"keep": 1} if isinstance(trainer.strategy.checkpoint_io, DurableCheckpointIO) else None
        trainer.save_checkpoint(path, weights_only=False, storage_options=options)

    def _best(self, place: int) -> str:
        return os.path.join(self.dirpath, f"{self.prefix}_best{f'_{place}' if place > 1 else ''}.ckpt")

    def _shift(self) -> None:
        # a run killed here has left a gap, and what is beyond it has been shifted already
        places = range(1, self.keep + 1)
        gap = next((place for place in places if not os.path.exists(self._best(place))), self.keep)
        for place in range(gap, 1, -1):
            os.replace(self._best(place - 1), self._best(place))


def _weights_replaced(trainer: Trainer) -> bool:
    return any(stages.weights_replaced for stages in _stages(trainer))


def _stages(trainer: Trainer) -> list[StagedUnfreezing]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, StagedUnfreezing)]
