"""What every callback here asks of an evaluation: does it count, what did it log, is it better."""

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

MODES = ("min", "max")


def counts(trainer: Trainer) -> bool:
    """Whether this is an evaluation of a fit: neither the sanity check nor ``trainer.validate``."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def check_choice(argument: str, value: str, known: Sequence[str]) -> None:
    """Refuses a value that is not in ``known``.

    >>> check_choice("at_end", "best", ("best", "last"))
    """
    if value not in known:
        raise ValueError(f"`{argument}` must be one of {tuple(known)}, got {value!r}.")


def check_mode(mode: str, argument: str = "mode") -> None:
    """Refuses anything but min and max."""
    check_choice(argument, mode, MODES)


def callbacks_of(trainer: Any) -> list[Callback]:
    """All callbacks of a trainer."""
    return list(trainer.callbacks)


def improves(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether ``value`` beats ``best``, by at least ``min_delta``. NaN never does; without a best every number does.

    >>> improves(9.0, 10.0, "min"), improves(10.0, 10.0, "min"), improves(9.9, 10.0, "min", min_delta=0.5)
    (True, False, False)
    """
    if math.isnan(value):
        return False
    if best is None:
        return True
    gain = best - value if mode == "min" else value - best
    return gain > 0 and gain >= min_delta


def logged_value(trainer: Trainer, name: str) -> float | None:
    """The logged value that rank 0 sees, the same on every rank; ``None`` where it is not logged."""
    value = trainer.callback_metrics.get(name)
    shared: float | None = trainer.strategy.broadcast(None if value is None else float(value))
    return shared


def required_value(trainer: Trainer, monitor: str, owner: str) -> float:
    """Like :func:`logged_value`; in the sanity check a missing one is NaN, since some modules log nothing there.

    Raises:
        ValueError: the metric was not logged; the message names what was.
    """
    value = logged_value(trainer, monitor)
    if value is None and trainer.sanity_checking:
        return math.nan
    if value is None:
        raise ValueError(
            f"{owner}(monitor={monitor!r}): no such metric after validation; logged are "
            f"{sorted(trainer.callback_metrics)}. Log it in validation_step or correct `monitor`."
        )
    return value
