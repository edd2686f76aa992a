"""Learning rates that start when a group opens, as a closed form of the step."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

SHAPES = ("constant", "cosine", "step")
CLOCKS = ("group", "global")
KEYS = {"shape", "warmup_steps", "clock", "at_epoch", "factor"}


class OpenedGroupSchedule(LRScheduler):
    """Learning rates in closed form from the steps since each group opened; a closed group has 0.

    Args:
        optimizer: its groups may carry ``opened_at``; without it a group is open from step 0.
        schedule: the complete description, see :class:`GroupedOptimizer`.
        total_steps: optimizer steps of the whole fit.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Mapping[str, Any], total_steps: float, steps_per_epoch: float
    ) -> None:
        self.schedule = dict(schedule)
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """(groups,) the learning rate of each group for the step that comes next."""
        return [
            base * self._factor(group.get("opened_at", 0))
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def refresh(self) -> None:
        """Writes the learning rates anew without a step: call it after a change of ``opened_at``."""
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Counters only: the shape comes from the configuration, and a checkpoint must not overrule it."""
        return {key: self.__dict__[key] for key in ("last_epoch", "_step_count", "base_lrs", "_last_lr")}

    def _factor(self, opened_at: int | None) -> float:
        if opened_at is None:
            return 0.0
        start = opened_at if self.schedule["clock"] == "group" else 0
        step, warmup = self.last_epoch - start, int(self.schedule["warmup_steps"])
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.schedule["shape"] == "cosine":
            length = max(self.total_steps - start - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / length, 1.0)))
        if self.schedule["shape"] == "step":
            passed = sum(step >= epoch * self.steps_per_epoch for epoch in self.schedule["at_epoch"])
            return float(float(self.schedule["factor"]) ** passed)
        return 1.0


def fit_length(module: nn.Module, shape: str) -> tuple[float, float]:
    """Optimizer steps of the fit and of an epoch; the trainer is asked only by the shapes that need it.

    Raises:
        ValueError: a fit without an end, or an epoch without a length.

    >>> fit_length(nn.Linear(1, 1), "constant")
    (inf, inf)
    """
    if shape == "constant":
        return math.inf, math.inf
    trainer: Any = module.trainer
    total = trainer.estimated_stepping_batches
    if shape == "cosine":
        if not 0 < total < math.inf:
            raise ValueError("`schedule.shape` 'cosine' needs an end; set trainer.max_epochs or trainer.max_steps.")
        return total, math.inf
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    if trainer.num_training_batches == math.inf:
        raise ValueError("`schedule.shape` 'step' counts epochs, but the loader has no length; use cosine.")
    return total, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def check_schedule(schedule: dict[str, Any]) -> dict[str, Any]:
    """Fills in the defaults.

    Raises:
        ValueError: an unknown key or value.

    >>> check_schedule({"shape": "cosine"})
    {'shape': 'cosine', 'warmup_steps': 0, 'clock': 'group'}
    """
    if unknown := set(schedule) - KEYS:
        raise ValueError(f"`schedule` does not know {sorted(unknown)}; it knows {sorted(KEYS)}.")
    complete: dict[str, Any] = {"shape": "constant", "warmup_steps": 0, "clock": "group", **schedule}
    for key, known in (("shape", SHAPES), ("clock", CLOCKS)):
        if complete[key] not in known:
            raise ValueError(f"`schedule.{key}` must be one of {known}, got {complete[key]!r}.")
    if complete["warmup_steps"] < 0:
        raise ValueError(f"`schedule.warmup_steps` must not be negative, got {complete['warmup_steps']}.")
    if (complete["shape"] == "step") != ("at_epoch" in schedule and "factor" in schedule):
        raise ValueError("`schedule` needs at_epoch and factor with shape 'step', and only with it.")
    if complete["shape"] == "step":
        epochs = complete["at_epoch"]
        complete["at_epoch"] = [epochs] if isinstance(epochs, int) else list(epochs)
    return complete
