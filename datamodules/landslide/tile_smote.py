"""SMOTE over whole tiles: between two tiles that are rich in a rare class lies a new one.

N. V. Chawla et al., "SMOTE: Synthetic Minority Over-sampling Technique", JAIR 16 (2002),
https://doi.org/10.1613/jair.953, as imbalanced-learn has it: for the same tiles and seed the synthetic set is the same.
Neither the tiles nor the synthetic ones are ever in memory together.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ..errors import StagewiseError
from ..folders import whole_folder
from .channels import ChannelList
from .parent_tiles import ParentTiles, nearest
from .synthetic_tiles import SyntheticTiles, Tile, check_room, write_synthetic

log = logging.getLogger(__name__)


class TileSource(NamedTuple):
    """The train tiles, and nothing else: what is synthetic must not know val or test.

    Args:
        read: position -> channels and mask.
        names: of each tile, unique; the manifest names parents by them.
        counts: (N, K) labelled pixels of each class.
        channels: of the tiles.
        mean: (C,) over train pixels; distances are those of normalised channels.
        std: (C,).
        key: of the data behind ``read``: other data, another key.
    """

    read: Callable[[int], Tile]
    names: Sequence[str]
    counts: NDArray[np.int64]
    channels: ChannelList
    mean: Sequence[float]
    std: Sequence[float]
    key: str


@dataclass(frozen=True)
class TileSmote:
    """How many tiles are made, and of which.

    Args:
        rare_class: position of the class that is too rare.
        target_share: that it shall have of all labelled train pixels, with the synthetic tiles.
        rich_share: that it has of a tile's labelled pixels for the tile to be a parent.
        k: neighbours of each tile that it may be mixed with.
        seed: of the draws.

    Raises:
        StagewiseError: a share outside (0, 1), or no neighbour.

    >>> TileSmote(rare_class=1, target_share=0.2).rich(np.array([[70, 30, 0], [90, 5, 5], [0, 0, 0]])).tolist()
    [0]
    """

    rare_class: int = 1
    target_share: float = 0.075
    rich_share: float = 0.3
    k: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target_share", "rich_share"):
            if not 0 < getattr(self, name) < 1:
                raise StagewiseError(f"`{name}` must be a share between 0 and 1, got {getattr(self, name)}.")
        if self.k < 1:
            raise StagewiseError(f"`k` must be at least 1, got {self.k}.")

    def rich(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the tiles that may be parents.

        Args:
            counts: (N, K) labelled pixels of each class, none of them from soft labels.
        """
        labelled = counts.sum(1)
        return np.flatnonzero((labelled > 0) & (counts[:, self.rare_class] >= self.rich_share * labelled))

    def count(self, counts: NDArray[np.int64]) -> int:
        """Synthetic tiles with which the rare class is expected to reach its share; 0 where it has it.

        Args:
            counts: (N, K), as above.

        Raises:
            StagewiseError: fewer than k + 1 rich tiles, or tiles that are not rich enough for the share.
        """
        rich = self.rich(counts)
        if len(rich) <= self.k:
            raise StagewiseError(
                f"SMOTE with k={self.k} needs {self.k + 1} tiles with at least {self.rich_share:.0%} of class "
                f"{self.rare_class + 1} among their labelled pixels, and train has {len(rich)}; lower `rich_share` or "
                "`k`, take smaller tiles, or switch SMOTE off and leave the class to the sampler."
            )
        share = self.target_share
        missing = share * counts.sum() - counts[:, self.rare_class].sum()
        gain = counts[rich, self.rare_class].mean() - share * counts[rich].sum(1).mean()
        if missing > 0 >= gain:
            raise StagewiseError(f"`target_share` {share} is more than the rich tiles have; raise `rich_share`.")
        return max(0, int(np.ceil(missing / gain))) if missing > 0 else 0

    def make(self, source: TileSource, cache: str | Path) -> SyntheticTiles:
        """Makes the tiles, or opens those that were made of the same.

        Args:
            source: the train tiles.
            cache: the tiles lie in ``smote-KEY`` below it. It needs room for them and, until they are made, for the
                rich tiles.

        Raises:
            StagewiseError: too few rich tiles, or too little room.
        """
        count, rich = self.count(source.counts), self.rich(source.counts)
        parents = [source.names[i] for i in rich]
        normalised = [
            list(source.channels.names),
            *([float(x) for x in column] for column in (source.mean, source.std)),
        ]
        settings = {**asdict(self), "count": count, "data": _digest(source.key, parents, normalised)}
        settings["key"] = _digest(settings)
        folder = Path(cache) / f"smote-{settings['key']}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of two runs at once one makes them, the other waits
            if not folder.is_dir():
                whole_folder(folder, lambda part: _make(part, settings, source, rich))
        made = SyntheticTiles.open(folder)
        self._tell(source.counts, made, len(rich))
        return made

    def _tell(self, counts: NDArray[np.int64], made: SyntheticTiles, rich: int) -> None:
        before, after = counts.sum(0), counts.sum(0) + made.counts.sum(0)
        shares = [f"{pixels[self.rare_class] / pixels.sum():.2%}" for pixels in (before, after)]
        level = logging.INFO if len(made) else logging.WARNING
        text = (
            "SMOTE: %d synthetic tiles of %d rich ones; class %d had %s of the labelled train pixels, now %s, in '%s'"
        )
        log.log(level, text, len(made), rich, self.rare_class + 1, *shares, made.folder)


def draw(rich: int, k: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Base, rank of the neighbour and lambda of each synthetic tile, in the order that imbalanced-learn draws them.

    >>> base, rank, step = draw(rich=10, k=5, count=3, seed=0)
    >>> base.tolist(), rank.tolist(), step.shape
    ([8, 9, 0], [4, 2, 0], (3,))
    """
    random = np.random.RandomState(seed)
    place = random.randint(0, rich * k, size=count)
    return place // k, place % k, random.uniform(size=count)


def between(base: Tile, neighbour: Tile, step: float, one_hot: Sequence[int]) -> Tile:
    """The tile at the share ``step`` of the way from one to the other.

    Of two interpolated one-hots the larger entry is the nearer parent's, so that mask and land cover, taken by argmax,
    are that parent's; "ignored" counts as a class of its own. Where a channel of either parent has no data it has none
    here, and the pixel is ignored.

    Args:
        base: channels and mask.
        neighbour: of the same shape.
        step: lambda, from 0 to 1.
        one_hot: positions of the land-cover channels.

    >>> low, high = (np.full((1, 1, 2), v, np.float32) for v in (0.0, 10.0))
    >>> channels, mask = between((low, np.array([[0, -1]])), (high, np.array([[2, 2]])), 0.3, [])
    >>> channels.tolist(), mask.tolist()
    ([[[3.0, 3.0]]], [[0, -1]])
    """
    channels = (base[0] + np.float64(step) * (neighbour[0] - base[0])).astype(np.float32)
    nearer = base if step <= 0.5 else neighbour
    missing = np.isnan(channels)
    for position in one_hot:
        channels[position] = np.where(missing[position], np.nan, nearer[0][position])
    return channels, np.where(missing.any(0), -1, nearer[1])


def _make(part: Path, settings: dict[str, Any], source: TileSource, rich: NDArray[np.int64]) -> None:
    count, k, seed, key = (settings[name] for name in ("count", "k", "seed", "key"))
    shape = source.read(int(rich[0]))[0].shape
    check_room(part, len(rich) + count, shape)
    with ParentTiles(part, source.read, rich, shape) as parents:
        base, rank, step = draw(len(rich), k, count, seed)
        other = nearest(parents.blocks(source.mean, source.std), k)[base, rank] if count else base
        drawn = list(zip(base.tolist(), other.tolist(), step.tolist()))
        described = [
            {"id": f"{key}-{i:06d}", "base": source.names[rich[a]], "neighbour": source.names[rich[b]], "lambda": s}
            for i, (a, b, s) in enumerate(drawn)
        ]
        tiles = (between(parents[a], parents[b], s, source.channels.one_hot) for a, b, s in drawn)
        write_synthetic(part, settings, described, shape, tiles, source.counts.shape[1])


def _digest(*content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
