"""Ends a run of a sweep that is worse than most of the others were at the same evaluation."""

import json
import logging
import math
import os
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .evaluation import check_mode, counts, required_value
from .supported import refuse_unsupported

log = logging.getLogger(__name__)

FILE = "evaluations.json"


class SweepPruning(Callback):
    """The median rule of Optuna's ``MedianPruner``, over files: no run has to know the sweeper or its study.

    After each evaluation the run writes its values to ``dirpath/evaluations.json`` and reads those of the other runs in
    ``folder``, whether they have ended or still train. It stops where its best value so far is worse than the median of
    the best values that the others had after as many evaluations. Runs whose evaluations lie at other steps, such as
    those of another batch size, are compared all the same. It goes on bit for bit after a kill like all callbacks; in a
    sweep of several runs at a time what the others have written by then depends on the clock.

    Args:
        dirpath: folder of the run.
        folder: of the sweep, which holds the runs' folders; a run elsewhere is left alone.
        monitor: the logged metric, such as ``val/median_km``.
        mode: min or max.
        startup_runs: others that must have reached the evaluation before any run is stopped there.
        warmup: evaluations at which no run is stopped.

    Raises:
        ValueError: a number too small, an unknown mode, a monitor that is not logged; a strategy other than one device
            and DDP.

    >>> SweepPruning("sweep/0", "sweep", monitor="val/loss").pruned
    False
    """

    def __init__(
        self,
        dirpath: str,
        folder: str,
        monitor: str,
        mode: str = "min",
        startup_runs: int = 5,
        warmup: int = 1,
    ) -> None:
        check_mode(mode)
        if startup_runs < 1 or warmup < 0:
            raise ValueError(
                f"`startup_runs` must be at least 1 and `warmup` at least 0, got {startup_runs} and {warmup}."
            )
        self.path, self.folder = Path(dirpath).absolute() / FILE, Path(folder).absolute()
        self.monitor, self.mode = monitor, mode
        self.startup_runs, self.warmup = startup_runs, warmup
        self.values: list[float] = []
        self.reason: str | None = None

    @property
    def pruned(self) -> bool:
        """Whether the run was stopped here."""
        return self.reason is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies whose ranks could disagree."""
        refuse_unsupported(trainer, type(self).__name__)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was stopped stays stopped when resumed."""
        trainer.should_stop = trainer.should_stop or self.pruned

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, reads, and decides."""
        if not counts(trainer):
            return
        self.values.append(required_value(trainer, self.monitor, type(self).__name__))
        is_here = trainer.is_global_zero and self.path.parent.parent == self.folder
        self.reason = trainer.strategy.broadcast(self._judge() if is_here else None)
        if self.pruned:
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.info("%s", self.reason)

    def state_dict(self) -> dict[str, Any]:
        """The values so far, and why the run was stopped."""
        return {"values": list(self.values), "reason": self.reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.values, self.reason = list(state["values"]), state["reason"]

    def _judge(self) -> str | None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"monitor": self.monitor, "values": self.values}))
        os.replace(part, self.path)  # the others read it at any time
        number = len(self.values)
        others = [best for values in self._others() if (best := self._best(values[:number])) is not None]
        own = self._best(self.values)
        if number <= self.warmup or len(others) < self.startup_runs:
            return None
        middle = median(others)
        if own is not None and (own <= middle if self.mode == "min" else own >= middle):
            return None
        found = "none" if own is None else f"{own:.4g}"
        return f"pruned at evaluation {number}: {self.monitor} {found}, median of {len(others)} runs {middle:.4g}"

    def _others(self) -> list[list[float]]:
        """Values of the other runs that have reached as many evaluations."""
        found = []
        for path in self.folder.glob(f"*/{FILE}"):
            if path != self.path and "_until_" not in path.parent.name:  # which is an earlier run, moved aside
                content = json.loads(path.read_text())
                if content["monitor"] == self.monitor and len(content["values"]) >= len(self.values):
                    found.append(content["values"])
        return found

    def _best(self, values: list[float]) -> float | None:
        numbers = [value for value in values if not math.isnan(value)]
        return (min if self.mode == "min" else max)(numbers, default=None)
