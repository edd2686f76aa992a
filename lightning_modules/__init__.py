"""Tasks: networks, losses, metrics."""

from ..datamodules.errors import CheckpointError
from .geolocation.module import GeolocationModule
from .metrics import Quantile
from .optim import GroupedOptimizer
from .start import read_checkpoint

__all__ = ["GeolocationModule", "GroupedOptimizer", "Quantile", "load_module"]

_TASKS = {task.__name__: task for task in (GeolocationModule,)}


def load_module(path: str) -> GeolocationModule:
    """The module of any checkpoint that train.py wrote, on the CPU and in eval mode.

    Raises:
        CheckpointError: no such file, damaged, or of a task that is not stagewise's.
    """
    name = read_checkpoint(path).get("provenance", {}).get("module")
    if name not in _TASKS:
        raise CheckpointError(f"'{path}' was not written by train.py (task: {name}); known tasks: {', '.join(_TASKS)}.")
    return _TASKS[name].load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
