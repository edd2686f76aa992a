"""Saves a run so that it goes on bit for bit after any kill."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from .durable_checkpoint_io import DurableCheckpointIO
from .durable_files import versions
from .evaluation import counts
from .preemption import Preempted, PreemptionNotice
from .run_state import (
    gather,
    is_ending,
    leave_ended_epoch,
    logged_values,
    metrics_under_way,
    reseed,
    restore_logged_sums,
    restore_logged_values,
    restore_metrics,
)
from .supported import check_plain, check_same, flat, refuse_unsupported

log = logging.getLogger(__name__)

FILE = "resume.ckpt"


class ExactResume(Checkpoint):
    """Writes ``dirpath/resume.ckpt`` every so many steps and after each evaluation, and goes on from it bit for bit.

    ``trainer.fit(module, data, ckpt_path=ExactResume.find(dirpath))`` starts where there is nothing to resume, goes on
    after any kill, and leaves a finished run finished. Weights, trainable set, learning rates, batches and random
    numbers are those of the run that was never killed:

    - random numbers are seeded anew at each batch from (seed, rank, batch), and the seed is in the checkpoint;
    - the train loader has to know its position (``state_dict``), as :class:`stagewise.datamodules.ResumableDataLoader`
      does; a checkpoint of other data is refused;
    - metrics in the middle of an epoch, sums of ``self.log`` and the last logged values are saved for every rank;
    - nothing is saved inside a gradient accumulation window, nor between the last batch of an epoch and its end;
    - it comes last of all callbacks, so their decisions are in the file.

    SIGTERM ends the run after the batch under way: it is saved, and :class:`Preempted` leaves the program with exit
    code 75. Files are written by :class:`DurableCheckpointIO`, which takes the place of Lightning's default.

    Args:
        dirpath: folder of the file.
        every_n_steps: optimizer steps between two saves; ``None`` saves after evaluations and epochs only.
        keep: versions of the file; the older one is read where the newer is damaged.
        settings: plain values that the run depends on, such as learning rates; a resume with other ones is refused,
            since the checkpoint's would silently stay in force.

    Raises:
        ValueError: a number below 1; a strategy, checkpoint IO, schedule or loader that cannot be resumed exactly;
            hyper-parameters that no checkpoint could be opened with; a checkpoint of other data, settings or number of
            processes.

    >>> ExactResume.find("a/folder/without/a/run") is None
    True
    """

    best_model_path = ""  # Lightning asks every checkpoint callback for it

    def __init__(
        self,
        dirpath: str,
        every_n_steps: int | None = 200,
        keep: int = 2,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        for name, number in (("every_n_steps", every_n_steps), ("keep", keep)):
            if number is not None and number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        self.path = os.path.join(str(dirpath), FILE)
        self.every_n_steps, self.keep = every_n_steps, keep
        self.settings = flat(settings or {})
        self.seed: int | None = None
        self._loaded: dict[str, Any] | None = None
        self._steps = 0
        self._notice = PreemptionNotice()
        self._trainer: Trainer
        self._module: LightningModule

    @staticmethod
    def find(dirpath: str | Path) -> str | None:
        """The checkpoint of a run's folder, for ``ckpt_path``; ``None`` where a run has to start anew."""
        path = Path(dirpath) / FILE
        return str(path) if any(True for _ in versions(path)) else None

    # --- before training ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what it cannot resume, takes the last place among the callbacks, and makes the files durable."""
        if stage != "fit":
            return
        refuse_unsupported(trainer, "ExactResume")
        self._trainer, self._module = trainer, pl_module
        trainer.callbacks = [*(cb for cb in trainer.callbacks if cb is not self), self]  # type: ignore[attr-defined]
        io = trainer.strategy.checkpoint_io
        if type(io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        elif not isinstance(io, DurableCheckpointIO):
            raise ValueError(
                f"ExactResume needs a DurableCheckpointIO, got {type(io).__name__}; take it from `plugins`."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agrees on the seed; a run that was stopped stays stopped."""
        for owner in (pl_module, trainer.datamodule):  # type: ignore[attr-defined]
            check_plain(getattr(owner, "hparams", {}), type(owner).__name__)
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            raise ValueError("ReduceLROnPlateau cannot be resumed exactly; use GroupedOptimizer's schedule or stages.")
        if self._loaded is None:
            given = os.environ.get("PL_GLOBAL_SEED")  # of lightning.seed_everything
            self.seed = int(trainer.strategy.broadcast(int(given) if given else torch.initial_seed()))
            return
        self.seed = self._loaded["seed"]
        check_same("settings", self._loaded["settings"], self.settings)
        check_same("processes", [len(self._loaded["ranks"])], [trainer.world_size])
        trainer.should_stop = trainer.should_stop or self._loaded["stopped"]
        restore_logged_values(trainer, self._loaded["logged"])

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes SIGTERM over: the first hook after Lightning has."""
        self._notice.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the loader and the metrics where they were."""
        self._steps = trainer.global_step
        self._notice.listen()
        if self._must_leave(trainer):
            raise self._leaving(trainer, None)
        leave_ended_epoch(trainer)
        loader = _loader_of(trainer)
        if self._loaded is not None:
            loader.load_state_dict(self._loaded["loader"])
            own = self._loaded["ranks"][trainer.global_rank]
            restore_metrics(pl_module, own["metrics"])
            restore_logged_sums(trainer, pl_module, own["sums"])
            self._check_agreement(trainer)
        elif trainer.global_step > 0:
            rank_zero_warn("The checkpoint holds no state of ExactResume: the run goes on, but not bit for bit.")
        self._loaded = None
        self._reseed(trainer, "fetch")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same random numbers whether the epoch before was trained by this process or not."""
        self._reseed(trainer, "fetch")

    # --- in training ---

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds the step, whatever fetching the batch has drawn."""
        self._reseed(trainer, "step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every ``every_n_steps`` optimizer steps."""
        self._reseed(trainer, "fetch")
        before, self._steps = self._steps, trainer.global_step
        must_leave, n = self._must_leave(trainer), self.every_n_steps
        is_due = must_leave or (n is not None and self._steps // n > before // n)
        # not inside an accumulation window, nor where a better moment follows
        if not is_due or self._steps == before or self._is_followed(trainer):
            return
        if must_leave:
            self._leave(trainer)
        self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after an evaluation in the middle of an epoch; the end of the epoch follows the others at once."""
        if not counts(trainer):
            return
        self._reseed(trainer, "fetch")
        in_window = trainer.fit_loop._should_accumulate()
        if not (trainer.is_last_batch or trainer.should_stop or in_window):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch with all that was decided at its end."""
        must_leave = self._must_leave(trainer)
        if is_ending(trainer):
            return
        if must_leave:
            self._leave(trainer)
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what the run ended with, its best or averaged weights, so that a finished run has them again."""
        self._save(trainer)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """The same in every checkpoint of the run, so that each can be resumed; all ranks have to ask for it."""
        if self.seed is None or self._trainer.sanity_checking:  # before training there is no position to go on from
            return {}
        trainer = self._trainer
        return {
            "seed": self.seed,
            "settings": self.settings,
            "stopped": trainer.should_stop,
            "logged": logged_values(trainer),
            "loader": _loader_of(trainer).state_dict(),
            "ranks": gather(trainer, metrics_under_way(trainer, self._module)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps it until there is a loader."""
        self._loaded = state or None

    # --- parts ---

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False, storage_options={"keep": self.keep})

    def _must_leave(self, trainer: Trainer) -> bool:
        """Whether any process has got a SIGTERM; all of them have to ask."""
        noticed = self._notice.received
        return noticed if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(noticed, all=False)

    def _leave(self, trainer: Trainer) -> None:
        self._save(trainer)
        raise self._leaving(trainer, self.path)

    def _leaving(self, trainer: Trainer, path: str | None) -> Preempted:
        left = Preempted(trainer.global_rank, path)
        if trainer.is_global_zero:
            log.warning("%s; the same command goes on from there", left.reason)
        return left

    def _reseed(self, trainer: Trainer, moment: str) -> None:
        reseed(self.seed, trainer.global_rank, moment, trainer.fit_loop.total_batch_idx)

    def _is_followed(self, trainer: Trainer) -> bool:
        """Whether this batch ends the epoch or is evaluated: Lightning would skip that on a resume from here."""
        loop: Any = trainer.fit_loop
        return bool(trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher))

    def _check_agreement(self, trainer: Trainer) -> None:
        """Ranks may have read different versions where only one of them can read the newest."""
        steps = gather(trainer, trainer.global_step)
        if len(set(steps)) > 1:
            raise OSError(f"the processes resumed from different steps {steps}; copy one {FILE} to all of them.")


def _loader_of(trainer: Trainer) -> Any:
    """The train loader, which has to know its position."""
    loaders = trainer.fit_loop._combined_loader.flattened if trainer.fit_loop._combined_loader else []
    if len(loaders) != 1:
        raise ValueError(f"ExactResume needs one train loader, got {len(loaders)}; combine the data sets in one.")
    if not hasattr(loaders[0], "load_state_dict"):
        raise ValueError(
            f"ExactResume: the train loader {type(loaders[0]).__name__} does not know its position, so a resume would "
            "repeat or omit samples; use stagewise.datamodules.ResumableDataLoader with the same arguments."
        )
    return loaders[0]
