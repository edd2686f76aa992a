"""A data loader that knows its position, so that a run goes on with the very batch it would have seen."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler, get_worker_info

from .errors import DataMismatchError, StagewiseError
from .ranks import rank_and_world, slice_of_rank


class ResumableDataLoader(DataLoader[Any]):
    """A ``DataLoader`` for training with a position: ``state_dict`` says it, ``load_state_dict`` goes on from there.

    The order of an epoch is a function of (seed, epoch) whatever the sampler, and what samples draw from Python's,
    NumPy's and torch's generators is one of (seed, rank, epoch, batch), with any number of workers. Batches that were
    seen are skipped as indices: nothing of them is loaded. Lightning sets the epoch. Under DDP each process takes its
    part of every batch, so ``batch_size`` is that of all processes; where Lightning puts a distributed sampler around
    this one's, it is that of each.

    Args:
        dataset: map-style.
        batch_size: as of ``DataLoader``; so are ``shuffle``, ``sampler``, ``batch_sampler`` and ``drop_last``.
        seed: of the order and of the samples' random numbers.
        data_key: names the data, such as a hash of its table; a resume with another one is refused.
        **options: of ``DataLoader``, ``num_workers`` and so on.

    Raises:
        StagewiseError: an iterable data set, no batch size, a batch sampler that no ``set_epoch`` reaches, or several
            processes that cannot share the batches evenly.
        DataMismatchError: from ``load_state_dict``, with each difference.

    >>> def made():
    ...     return ResumableDataLoader(range(6), batch_size=2, shuffle=True, seed=3)
    >>> loader, again = made(), made()
    >>> batches = iter(loader)
    >>> first = next(batches)
    >>> again.load_state_dict(loader.state_dict())
    >>> [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]
    True
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        drop_last: bool = False,
        seed: int = 0,
        data_key: str = "",
        **options: Any,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise StagewiseError("ResumableDataLoader needs a map-style dataset; an iterable one has no position.")
        if batch_sampler is not None:
            self._order: Any = getattr(batch_sampler, "sampler", None)
            order = {"batch_sampler": batch_sampler}
        else:
            chosen = sampler or (RandomSampler(dataset) if shuffle else SequentialSampler(dataset))
            self._order = chosen if hasattr(chosen, "set_epoch") else ReplayableSampler(chosen, seed)
            order = {"batch_size": batch_size, "sampler": self._order, "drop_last": drop_last}
        if not hasattr(self._order, "set_epoch") or (batch_sampler is None and batch_size is None):
            raise StagewiseError("ResumableDataLoader needs `batch_size`, or a `batch_sampler` with sampler.set_epoch.")
        super().__init__(dataset, **order, **options)
        self.seed, self.data_key = seed, data_key
        self._start: tuple[int, int] | None = None
        self._epoch = self._batch = 0
        options = {"generator": torch.Generator(), **options}  # or its start would draw from the run's generator
        seeded: Any = _SeededDataset(dataset)
        self._inner: DataLoader[Any] = DataLoader(seeded, batch_sampler=_KeyedBatches(self), **options)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, number of its batches that were handed out, and what the data is; plain values."""
        ended = self._batch >= len(self)
        return {"epoch": self._epoch + ended, "batch": 0 if ended else self._batch, "data": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass goes on from there, if it is one over the same epoch."""
        check_same_data(state["data"], self.fingerprint())
        self._epoch, self._batch = self._start = state["epoch"], state["batch"]
        self._order.set_epoch(self._epoch)

    def fingerprint(self) -> dict[str, Any]:
        """What has to be the same on a resume, as plain values."""
        batches: Any = self.batch_sampler
        dataset: Any = self.dataset
        size = {"samples": len(dataset), "batches": len(self), "batch_size": batches.batch_size}
        own = getattr(batches, "fingerprint", dict)
        return {**size, "seed": self.seed, "data_key": self.data_key, **own()}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: Lightning makes the iterator of a resumed run before it sets the epoch
        epoch, start = self._order.epoch, self._start
        self._start, self._epoch, self._batch = None, epoch, start[1] if start and start[0] == epoch else 0
        for batch in self._inner:
            self._batch += 1  # before it is handed out: the last one may never be asked to go on
            yield batch

    def remaining(self) -> Iterator[Any]:
        """The batches of indices from the present position on, each with the key of its random numbers."""
        epoch, (rank, world) = self._epoch, rank_and_world()
        batches: Any = self.batch_sampler
        own = slice(None)
        if world > 1 and isinstance(self._order, ReplayableSampler):  # all processes draw the same order
            if not batches.drop_last:
                raise StagewiseError(f"{world} processes cannot share an incomplete last batch; pass drop_last=True.")
            own = slice_of_rank("batch_size", batches.batch_size, rank, world)
        for number, indices in enumerate(islice(batches, self._batch, None), self._batch):
            yield _Batch(indices[own], (self.seed, rank, epoch, number))


class ReplayableSampler(Sampler[int]):
    """Any sampler, as a function of (seed, epoch): it draws its whole epoch from generators seeded for it.

    Args:
        sampler: such as ``RandomSampler`` or ``WeightedRandomSampler``.
        seed: of the run.

    >>> sampler = ReplayableSampler(RandomSampler(range(5)), seed=0)
    >>> first = list(sampler)
    >>> sampler.set_epoch(1)
    >>> first == list(sampler), sorted(first)
    (False, [0, 1, 2, 3, 4])
    """

    def __init__(self, sampler: Any, seed: int = 0) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next pass draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        with isolate_rng(include_cuda=False):
            _seed_generators((self.seed, "order", self.epoch))
            order = list(self.sampler)
        return iter(order)


class _Batch(list[Any]):
    """Indices and the key of their random numbers, which a worker gets with them."""

    def __init__(self, indices: Any, key: tuple[Any, ...]) -> None:
        super().__init__(indices)
        self.key = key


class _KeyedBatches:
    """What is left of the present epoch; a batch sampler for torch's loader."""

    def __init__(self, loader: ResumableDataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return self.loader.remaining()

    def __len__(self) -> int:
        return len(self.loader)


class _SeededDataset:
    """Fetches a batch with generators seeded for it, and leaves those of the main process as they were."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._whole = getattr(dataset, "__getitems__", None)

    def __getitems__(self, batch: _Batch) -> Any:
        with nullcontext() if get_worker_info() else isolate_rng(include_cuda=False):
            _seed_generators(batch.key)
            return self._whole(list(batch)) if self._whole else [self.dataset[index] for index in batch]


def check_same_data(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Refuses to go on with other data.

    Raises:
        DataMismatchError: names what differs and both values.

    >>> check_same_data({"samples": 3}, {"samples": 3})
    """
    differs = [key for key in {**saved, **present} if saved.get(key) != present.get(key)]
    if differs:
        lines = [f"  {key}: {saved.get(key)} in the checkpoint, {present.get(key)} here" for key in differs]
        raise DataMismatchError(
            "The checkpoint was made with other data; resume with the same, or start anew:\n" + "\n".join(lines)
        )


def _seed_generators(key: tuple[Any, ...]) -> None:
    number = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
