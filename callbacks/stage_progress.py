"""The bookkeeping of the stages: numbers and strings only, no trainer and no module."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .evaluation import improves
from .stage import Stage

NOTHING_TRAINS = "nothing trains"


@dataclass
class StageProgress:
    """Where a staged fit stands; every field is plain, so a checkpoint carries it whole.

    ``min_delta`` is for patience alone: the best score is the best one, by however little.

    Args:
        mode: min or max, which scores are better.
        run: a token that tells the weights of this run from those of another in the same folder.

    >>> progress = StageProgress(mode="min")
    >>> progress.observe(10.0), progress.observe(12.0), progress.best
    (True, False, 10.0)
    """

    mode: str
    run: str = ""
    index: int = 0
    evaluations: int = 0
    best: float | None = None
    best_evaluation: int | None = None
    start_value: float | None = None
    best_before: float | None = None
    stage_best: float | None = None
    stage_evaluations: int = 0
    anchor: float | None = None
    stale: int = 0
    batches: int = 0
    epoch_ends: int = 0
    batches_since_evaluation: int = 0
    first_step: int = 0
    opened_at: dict[str, int | None] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    reason: str | None = None

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state` gave, but for the mode, which is this run's to say."""
        for name in set(asdict(self)) - {"mode"}:
            setattr(self, name, state[name])

    def state(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def key(self) -> str:
        """Names the weights of the best evaluation."""
        return f"{self.run}-{self.best_evaluation}"

    def observe_start(self, value: float) -> bool:
        """Takes the score before any training, which the first stage has to beat; answers whether it is a number."""
        if not improves(value, None, self.mode):
            return False
        self.start_value = self.best = self.best_before = self.anchor = value
        self.best_evaluation = 0
        return True

    def observe(self, value: float, min_delta: float = 0.0, eligible: bool = True) -> bool:
        """Counts an evaluation and answers whether it is the best so far.

        Args:
            value: its score; NaN is an evaluation without a gain.
            min_delta: the gain that patience asks for.
            eligible: ``False`` for an evaluation that must not become the best, whatever its score.
        """
        self.evaluations += 1
        self.stage_evaluations += 1
        self.batches_since_evaluation = 0
        gained = eligible and improves(value, self.anchor, self.mode, min_delta)
        self.stale = 0 if gained else self.stale + 1
        self.anchor = value if gained else self.anchor
        if eligible and improves(value, self.stage_best, self.mode):
            self.stage_best = value
        if not (eligible and improves(value, self.best, self.mode)):
            return False
        self.best, self.best_evaluation = value, self.evaluations
        return True

    def count_batch(self, ends_epoch: bool) -> None:
        """Counts a training batch."""
        self.batches += 1
        self.epoch_ends += ends_epoch
        self.batches_since_evaluation += 1

    def epochs(self, batches_per_epoch: float) -> float:
        """Passes over the data in this stage: fractions where the length is known, ended epochs where it is not."""
        return self.batches / batches_per_epoch if 0 < batches_per_epoch < float("inf") else self.epoch_ends

    def end(self, stage: Stage, step: int, batches_per_epoch: float) -> str | None:
        """Why the stage ends now (plateau, epochs, steps), ``None`` while it goes on."""
        if stage.patience is not None and self.stale >= stage.patience:
            return "plateau"
        if stage.epochs is not None and self.epochs(batches_per_epoch) >= stage.epochs:
            return "epochs"
        if stage.steps is not None and step - self.first_step >= stage.steps:
            return "steps"
        return None

    @property
    def gain(self) -> float | None:
        """How much better the best of this stage is than the best before it; negative is worse."""
        if self.best_before is None or self.stage_best is None:
            return None
        return self.best_before - self.stage_best if self.mode == "min" else self.stage_best - self.best_before

    @property
    def helped(self) -> bool:
        """Whether the stage beat the best before it; with nothing to compare it did."""
        return self.best_before is None or self.stage_evaluations == 0 or (self.gain or 0.0) > 0

    @property
    def is_at_best(self) -> bool:
        """Whether the weights of this very moment are those of the best evaluation."""
        return self.best_evaluation == self.evaluations and self.batches_since_evaluation == 0

    def next_stage(self, step: int) -> None:
        """Moves on: the score to beat is the best so far."""
        self.index += 1
        self.best_before = self.anchor = self.best
        self.stage_best = None
        self.stage_evaluations = self.stale = self.batches = self.epoch_ends = 0
        self.first_step = step

    def record(self, stage: Stage, trainable: int, epochs: float, outcome: str, ended: str) -> None:
        """Writes the line of a stage that is over; one that the trainer had cut off and that went on has one line."""
        if self.records and self.records[-1]["stage"] == stage.name:
            self.records.pop()
        self.records.append(
            {
                "stage": stage.name,
                "open": ", ".join(stage.open),
                "trainable": trainable,
                "epochs": round(float(epochs), 3),
                "best": self.stage_best,
                "gain": self.gain,
                "outcome": outcome,
                "ended by": ended,
            }
        )

    def pass_over(self, stage: Stage) -> None:
        """Writes the line of a stage that trains nothing: its evaluation is the one that has been.

        Raises:
            ValueError: that gave no number.
        """
        if self.best is None:
            raise ValueError(f"Stage {stage.name!r} trains nothing, and its evaluation gave no number to beat.")
        self.stage_best, self.best_before = self.best, None
        self.record(stage, trainable=0, epochs=0, outcome="evaluated", ended=NOTHING_TRAINS)

    def summary(self, monitor: str) -> str:
        """What each stage reached and gained, in one line.

        >>> progress = StageProgress("max")
        >>> progress.records = [{"stage": "all", "best": 0.5, "gain": 0.125, "outcome": "kept"}]
        >>> progress.summary("val/kappa")
        'stages by val/kappa: all 0.5 (+0.125, kept)'
        """
        found = []
        for row in self.records:
            best = "-" if row["best"] is None else f"{row['best']:.4g}"
            gain = "" if row["gain"] is None else f"{row['gain']:+.4g}, "
            found.append(f"{row['stage']} {best} ({gain}{row['outcome']})")
        return f"stages by {monitor}: {', '.join(found)}"

    def finish(self, stage: Stage, ended: str, monitor: str) -> None:
        """Writes down why the fit ends here."""
        self.finished = True
        best = "none" if self.best is None else f"{self.best:.6g}"
        self.reason = (
            f"{ended}: stage {stage.name!r} ended after {self.stage_evaluations} evaluations ({stage.limits()}), "
            f"best {monitor} {best} at evaluation {self.best_evaluation}"
        )
