"""What the data modules of all tasks share: their loaders, on one process or several, and generated data."""

import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from torch.utils.data import DataLoader

from .ranks import ShareOfRows, check_same_everywhere, rank_and_world, slice_of_rank

log = logging.getLogger(__name__)


class TaskDataModule(L.LightningDataModule):
    """Base of the data modules.

    Attributes:
        root: folder of the data.
        loader: settings of the loaders; ``num_workers`` is one of them.
        seed: of order and augmentation.
    """

    root: Path
    loader: dict[str, Any]
    seed: int

    def make_loader(self, dataset: Any, kind: Any = DataLoader, **options: Any) -> DataLoader[Any]:
        """A loader with this data module's workers."""
        workers = int(self.loader["num_workers"])
        shared = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
        loader: DataLoader[Any] = kind(dataset, **shared, **options)
        return loader

    def shared_loader(self, dataset: Any, batch_size: int) -> DataLoader[Any]:
        """The whole data set in order, each sample on one of the processes."""
        return self.make_loader(dataset, batch_sampler=ShareOfRows(len(dataset), batch_size))

    def data_key(self) -> str:
        """Names what is trained and validated on, and how it is shown: other data, another key."""
        raise NotImplementedError

    def shares(self) -> dict[str, int]:
        """Sizes of what the processes share evenly in a train batch, by name."""
        return {"loader.batch_size": int(self.loader["batch_size"])}

    def check_processes(self) -> None:
        """Refuses to train where a batch cannot be shared or another process has other data; the end of a ``setup``.

        Raises:
            QuotaError: says which sizes would do.
            DataMismatchError: names the process and its machine.
        """
        rank, world = rank_and_world()
        if world > 1:
            for what, size in self.shares().items():
                slice_of_rank(what, size, rank, world)
            check_same_everywhere(str(self.root), self.data_key())


class GeneratedMixin(TaskDataModule):
    """Writes generated data where there is none; in front of a :class:`TaskDataModule` as a base.

    Args:
        root: of the data.
        generated: ``{root, …}`` and arguments of :meth:`write`. The data is written when ``root`` is that folder and
            holds none; any other ``root`` must exist, so a mistyped path is an error.
        options: of the data module.
    """

    def __init__(self, root: str, generated: dict[str, Any], **options: Any) -> None:
        super().__init__(root, **options)
        self.generated = dict(generated)

    @property
    def is_generated(self) -> bool:
        """Whether ``root`` is the folder of the generated data."""
        return os.path.abspath(self.generated["root"]) == os.path.abspath(self.root)

    def is_written(self) -> bool:
        """Whether ``root`` holds the data."""
        raise NotImplementedError

    def write(self, **options: Any) -> None:
        """Writes the data to ``root``."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Writes the generated data once, then goes on as with real data."""
        if self.is_generated:
            folder = Path(os.path.abspath(self.root))
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):  # of two runs at once one writes, the other waits
                if not self.is_written():
                    log.info("writing generated data to %s", self.root)
                    self.write(**{key: value for key, value in self.generated.items() if key != "root"})
        super().prepare_data()
