"""Balanced batches: a fixed number of samples of each group in every batch."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, Sampler

from .errors import QuotaError
from .ranks import rank_and_world, slice_of_rank

Rows = NDArray[np.int32]


class GroupBalancedBatchSampler(BatchSampler):
    """Yields batches with ``quotas[g]`` samples of group ``g``, reshuffled every epoch.

    The draws are a pure function of (seed, epoch, group), so an epoch can be replayed from any batch. Under
    ``torch.distributed`` each rank takes its slice of every group of the global batch, so the mix holds on each.

    Args:
        groups: (N,) group of each sample.
        quotas: samples of each group in a global batch.
        batches_per_epoch: length of an epoch.
        exhausted: ``"cycle"`` goes through a group without replacement, on from one epoch to the next, and
            reshuffles when it is used up; ``"replace"`` draws with replacement.
        seed: of the run.
        keyed: yields ``(index, draw)`` pairs, where ``draw`` numbers the samples of the whole run, so that a
            dataset can derive its augmentation from it.

    Raises:
        QuotaError: a group without rows, an unknown group, a quota below 1, or one that a rank would miss.

    >>> sampler = GroupBalancedBatchSampler(np.array([0] * 90 + [1] * 10), {0: 2, 1: 2}, batches_per_epoch=3)
    >>> [sorted(i >= 90 for i in batch) for batch in sampler] == [[False, False, True, True]] * 3
    True
    """

    def __init__(
        self,
        groups: NDArray[Any] | Sequence[Any],
        quotas: Mapping[Any, int],
        batches_per_epoch: int,
        exhausted: str = "cycle",
        seed: int = 0,
        keyed: bool = False,
        sampler: Sampler[int] | None = None,  # Lightning passes one when it re-creates the sampler under DDP
    ) -> None:
        if exhausted not in ("cycle", "replace"):
            raise QuotaError(f"`exhausted` must be 'cycle' or 'replace', got '{exhausted}'.")
        if batches_per_epoch < 1:
            raise QuotaError(f"`batches_per_epoch` must be at least 1, got {batches_per_epoch}.")
        if not quotas:
            raise QuotaError("`quotas` is empty; give the samples of at least one group.")
        self.groups, self.quotas, self.batches_per_epoch = groups, dict(quotas), batches_per_epoch
        self.exhausted, self.seed, self.keyed = exhausted, seed, keyed
        self.batch_size, self.drop_last = sum(self.quotas.values()), True
        self.epoch = 0
        labels = np.asarray(groups)
        # half the memory of numpy's own
        self._rows = {group: np.flatnonzero(labels == group).astype(np.int32) for group in self.quotas}
        self._check(labels)
        self._let_lightning_copy()
        digest = hashlib.blake2b(digest_size=8)
        for group, rows in self._rows.items():
            digest.update(f"{group}\0".encode())
            digest.update(rows.astype(np.int64).data)
        self._groups_key = digest.hexdigest()

    def _let_lightning_copy(self, *more: str) -> None:
        # what Lightning notes of a batch sampler that is made inside a `*_dataloader` hook: with it, it can make the
        # loader anew under DDP; one that was made elsewhere it would call with other arguments
        names = ("groups", "quotas", "batches_per_epoch", "exhausted", "seed", "keyed", *more)
        saved = {"args": (), "kwargs": {name: getattr(self, name) for name in names}, "arg_names": ()}
        for key, value in {**saved, "default_kwargs": {"sampler": None}}.items():
            setattr(self, f"__pl_saved_{key}", value)

    def _check(self, labels: NDArray[Any]) -> None:
        for group, quota in self.quotas.items():
            if quota < 1:
                raise QuotaError(f"the quota of '{group}' is {quota}; give at least 1 or leave the group out.")
            if not len(self._rows[group]):
                known = np.unique(labels)[:20].tolist()
                raise QuotaError(f"the quota of '{group}' is {quota}, but no row has that group; groups: {known}.")

    @property  # type: ignore[override]
    def sampler(self) -> "GroupBalancedBatchSampler":
        """Itself: Lightning calls ``set_epoch`` on ``batch_sampler.sampler`` only."""
        return self

    @sampler.setter
    def sampler(self, _: Any) -> None:
        """Torch's data loader never sets it; a distributed wrapper must not replace the balanced draw."""

    @classmethod
    def by(
        cls,
        source: Any,
        key: str | Callable[[Any], Any],
        quotas: Mapping[Any, int],
        batches_per_epoch: int,
        **options: Any,
    ) -> "GroupBalancedBatchSampler":
        """The same with the groups read off a source, none of whose pictures is opened.

        Args:
            source: a table (``DataFrame``, pyarrow table, dict of arrays), or anything that iterates over its rows.
            key: name of the table's column, or row -> group.
            quotas: of each group, as above; so are the others.
            batches_per_epoch: length of an epoch.
            **options: ``exhausted``, ``seed``, ``keyed``.

        Raises:
            QuotaError: no such column.

        >>> rows = [{"place": "a"}] * 9 + [{"place": "b"}]
        >>> sampler = GroupBalancedBatchSampler.by(rows, lambda row: row["place"], {"a": 1, "b": 1}, 3)
        >>> sampler.repeats_per_epoch()["b"]
        3.0
        """
        return cls(groups_of(source, key), quotas, batches_per_epoch, **options)

    def fingerprint(self) -> dict[str, Any]:
        """What a resume has to find again: the rows' groups, the quotas, the draw."""
        return {
            "groups": self._groups_key,
            "quotas": {str(group): int(quota) for group, quota in self.quotas.items()},
            "exhausted": self.exhausted,
            "draw_seed": int(self.seed),
        }

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches_per_epoch

    def repeats_per_epoch(self) -> dict[Any, float]:
        """How often an epoch shows each row of a group, on average."""
        return {g: q * self.batches_per_epoch / len(self._rows[g]) for g, q in self.quotas.items()}

    def _draw(self, position: int, group: Any) -> Rows:
        """(batches, quota) row indices of one group for this epoch, counter-based (Philox)."""
        wanted = self.batches_per_epoch * self.quotas[group]
        draw = self._replacing if self.exhausted == "replace" else self._cycling
        return draw(position, group, wanted).reshape(self.batches_per_epoch, -1)

    def _replacing(self, position: int, group: Any, wanted: int) -> Rows:
        rows = self._rows[group]
        return rows[self._generator(position, self.epoch).integers(len(rows), size=wanted)]

    def _cycling(self, position: int, group: Any, wanted: int) -> Rows:
        cycle, start = divmod(self.epoch * wanted, len(self._rows[group]))
        last = (self.epoch * wanted + wanted - 1) // len(self._rows[group])
        cycles = [self._cycle(position, group, number) for number in range(cycle, last + 1)]
        return np.concatenate(cycles)[start : start + wanted]

    def _cycle(self, position: int, group: Any, number: int) -> Rows:
        """Every row of a group once, in the order of its ``number``-th cycle."""
        return self._generator(position, number).permutation(self._rows[group])

    def _generator(self, position: int, number: int) -> np.random.Generator:
        """The random numbers of one group in one epoch or cycle."""
        return np.random.Generator(np.random.Philox(key=[self.seed, (number << 20) + position]))

    def __iter__(self) -> Iterator[list[Any]]:
        rank, world = rank_and_world()
        share = [slice_of_rank(f"the quota of '{group}'", quota, rank, world) for group, quota in self.quotas.items()]
        table = np.concatenate([self._draw(p, g)[:, s] for p, (g, s) in enumerate(zip(self.quotas, share))], 1)
        first = self.epoch * self.batches_per_epoch * self.batch_size
        places = np.concatenate([np.arange(s.start, s.stop) + o for s, o in zip(share, self._offsets())])
        for number, batch in enumerate(table):
            if self.keyed:
                yield list(zip(batch.tolist(), (first + number * self.batch_size + places).tolist()))
            else:
                yield batch.tolist()

    def _offsets(self) -> list[int]:
        """Where each group starts in the global batch."""
        return [0, *np.cumsum(list(self.quotas.values()))[:-1].tolist()]


def groups_of(source: Any, key: str | Callable[[Any], Any]) -> NDArray[Any]:
    """(N,) the group of each row.

    >>> groups_of({"label": [0, 1, 1]}, "label").tolist()
    [0, 1, 1]
    """
    if callable(key):
        return np.array([key(row) for row in source])
    try:
        return np.asarray(source[key])
    except (KeyError, IndexError, TypeError) as error:
        raise QuotaError(
            f"there is no column {key!r} to group by ({type(error).__name__}); name one, or a callable."
        ) from error
