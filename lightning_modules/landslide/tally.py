"""Labelled pixels counted block by block: all that the figures of an evaluation need, in memory that does not grow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RANK_BINS = 4096
"""Bins of a score for everything that only ranks. They are equally wide in log-odds, so that a rare class, whose
probabilities all lie near 0, is ranked as finely as a frequent one: neighbours in one bin differ by 0.7 % in odds."""

RELIABILITY_BINS = 15
_LOG_ODDS = 14.0  # a float32 probability cannot come much closer to 1
COUNT, PROBABILITY, RIGHT = range(3)


def or_higher(classes: Sequence[str], k: int) -> str:
    """Name of "class k or a higher one".

    >>> or_higher(["low", "medium", "high"], 1)
    'medium_or_high'
    """
    return "_or_".join(classes[k:])


def ranked_names(classes: Sequence[str]) -> list[str]:
    """Names of the scores that rank pixels: expected class, then each "k or higher", then each class in between.

    >>> ranked_names(["low", "medium", "high"])
    ['score', 'medium_or_high', 'high', 'medium']
    """
    return ["score", *(or_higher(classes, k) for k in range(1, len(classes))), *classes[1:-1]]


def positive_classes(classes: Sequence[str]) -> list[list[int]]:
    """Classes that count as positive for each of :func:`ranked_names`; none for the score itself.

    >>> positive_classes(["low", "medium", "high"])
    [[], [1, 2], [2], [1]]
    """
    count = len(classes)
    return [[], *(list(range(k, count)) for k in range(1, count)), *([k] for k in range(1, count - 1))]


def susceptibility(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Expected class over K - 1, from 0 (surely low) to 1 (surely high).

    Args:
        probability: (N, K).

    Returns:
        (N,).

    >>> susceptibility(np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])).tolist()
    [0.25, 1.0]
    """
    count = probability.shape[1]
    return probability.astype(np.float64) @ (np.arange(count) / (count - 1))


def rank_bin(score: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bin of scores between 0 and 1; a higher score never has a lower bin.

    >>> rank_bin(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 2048, 4095]
    """
    p = score.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(np.maximum(p, 0)) - np.log(np.maximum(1 - p, 0))
    position = (np.clip(odds, -_LOG_ODDS, _LOG_ODDS) / _LOG_ODDS + 1) * (RANK_BINS / 2)
    return np.minimum(position.astype(np.int64), RANK_BINS - 1)


@dataclass(frozen=True)
class Tally:
    """Counts of labelled pixels in G spatial blocks; K classes, S scores (:func:`ranked_names`).

    Attributes:
        classes: names, low to high.
        block: (G,) int64 number of each block.
        confusion: (G, K, K) int64, truth x answer.
        ranked: (G, S, K, RANK_BINS) int32, pixels of each true class in each bin of each score.
        reliability: (G, K, RELIABILITY_BINS, 3) float64, ``COUNT``, sum of ``PROBABILITY`` and number ``RIGHT``:
            first of the most probable class, then of "k or higher" for each k from 1.
    """

    classes: tuple[str, ...]
    block: NDArray[np.int64]
    confusion: NDArray[np.int64]
    ranked: NDArray[np.int32]
    reliability: NDArray[np.float64]

    @property
    def blocks(self) -> int:
        """Number of blocks that have a labelled pixel."""
        return int((self.confusion.sum((1, 2)) > 0).sum())

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(K,) labelled pixels of each class."""
        return self.confusion.sum((0, 2))

    def total(self) -> "Tally":
        """All blocks as one."""
        parts = (getattr(self, name).sum(0, keepdims=True) for name in _COUNTS)
        return Tally(self.classes, np.zeros(1, np.int64), *parts)


_COUNTS = ("confusion", "ranked", "reliability")


def tally_of(
    label: ArrayLike,
    probability: ArrayLike,
    block: ArrayLike,
    classes: Sequence[str],
    predicted: ArrayLike | None = None,
) -> Tally:
    """Counts pixels.

    Args:
        label: (N,) class from 0; pixels without a label (-1) count nowhere.
        probability: (N, K).
        block: (N,) any whole number that names the pixel's spatial block.
        classes: K names, low to high.
        predicted: (N,) answered class; None takes the most probable.

    >>> tally = tally_of([0, 1, -1], [[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]], [7, 7, 7], ["low", "high"])
    >>> tally.confusion.tolist()
    [[[1, 0], [0, 1]]]
    """
    y, p = np.asarray(label, np.int64), np.asarray(probability)
    answer = p.argmax(1) if predicted is None else np.asarray(predicted, np.int64)
    kept = y >= 0
    y, p, answer = y[kept], p[kept], answer[kept]
    names, g = np.unique(np.asarray(block)[kept], return_inverse=True)
    groups, count = len(names), len(classes)
    confusion = np.bincount((g * count + y) * count + answer, minlength=groups * count * count)
    ranked = np.stack([_histogram(g, y, score, groups, count) for score in _ranked_scores(p)], axis=1)
    above = [(p[:, k:].sum(1), y >= k) for k in range(1, count)]
    at_bins = [_reliability(g, q, right, groups) for q, right in [(p.max(1, initial=0), p.argmax(1) == y), *above]]
    matrices = confusion.reshape(groups, count, count)
    return Tally(tuple(classes), names.astype(np.int64), matrices, ranked, np.stack(at_bins, axis=1))


def _ranked_scores(p: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    count = p.shape[1]
    return [susceptibility(p), *(p[:, k:].sum(1) for k in range(1, count)), *(p[:, k] for k in range(1, count - 1))]


def _histogram(
    g: NDArray[np.int64], y: NDArray[np.int64], score: NDArray[np.floating], groups: int, count: int
) -> NDArray[np.int32]:
    cell = (g * count + y) * RANK_BINS + rank_bin(score)
    return np.bincount(cell, minlength=groups * count * RANK_BINS).astype(np.int32).reshape(groups, count, RANK_BINS)


def _reliability(
    g: NDArray[np.int64], p: NDArray[np.floating], right: NDArray[np.bool_], groups: int
) -> NDArray[np.float64]:
    cell = g * RELIABILITY_BINS + np.clip((p * RELIABILITY_BINS).astype(np.int64), 0, RELIABILITY_BINS - 1)
    sums = [np.bincount(cell, weight, groups * RELIABILITY_BINS) for weight in (np.ones(len(p)), p, right)]
    return np.stack(sums, axis=-1).reshape(groups, RELIABILITY_BINS, 3).astype(np.float64)


def merge(tallies: Sequence[Tally]) -> Tally:
    """Counts of one area's tallies; blocks with the same number are one block.

    >>> one = tally_of([0, 1], [[1.0, 0.0], [0.0, 1.0]], [0, 1], ["low", "high"])
    >>> merge([one, one]).confusion.sum((1, 2)).tolist()
    [2, 2]
    """
    block, position = np.unique(np.concatenate([t.block for t in tallies]), return_inverse=True)
    parts = []
    for name in _COUNTS:
        first = getattr(tallies[0], name)
        sums = np.zeros((len(block), *first.shape[1:]), first.dtype)
        start = 0
        for tally in tallies:  # numbers are unique within a tally, so that a plain += counts all
            sums[position[start : start + len(tally.block)]] += getattr(tally, name)
            start += len(tally.block)
        parts.append(sums)
    return Tally(tallies[0].classes, block, *parts)


def join(tallies: Sequence[Tally]) -> Tally:
    """Blocks of several areas side by side, numbered anew: blocks of different areas stay different blocks.

    >>> one = tally_of([0, 1], [[1.0, 0.0], [0.0, 1.0]], [0, 1], ["low", "high"])
    >>> join([one, one]).blocks
    4
    """
    parts = [np.concatenate([getattr(t, name) for t in tallies]) for name in _COUNTS]
    return Tally(tallies[0].classes, np.arange(len(parts[0])), *parts)
