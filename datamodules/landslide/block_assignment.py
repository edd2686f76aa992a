"""Which split each block of labelled cells goes to, so that every split gets its share of every class."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

SPLITS = ("train", "val", "calibration", "test")
"""A later one comes first where two are too near to each other."""
TRAIN, TEST, BUFFER = 0, 3, 255
TRIES_PER_BLOCK, MOST_TRIES, MOST_CELLS = 20, 600, 20_000_000  # of the search, whose time stays at some seconds

Cells = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Blocks:
    """Labelled cells, gathered into blocks that go to a split as a whole.

    Args:
        cells: area -> (R,C,K) labelled pixels of each class in each cell.
        number: area -> (R,C) number of each labelled cell's block, -1 where nothing is labelled.
        counts: (B,K) labelled pixels of each class in each block.
    """

    cells: Cells
    number: Cells
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.counts)

    def codes(self, split: NDArray[np.uint8], reach: int) -> dict[str, NDArray[np.uint8]]:
        """Area -> (R,C) code of each cell under a (B,) split of the blocks, the buffer taken out."""
        return {area: keep_apart(_spread(split, number), reach) for area, number in self.number.items()}


def make_blocks(cells: Cells, side: int, part: Cells | None = None) -> Blocks:
    """Squares of ``side`` x ``side`` cells, as far as they hold labels.

    Args:
        cells: area -> (R,C,K) labelled pixels of each class in each cell.
        side: of a block, in cells.
        part: area -> (R,C) number from 0; no block holds cells of two parts.

    >>> blocks = make_blocks({"a": np.ones((4, 6, 2), int)}, side=3)
    >>> len(blocks), blocks.counts.tolist()
    (4, [[9, 9], [9, 9], [3, 3], [3, 3]])
    """
    numbers: Cells = {}
    counts, known = [], 0
    for area, cell in cells.items():
        row, column = np.indices(cell.shape[:2]) // side
        key = (row * cell.shape[1] + column) + (part[area] * cell[..., 0].size if part else 0)
        labelled = cell.any(axis=2)
        keys, inverse = np.unique(key[labelled], return_inverse=True)
        numbers[area] = np.full(labelled.shape, -1)
        numbers[area][labelled] = known + inverse
        counts.append(_sums(inverse, cell[labelled], len(keys)))
        known += len(keys)
    return Blocks(cells, numbers, np.concatenate(counts))


def keep_apart(codes: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    """Takes out of each split the cells within ``reach`` cells of a later one, in rows or columns (Chebyshev).

    >>> keep_apart(np.array([[0, 0, 0, 3, 1, 1]], np.uint8), reach=1).tolist()
    [[0, 0, 255, 3, 255, 1]]
    """
    kept = codes.copy()
    for code in range(TEST - 1, TRAIN - 1, -1):
        later = (kept > code) & (kept != BUFFER)
        near = maximum_filter(later, 2 * reach + 1, mode="constant", cval=0)
        kept[(kept == code) & near] = BUFFER
    return kept


def assign(
    blocks: Blocks, shares: NDArray[np.float64], test: NDArray[np.bool_], reach: int, seed: int
) -> NDArray[np.uint8]:
    """(B,) split of each block.

    Starts with the greedy assignment and betters it by moves and swaps of blocks, counting only labelled pixels
    outside the buffer: that balances the classes and favours splits that lie together, which lose little.

    Args:
        blocks: to assign.
        shares: (4,) of the labelled pixels that each split should get; with a given test, of the others.
        test: (B,) blocks that are the test in any case; where there is one, no other block is.
        reach: of the buffer in cells.
        seed: of ties and moves.
    """
    rng, free = np.random.default_rng(seed), np.flatnonzero(~test)
    shares = np.where(np.arange(len(SPLITS)) == TEST, 0, shares) if test.any() else shares
    wanted = np.outer(shares / shares.sum(), blocks.counts[free].sum(axis=0))
    split = np.full(len(blocks), TEST, np.uint8)
    split[free] = greedy(blocks.counts[free], wanted, rng)
    kept = _Kept(blocks, reach)
    used = np.flatnonzero(shares)

    def score(trial: NDArray[np.uint8]) -> float:
        return imbalance(kept(trial)[used], wanted[used])

    cells = sum(number.size for number in blocks.number.values())
    tries = min(TRIES_PER_BLOCK * len(free), MOST_TRIES, MOST_CELLS // cells)
    return improve(split, free, used.astype(np.uint8), score, tries, rng)


def assign_folds(blocks: Blocks, folds: int, seed: int) -> NDArray[np.int64]:
    """(B,) fold of each block, balanced by class; the same whichever fold is asked for.

    >>> blocks = make_blocks({"a": np.ones((4, 4, 2), int)}, side=1)
    >>> np.bincount(assign_folds(blocks, folds=4, seed=0)).tolist()
    [4, 4, 4, 4]
    """
    rng, counts = np.random.default_rng(seed), blocks.counts
    wanted = np.outer(np.full(folds, 1 / folds), counts.sum(axis=0))
    every, choices = np.arange(len(blocks)), np.arange(folds, dtype=np.uint8)

    def score(fold: NDArray[np.uint8]) -> float:
        return imbalance(_sums(fold, counts, folds), wanted)

    return improve(greedy(counts, wanted, rng), every, choices, score, MOST_TRIES, rng).astype(np.int64)


def greedy(counts: NDArray[np.int64], wanted: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(B,) where the next richest block of the rarest class goes to the split that lacks most of that class.

    After Sechidis et al. 2011, "On the Stratification of Multi-label Data".

    Args:
        counts: (B,K) pixels of each class in each block.
        wanted: (S,K) pixels of each class that each split should get; a row of zeros gets no block.
        rng: breaks ties.
    """
    lacking = np.where(wanted.any(axis=1, keepdims=True), wanted, -np.inf)
    shuffled, split = rng.permutation(len(counts)), np.full(len(counts), BUFFER, np.uint8)
    for k in np.argsort(counts.sum(axis=0), kind="stable"):
        for block in shuffled[np.argsort(-counts[shuffled, k], kind="stable")]:
            if split[block] == BUFFER and counts[block, k]:
                split[block] = rng.choice(np.flatnonzero(lacking[:, k] == lacking[:, k].max()))
                lacking[split[block]] -= counts[block]
    return split


def imbalance(has: NDArray[np.int64], wanted: NDArray[np.float64]) -> float:
    """Mean squared relative deviation of (S,K) pixels from the wanted ones, and 1 for each class that a split lacks.

    >>> imbalance(np.array([[60, 5], [20, 5]]), np.array([[40, 5], [40, 5]]))
    0.125
    >>> imbalance(np.array([[40, 0], [40, 5]]), np.array([[40, 5], [40, 5]]))
    1.25
    """
    there = wanted > 0
    return float(np.mean((has[there] / wanted[there] - 1) ** 2) + np.sum(has[there] == 0))


def improve(
    split: NDArray[np.uint8],
    free: NDArray[np.int64],
    choices: NDArray[np.uint8],
    score: Callable[[NDArray[np.uint8]], float],
    tries: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Random moves of a free block to another split and swaps of two, kept when they lower the score."""
    best = score(split)
    for _ in range(tries):
        trial, (one, other) = split.copy(), rng.choice(free, 2)
        if rng.random() < 0.5:
            trial[one] = rng.choice(choices)
        else:
            trial[one], trial[other] = split[other], split[one]
        value = best if np.array_equal(trial, split) else score(trial)
        if value < best:
            split, best = trial, value
    return split


class _Kept:
    """(4,K) labelled pixels of each split outside the buffer; an area whose blocks stay is not counted anew."""

    def __init__(self, blocks: Blocks, reach: int) -> None:
        self.blocks, self.reach = blocks, reach
        self.own = {area: np.unique(number[number >= 0]) for area, number in blocks.number.items()}
        self.known: dict[tuple[str, bytes], NDArray[np.int64]] = {}

    def __call__(self, split: NDArray[np.uint8]) -> NDArray[np.int64]:
        total = np.zeros((len(SPLITS), self.blocks.counts.shape[1]), np.int64)
        for area, own in self.own.items():
            key = (area, split[own].tobytes())
            if key not in self.known:
                codes = keep_apart(_spread(split, self.blocks.number[area]), self.reach)
                self.known[key] = count_codes(codes, self.blocks.cells[area])
            total += self.known[key]
        return total


def count_codes(codes: NDArray[np.uint8], cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """(4,K) labelled pixels of each class in each split of an area.

    >>> count_codes(np.array([[0, 3, 255]], np.uint8), np.array([[[1, 2], [3, 4], [5, 6]]])).tolist()
    [[1, 2], [0, 0], [0, 0], [3, 4]]
    """
    kept = codes != BUFFER
    return _sums(codes[kept], cells[kept], len(SPLITS))


def _sums(group: NDArray[np.integer], values: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    columns = [np.bincount(group, values[:, k], groups) for k in range(values.shape[1])]
    return np.stack(columns, axis=1).astype(np.int64)


def _spread(split: NDArray[np.uint8], number: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.where(number >= 0, split[number], np.uint8(BUFFER))
