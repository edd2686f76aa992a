"""Opens the optimizer's groups stage by stage, and takes a stage back that did not pay."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .best_weights import BestWeights
from .evaluation import check_choice, check_mode, counts, required_value
from .stage import parse_stages, stage_index
from .stage_application import StageApplication
from .stage_plan import StagePlan, plan_model, table
from .stage_progress import NOTHING_TRAINS, StageProgress
from .stage_support import check_first_stage, must_go_on, refuse_averaging, write_summary
from .supported import check_same, refuse_unsupported
from .trainable import BATCHNORM, clear_gradients

ON_NO_GAIN = ("rollback", "keep", "stop")
AT_END = ("best", "last")


class StagedUnfreezing(Callback):
    """Trains stage by stage: each stage opens groups of the optimizer, and one that did not help is undone.

    The groups are read from ``name`` and ``modules`` of the optimizer's parameter groups and never change, only
    ``requires_grad`` does. All that a stage implies is set by one idempotent :meth:`converge`. A stage ends at a
    validation, and rank 0's score decides for all ranks; the end of the last one stops the fit, ``reason`` says why.
    With ``Trainer(num_sanity_val_steps=-1)`` the sanity check gives ``start_value``, which the first stage has to beat;
    without it the first stage is kept. A stage that trains nothing (``open: []``) takes no step: its evaluation is that
    sanity check, or the best so far where it comes later.

    A roll-back restores the weights of the best evaluation so far; the optimizer's moments and the plan go on: a later
    cumulative stage opens the groups again. A gradient accumulation window restarts at a change of stage.

    Args:
        stages: name -> ``open``, ``epochs``, ``steps``, ``patience``, ``min_delta``, ``only``; see :class:`Stage`.
            ``epochs`` are passes over the training data, judged at the first validation after them.
        monitor: the logged score that judges the stages.
        mode: min or max.
        batchnorm: of frozen parts: frozen_eval, batch_stats or train, see :class:`BatchNormGuard`.
        on_no_gain: what happens to a stage that did not beat the best score before it, the last one included: rollback,
            keep, or stop (the fit ends).
        at_end: the module ends with the weights of its best evaluation, or with the last ones.
        dirpath: gets the folder ``stages`` (weights, ``stages.json``); the trainer's ``default_root_dir`` if ``None``.
        keep_best: weights of how many bests stay there; a checkpoint older than that cannot be resumed.

    Raises:
        ValueError: a description that cannot work, before anything trains.
        ValueError: the monitor is not logged.

    >>> callback = StagedUnfreezing({"heads": {"open": ["heads"], "epochs": 2}}, monitor="val/loss")
    >>> callback.stages[0].limits()
    'epochs 2'
    """

    def __init__(
        self,
        stages: Mapping[str, Mapping[str, Any]],
        monitor: str,
        mode: str = "min",
        batchnorm: str = "frozen_eval",
        on_no_gain: str = "rollback",
        at_end: str = "best",
        dirpath: str | None = None,
        keep_best: int = 3,
    ) -> None:
        check_mode(mode)
        check_choice("batchnorm", batchnorm, BATCHNORM)
        check_choice("on_no_gain", on_no_gain, ON_NO_GAIN)
        check_choice("at_end", at_end, AT_END)
        self.stages = parse_stages(stages)
        self.monitor = monitor
        self.on_no_gain, self.at_end = on_no_gain, at_end
        self.dirpath, self.keep_best = dirpath, keep_best
        self.mode = mode
        self.batchnorm = batchnorm
        self.progress = StageProgress(mode)
        self.weights_replaced = self.red_flag = False  # an ended plan is no warning
        self.start_counts = False  # the sanity check that just ended gave the score to beat
        self._application: StageApplication
        self._keeps_weights = on_no_gain == "rollback" or at_end == "best"
        self._loaded: dict[str, Any] | None = None
        self._vetoed = self._ended = self._resumed = False
        self._requested: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the fit was stopped, ``None`` while it was not."""
        return self.progress.reason

    @property
    def start_value(self) -> float | None:
        """The score before any training, from a sanity check of the whole validation set."""
        return self.progress.start_value

    @property
    def records(self) -> list[dict[str, Any]]:
        """A line for each stage that is over: stage, open, trainable, epochs, best, gain, outcome, ended by."""
        return list(self.progress.records)

    def stage_summary(self) -> str:
        """What each stage reached and gained, in one line."""
        return self.progress.summary(self.monitor)

    def has_ended(self, name: str) -> bool:
        """Whether that stage is over."""
        return self.progress.finished or self.progress.index > stage_index(self.stages, name)

    def plan(self, model: LightningModule, optimizer: Any = None) -> StagePlan:
        """A dry run without a trainer: which parameters each stage opens, and those that no group takes.

        Args:
            model: its attribute ``optimizer`` (a ``GroupedOptimizer``) is asked, unless ``optimizer`` is given.
            optimizer: a ``GroupedOptimizer`` or a torch optimizer with named groups.
        """
        return plan_model(self.stages, model, model.optimizer if optimizer is None else optimizer)

    def keep_weights(self) -> None:
        """Asks for the weights of the best evaluation to be kept, so that :meth:`request_rollback` can work."""
        self._keeps_weights = True

    def veto_best(self) -> None:
        """Keeps the evaluation under way from becoming the best; for use before ``on_validation_end``."""
        self._vetoed = True

    def request_rollback(self, reason: str) -> None:
        """Ends the stage at the evaluation under way and restores the best; for use before ``on_validation_end``."""
        self._vetoed, self._requested = True, reason

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what it cannot do exactly."""
        if stage == "fit":
            refuse_unsupported(trainer, "StagedUnfreezing")
            refuse_averaging(trainer)
            folder = Path(self.dirpath or trainer.default_root_dir) / "stages"
            self._weights, self._report = BestWeights(str(folder), self.keep_best), folder / "stages.json"
            self._ended = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the groups, checks them against the checkpoint, and sets the present stage."""
        self._application = StageApplication(self.stages, trainer, pl_module, self.batchnorm)
        self._resumed = self._loaded is not None
        if self._loaded is None:
            self.progress = StageProgress(self.mode, run=trainer.strategy.broadcast(uuid.uuid4().hex[:12]))
            rank_zero_info(f"Stages\n{self._application.plan()}")
            check_first_stage(trainer, self._application)
        else:
            self._resume(trainer, pl_module, self._loaded)
        self.converge(trainer, pl_module)
        # before the loop asks, so that a finished run does not train one more epoch
        trainer.should_stop = trainer.should_stop or self.progress.finished

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A cheap check, since no other hook is sure to fire on a resume."""
        if not self._application.holds():
            self.converge(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts."""
        self.progress.count_batch(trainer.is_last_batch)

    def converge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes module, optimizer and DDP wrapper agree with the present stage; a second call changes nothing."""
        self._application.converge(trainer, pl_module, self.progress.index, self.progress.opened_at)

    on_train_start = converge  # once more, now that the optimizer's state has been restored

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one place of decisions."""
        progress, self.weights_replaced, self.start_counts = self.progress, False, False
        is_full = trainer.sanity_checking and trainer.num_sanity_val_steps == float("inf")
        is_start = is_full and not self._resumed  # Lightning repeats it where an epoch has just ended
        if progress.finished or not (is_start or counts(trainer)):
            return
        stage, value = self.stages[progress.index], required_value(trainer, self.monitor, "StagedUnfreezing")
        vetoed, requested = trainer.strategy.broadcast((self._vetoed, self._requested))
        self._vetoed, self._requested = False, None
        is_best = progress.observe_start(value) if is_start else progress.observe(value, stage.min_delta, not vetoed)
        if is_best and self._keeps_weights and trainer.is_global_zero:
            self._weights.save(pl_module, progress.key())
        if is_start:
            self.start_counts = is_best
            self._pass_over(trainer, pl_module)
            return
        ended = requested or progress.end(stage, trainer.global_step, trainer.num_training_batches)
        must_stay = stage is self.stages[-1] and must_go_on(trainer) and not requested
        if ended and not must_stay:
            self._end_stage(trainer, pl_module, ended, undo=bool(requested))

    def _end_stage(self, trainer: Trainer, pl_module: LightningModule, ended: str, undo: bool) -> None:
        helped = self.progress.helped
        self._judge(trainer, pl_module, ended, undo or (self.on_no_gain == "rollback" and not helped))
        stop = self.on_no_gain == "stop" and not helped
        self._advance(trainer, pl_module, f"no gain, {ended}" if stop else ended, stop)

    def _advance(self, trainer: Trainer, pl_module: LightningModule, ended: str, stop: bool = False) -> None:
        """To the next stage that trains something, or to the end."""
        progress, stage = self.progress, self.stages[self.progress.index]
        if stop or stage is self.stages[-1]:
            progress.finish(stage, ended, self.monitor)
            trainer.should_stop = True
            return
        progress.next_stage(trainer.global_step)
        clear_gradients(pl_module)
        self.converge(trainer, pl_module)
        rank_zero_info(f"Stage {stage.name!r} ended ({ended}); {self._application.announcement(progress.index)}")
        self._pass_over(trainer, pl_module)

    def _pass_over(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves a stage behind that trains nothing."""
        if not self._application.trainable(self.progress.index):
            self.progress.pass_over(self.stages[self.progress.index])
            self._advance(trainer, pl_module, NOTHING_TRAINS)

    def _judge(self, trainer: Trainer, pl_module: LightningModule, ended: str, roll_back: bool) -> None:
        """Undoes the stage if need be and writes its record."""
        progress = self.progress
        self.weights_replaced = roll_back and progress.best_evaluation is not None
        if self.weights_replaced:
            self._weights.restore(trainer, pl_module, progress.key())
        elif roll_back:
            rank_zero_warn("No evaluation is fit to go back to, the weights stay; see num_sanity_val_steps=-1.")
        progress.record(
            self.stages[progress.index],
            trainable=self._application.trainable(progress.index),
            epochs=progress.epochs(trainer.num_training_batches),
            outcome="rolled back" if self.weights_replaced else "kept",
            ended=ended,
        )
        write_summary(trainer, self._report, self.monitor, progress)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the stage that the trainer's own limits cut off, and ends with the best."""
        if not self.progress.finished and self.progress.stage_evaluations:
            self._judge(trainer, pl_module, "trainer", self.on_no_gain == "rollback" and not self.progress.helped)
        if self.at_end == "best" and self.progress.best_evaluation is not None:
            self._weights.restore(trainer, pl_module, self.progress.key())
        self._ended = True
        write_summary(trainer, self._report, self.monitor, self.progress)
        rank_zero_info("Stages\n" + table(self.progress.records))
        if left := [stage.name for stage in self.stages[self.progress.index + 1 :] if not self.progress.finished]:
            rank_zero_warn(f"The trainer ended before the stages {left} began; give it more epochs or steps.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for a run that was resumed at its end: Lightning trains nothing and skips ``on_train_end``."""
        if not self._ended:
            self.on_train_end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the module."""
        if stage == "fit" and hasattr(self, "_application"):
            self._application.release()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        if not hasattr(self, "_application"):
            return {}
        return {
            **self.progress.state(),
            "stages": [stage.name for stage in self.stages],
            "groups": self._application.groups.fingerprint(),
            "weights": str(self._weights.newest.parent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the progress; the groups are compared once they exist."""
        check_same("stages", state["stages"], [stage.name for stage in self.stages])
        self.progress.load(state)
        self._loaded = state

    def _resume(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        check_same("optimizer groups", state["groups"], self._application.groups.fingerprint())
        progress, self._loaded = self.progress, None
        if self._keeps_weights and progress.best_evaluation is not None:
            self._weights.adopt(trainer, pl_module, progress.key(), state["weights"], progress.is_at_best)
