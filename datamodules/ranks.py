"""What the processes of one run must agree on: who takes which rows, and that all have the same data."""

import platform
from collections.abc import Iterator

import numpy as np
from torch import distributed
from torch.utils.data import BatchSampler

from .errors import DataMismatchError, QuotaError


def rank_and_world() -> tuple[int, int]:
    """Of this process among those of ``torch.distributed``; (0, 1) without it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def slice_of_rank(what: str, size: int, rank: int, world: int) -> slice:
    """The part of a batch, or of one group of it, that a process takes.

    Args:
        what: the part's name, for the error.
        size: of the part, over all processes.
        rank: of this process.
        world: number of processes.

    Raises:
        QuotaError: the processes cannot share it evenly; their steps would weigh differently.

    >>> slice_of_rank("batch_size", 8, rank=1, world=4)
    slice(2, 4, None)
    """
    if size < world:
        raise QuotaError(f"{what} is {size}, fewer than the {world} processes; each process needs one.")
    if size % world:
        below, above = size // world * world, -(-size // world) * world
        raise QuotaError(f"{what} is {size}, not divisible by the {world} processes; take {below} or {above}.")
    return slice(rank * size // world, (rank + 1) * size // world)


class ShareOfRows:
    """A batch sampler for evaluation: the rows in order, each on one process, as many batches on every process.

    ``DistributedSampler`` repeats rows until all shares are equally long, and a mean counts those twice. Here shares
    differ by one row at most, and the batches of a share in size by one. The number of batches is the same everywhere,
    since the distributed forward pass waits for the other processes.

    Args:
        rows: of the data set.
        batch_size: rows of a batch on one process, at most one more.

    Raises:
        QuotaError: from ``len`` and iteration, there are fewer rows than processes.

    >>> [batch for batch in ShareOfRows(5, batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, rows: int, batch_size: int) -> None:
        self.rows, self.batch_size, self.drop_last = rows, batch_size, False

    def __len__(self) -> int:
        _, world = rank_and_world()
        if world == 1:
            return -(-self.rows // self.batch_size)
        if self.rows < world:
            raise QuotaError(f"{self.rows} rows to evaluate on, fewer than the {world} processes; use fewer processes.")
        most = -(-self.rows // world)
        return min(-(-most // self.batch_size), self.rows // world)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = rank_and_world()
        if world == 1:
            yield from BatchSampler(range(self.rows), self.batch_size, drop_last=False)
        else:
            yield from (part.tolist() for part in np.array_split(np.arange(rank, self.rows, world), len(self)))


def check_same_everywhere(where: str, key: str) -> None:
    """Compares what names the data over all processes; each raises the same error.

    Args:
        where: the data's place, for the error.
        key: of this process.

    Raises:
        DataMismatchError: names the first process that has other data than process 0, its machine and both keys.
    """
    every = [("", "")] * rank_and_world()[1]
    distributed.all_gather_object(every, (platform.node(), key))
    first, expected = every[0]
    for rank, (node, found) in enumerate(every):
        if found != expected:
            raise DataMismatchError(
                f"process {rank} on '{node}' has other data at '{where}' than process 0 on '{first}' (hash {found}, "
                f"not {expected}); copy the same data to every machine."
            )
