"""Tasks: networks, losses, metrics."""

from collections.abc import Sequence
from typing import Any

from ..datamodules.errors import CheckpointError
from .drains.module import DrainModule
from .fusion.module import FusionModule
from .geolocation.module import GeolocationModule
from .landslide.module import LandslideModule
from .metrics import Quantile
from .optim import GroupedOptimizer
from .start import read_checkpoint

__all__ = [
    "DrainModule",
    "FusionModule",
    "GeolocationModule",
    "GroupedOptimizer",
    "LandslideModule",
    "Quantile",
    "load_module",
]

_TASKS = {task.__name__: task for task in (DrainModule, FusionModule, GeolocationModule, LandslideModule)}


def load_module(path: str | Sequence[str]) -> Any:
    """The module of any checkpoint that train.py wrote, on the CPU and in eval mode.

    Args:
        path: of the checkpoint; several are an ensemble, where the task has one.

    Raises:
        CheckpointError: no such file, damaged, or of a task that is not stagewise's; several of one that averages none.
    """
    if isinstance(path, str):
        return _load(path)
    first, *others = [_load(one) for one in path]
    if not hasattr(first, "ensemble") or any(type(other) is not type(first) for other in others):
        tasks = sorted({type(module).__name__ for module in (first, *others)})
        raise CheckpointError(
            f"checkpoints of {', '.join(tasks)} make no ensemble; pass one, or several landslide ones."
        )
    return first.ensemble(others)


def _load(path: str) -> Any:
    name = read_checkpoint(path).get("provenance", {}).get("module")
    if name not in _TASKS:
        raise CheckpointError(f"'{path}' was not written by train.py (task: {name}); known tasks: {', '.join(_TASKS)}.")
    return _TASKS[name].load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
