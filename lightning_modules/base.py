"""What the Lightning modules of all tasks share."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from ..datamodules.errors import StagewiseError

EACH_STEP: dict[str, Any] = {"on_step": True, "on_epoch": True, "prog_bar": True, "sync_dist": True}
"""How a training loss is logged: over all processes, at each step and as the mean of the epoch."""


class TaskModule(L.LightningModule):
    """Base of the modules.

    Attributes:
        optimizer: a :class:`GroupedOptimizer`; not needed for inference.
    """

    optimizer: Any

    @property
    def data(self) -> Any:
        """The data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """What the :class:`GroupedOptimizer` makes of this module; nothing where there is no parameter."""
        if self.optimizer is None:
            raise StagewiseError("the module has no optimizer; pass optimizer=GroupedOptimizer(...).")
        return self.optimizer(self) if any(True for _ in self.parameters()) else None

    def log_figures(self, prefix: str, found: Mapping[str, Any]) -> None:
        """Logs figures of an epoch, numbers that every process has of all samples, as ``prefix/name``."""
        values = {f"{prefix}/{name}": torch.as_tensor(value, dtype=torch.float32) for name, value in found.items()}
        self.log_dict(values, sync_dist=True)  # their mean is what each has, and Lightning does not warn
