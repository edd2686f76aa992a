"""Stops a run whose metrics show that it is going wrong."""

import logging
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .evaluation import check_mode, counts, improves, logged_value
from .supported import refuse_unsupported

log = logging.getLogger(__name__)

KEYS = {"metric", "rising_for", "below", "above", "patience", "mode"}


class MetricRedFlags(Callback):
    """Stops when a rule on a logged metric holds long enough; NaN and a missing value are no evidence.

    Metrics whose name starts with ``train`` are read at the end of each training epoch, all others at the end of each
    validation; the sanity check does not count.

    Args:
        rules: name -> ``metric`` and one of ``rising_for`` (that many times in a row worse than the time before;
            ``mode`` min or max says what worse is), ``below`` or ``above`` (with ``patience``, times in a row, 1).

    Raises:
        ValueError: a rule that says none or several of the three, or an unknown key; a metric that is not there at the
            second look either (the message names what is logged); a strategy other than one device and DDP.

    >>> MetricRedFlags({"rising": {"metric": "val/median_km", "rising_for": 5}}).reason is None
    True
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Any]]) -> None:
        self.rules = {name: _check(name, rule) for name, rule in rules.items()}
        self.reason: str | None = None
        self._values: dict[str, list[float]] = {name: [] for name in rules}
        self._missed: dict[str, int] = dict.fromkeys(rules, 0)

    @property
    def red_flag(self) -> bool:
        """Whether it has stopped the fit."""
        return self.reason is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies whose ranks could disagree."""
        refuse_unsupported(trainer, type(self).__name__)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was stopped stays stopped when it is resumed."""
        trainer.should_stop = trainer.should_stop or self.red_flag

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at all metrics but those of training."""
        if counts(trainer):
            self._look(trainer, training=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the metrics of training, which are complete only now."""
        self._look(trainer, training=True)

    def state_dict(self) -> dict[str, Any]:
        """The recent values of each rule and the reason."""
        return {"values": {name: list(values) for name, values in self._values.items()}, "reason": self.reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them over for the rules that are still there."""
        self._values = {name: list(state["values"].get(name, [])) for name in self.rules}
        self.reason = state["reason"]

    def _look(self, trainer: Trainer, training: bool) -> None:
        for name, rule in self.rules.items():
            if rule["metric"].startswith("train") is training and not self.red_flag:
                self._look_at(trainer, name, rule)

    def _look_at(self, trainer: Trainer, name: str, rule: Mapping[str, Any]) -> None:
        value = logged_value(trainer, rule["metric"])
        if value is None:
            self._missed[name] += 1
            if self._missed[name] == 2 and not self._values[name]:
                raise ValueError(
                    f"`rules.{name}.metric` {rule['metric']!r} is not logged; logged are "
                    f"{sorted(trainer.callback_metrics)}."
                )
            return
        if math.isnan(value):
            return
        needed = rule["rising_for"] + 1 if "rising_for" in rule else rule["patience"]
        self._values[name] = [*self._values[name], value][-needed:]
        if len(self._values[name]) == needed and _holds(rule, self._values[name]):
            self._stop(trainer, name, rule)

    def _stop(self, trainer: Trainer, name: str, rule: Mapping[str, Any]) -> None:
        values = ", ".join(f"{value:.6g}" for value in self._values[name])
        what = next(f"{key.replace('_', ' ')} {rule[key]}" for key in ("rising_for", "below", "above") if key in rule)
        self.reason = f"red flag {name!r}: {rule['metric']} {what} ({values}), epoch {trainer.current_epoch + 1}"
        trainer.should_stop = True
        if trainer.is_global_zero:
            log.warning("%s", self.reason)


def _holds(rule: Mapping[str, Any], values: list[float]) -> bool:
    if "rising_for" in rule:
        return all(improves(before, after, rule["mode"]) for before, after in pairwise(values))
    if "below" in rule:
        return all(value < rule["below"] for value in values)
    return all(value > rule["above"] for value in values)


def _check(name: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    complete = {"mode": "min", "patience": 1, **rule}
    kinds = {"rising_for", "below", "above"} & set(rule)
    if len(kinds) != 1 or "metric" not in rule or set(rule) - KEYS:
        raise ValueError(
            f"`rules.{name}` needs metric and one of rising_for, below, above; known are {sorted(KEYS)}, "
            f"got {dict(rule)}."
        )
    check_mode(complete["mode"], f"rules.{name}.mode")
    if complete["patience"] < 1 or complete.get("rising_for", 1) < 1:
        raise ValueError(f"`rules.{name}` counts from 1 on, got {dict(rule)}.")
    return complete
