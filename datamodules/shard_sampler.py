"""Balanced batches of rows that lie in shards, of which only a few are read at a time."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from .errors import QuotaError
from .samplers import GroupBalancedBatchSampler, Rows


class ShardWindowBatchSampler(GroupBalancedBatchSampler):
    """The same quotas, cycles, keys and ranks; each group is drawn from ``window`` of its shards at a time.

    A cycle through a group shuffles its shards, takes them ``window`` at a time and shuffles the rows of those. So the
    order is still a pure function of (seed, epoch, group), and a reader needs about two windows of each group.

    Args:
        groups: as of :class:`GroupBalancedBatchSampler`; so are the others that are not named here.
        quotas: of each group.
        batches_per_epoch: length of an epoch.
        exhausted: ``"replace"`` draws as many rows from each window as it holds, with replacement.
        seed: of the run.
        keyed: yields ``(index, draw)`` pairs.
        shards: (N,) shard of each row.
        window: shards of a group that are drawn from at a time.
        strata: (N,) rows of a group that have windows of their own; each keeps its share of the group all along.

    Raises:
        QuotaError: also for a window below 1.

    >>> shards = np.arange(40) // 10  # two shards of each group
    >>> sampler = ShardWindowBatchSampler(np.arange(40) // 20, {0: 2, 1: 2}, 5, shards=shards, window=1)
    >>> [sorted({int(shards[row]) for row in batch}) for batch in sampler]
    [[0, 3], [0, 3], [0, 3], [0, 3], [0, 3]]
    """

    def __init__(
        self,
        groups: NDArray[Any] | Sequence[Any],
        quotas: Mapping[Any, int],
        batches_per_epoch: int,
        exhausted: str = "cycle",
        seed: int = 0,
        keyed: bool = False,
        sampler: Sampler[int] | None = None,
        *,
        shards: NDArray[Any],
        window: int,
        strata: NDArray[Any] | None = None,
    ) -> None:
        if window < 1:
            raise QuotaError(f"`window` must be at least 1 shard, got {window}.")
        super().__init__(groups, quotas, batches_per_epoch, exhausted, seed, keyed)
        self.shards, self.window, self.strata = shards, window, strata
        self._let_lightning_copy("shards", "window", "strata")
        self._shards_key = hashlib.blake2b(np.ascontiguousarray(shards, np.int64).data, digest_size=8).hexdigest()
        self._pieces = {group: self._by_stratum(rows) for group, rows in self._rows.items()}

    def _by_stratum(self, rows: Rows) -> list[list[Rows]]:
        """The rows of a group: for each stratum, an array for each of its shards."""
        labels = np.zeros(len(rows), np.int64) if self.strata is None else self.strata[rows]
        return [_by_shard(rows[labels == label], self.shards) for label in np.unique(labels)]

    def fingerprint(self) -> dict[str, Any]:
        """Also the window and which row lies in which shard."""
        return {**super().fingerprint(), "window": self.window, "shards": self._shards_key}

    def most_shards(self) -> int:
        """Shards that are needed at a time: two windows of each stratum, for one begins before the other is over."""
        strata = [pieces for group in self._pieces.values() for pieces in group]
        return sum(min(2 * self.window, len(pieces)) for pieces in strata)

    def _replacing(self, position: int, group: Any, wanted: int) -> Rows:
        return self._cycling(position, group, wanted)

    def _cycle(self, position: int, group: Any, number: int) -> Rows:
        generator = self._generator(position, number)
        streams = [self._stream(pieces, generator) for pieces in self._pieces[group]]
        if len(streams) == 1:
            return streams[0]
        when = [(np.arange(len(rows)) + generator.random(len(rows))) / len(rows) for rows in streams]
        return np.concatenate(streams)[np.argsort(np.concatenate(when), kind="stable")]

    def _stream(self, pieces: list[Rows], generator: np.random.Generator) -> Rows:
        """As many rows as the shards hold, window after window."""
        order = generator.permutation(len(pieces))
        windows = [order[start : start + self.window] for start in range(0, len(order), self.window)]
        return np.concatenate([self._mixed(np.concatenate([pieces[i] for i in few]), generator) for few in windows])

    def _mixed(self, rows: Rows, generator: np.random.Generator) -> Rows:
        if self.exhausted == "replace":
            return rows[generator.integers(len(rows), size=len(rows))]
        return generator.permutation(rows)


def _by_shard(rows: Rows, shards: NDArray[Any]) -> list[Rows]:
    rows = rows[np.argsort(shards[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(shards[rows])) + 1)
