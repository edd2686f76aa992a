"""Draws tiles so that a rare class has its target share of the labelled pixels, and changes the draw no further."""

import logging

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import WeightedRandomSampler

from ..errors import QuotaError

STEPS = 100  # of a bisection: to the last bit of a float64
STEEPEST = 1e6

log = logging.getLogger(__name__)


def rare_class_sampler(
    counts: NDArray[np.int64], rare_class: int, target_share: float, draws: int | None = None, max_repeats: float = 8.0
) -> WeightedRandomSampler:
    """A sampler of tiles, with replacement; ``ResumableDataLoader`` makes it a function of seed and epoch.

    Args:
        counts: (N,K) labelled pixels of each class in each tile; hard ones: soft labels move no weight.
        rare_class: position of the class.
        target_share: that it shall have of the labelled pixels of an epoch, in expectation.
        draws: tiles of an epoch; None is N.
        max_repeats: how often a tile may be expected in an epoch.

    Raises:
        QuotaError: see :func:`tile_weights`.

    >>> sampler = rare_class_sampler(np.array([[90, 10], [100, 0], [100, 0], [100, 0]]), 1, target_share=0.05)
    >>> [round(float(weight), 2) for weight in sampler.weights]
    [0.5, 0.17, 0.17, 0.17]
    """
    size = draws or len(counts)
    weights = tile_weights(counts, rare_class, target_share, size, max_repeats)
    uniform = expected_shares(counts, np.full(len(counts), 1 / len(counts)))
    drawn = -np.expm1(size * np.log1p(-np.minimum(weights, 1 - 1e-12))).sum()
    log.info(
        "Sampler: class %d has %.2f%% of the labelled pixels, %.2f%% expected in an epoch of %d draws (all classes: "
        "%s); a tile is expected %.1f times at most (cap %g), %.0f of %d tiles at least once.",
        rare_class + 1,
        100 * uniform[rare_class],
        100 * expected_shares(counts, weights)[rare_class],
        size,
        ", ".join(f"{share:.2%}" for share in expected_shares(counts, weights)),
        size * weights.max(),
        max_repeats,
        drawn,
        len(counts),
    )
    return WeightedRandomSampler(weights.tolist(), size)


def expected_shares(counts: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) share of each class in the labelled pixels of many tiles drawn with (N,) weights.

    >>> expected_shares(np.array([[30, 10], [60, 0]]), np.array([0.5, 0.5])).tolist()
    [0.9, 0.1]
    """
    pixels = weights @ counts
    return np.asarray(pixels / pixels.sum())


def tile_weights(
    counts: NDArray[np.int64], rare_class: int, target_share: float, draws: int, max_repeats: float
) -> NDArray[np.float64]:
    """(N,) probability of each tile.

    Of all draws with the target share and no tile expected more than ``max_repeats`` times, the one nearest to uniform
    (least Kullback-Leibler divergence): ``min(cap, c exp(slope * gain))`` with ``gain`` the tile's pixels of the class
    beyond the target share. One number, the slope, is found by bisection. A class that has its share is left alone.

    Args:
        counts: (N,K) labelled pixels of each class, at least one a tile.
        rare_class: position of the class.
        target_share: of the labelled pixels, above 0 and below 1.
        draws: tiles of an epoch.
        max_repeats: cap on how often a tile is expected in an epoch.

    Raises:
        QuotaError: arguments that make no sense, or a target beyond what is reachable; it names the most that is.
    """
    tiles, cap = len(counts), max_repeats / draws
    if not 0 < target_share < 1:
        raise QuotaError(f"`target_share` must be a share between 0 and 1, got {target_share}; 7.5 % is 0.075.")
    if cap * tiles < 1:
        raise QuotaError(
            f"{tiles} tiles x `max_repeats` {max_repeats:g} are fewer than {draws} `draws`; raise the cap."
        )
    most = reachable_share(counts, rare_class, cap)
    if target_share > most:
        raise QuotaError(
            f"`target_share` {target_share:.2%} of class {rare_class + 1} cannot be reached: {most:.2%} is the most "
            f"with `max_repeats` {max_repeats:g} on {tiles} tiles; lower the target, raise the cap, or add tiles."
        )
    gain = counts[:, rare_class] - target_share * counts.sum(axis=1)
    gain = gain / (np.abs(gain).max() or 1)
    low, high = 0.0, 1.0
    while capped(gain, high, cap) @ gain < 0 and high < STEEPEST:
        high *= 2
    for _ in range(STEPS if capped(gain, 0.0, cap) @ gain < 0 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if capped(gain, middle, cap) @ gain < 0 else (low, middle)
    return capped(gain, low, cap)


def capped(gain: NDArray[np.float64], slope: float, cap: float) -> NDArray[np.float64]:
    """Probabilities ``min(cap, c exp(slope * gain))`` that sum to 1.

    >>> capped(np.array([1.0, 0.0, 0.0]), slope=3.0, cap=0.5).round(9).tolist()
    [0.5, 0.25, 0.25]
    """
    order = np.argsort(-gain, kind="stable")
    log_weight = slope * (gain[order] - gain[order[0]])
    log_rest = np.logaddexp.accumulate(log_weight[::-1])[::-1]  # of this one and all behind it
    left = np.maximum(1 - cap * np.arange(len(gain)), 0)  # for the others, when so many are at the cap
    share = left * np.exp(log_weight - log_rest)  # of the first of the others: the largest
    at_cap = int(np.argmax(share <= cap * (1 + 1e-12)))
    probability = np.empty(len(gain))
    probability[order] = left[at_cap] * np.exp(np.minimum(log_weight - log_rest[at_cap], 0))
    probability[order[:at_cap]] = cap
    return probability / probability.sum()


def reachable_share(counts: NDArray[np.int64], rare_class: int, cap: float) -> float:
    """The largest expected share of a class when no tile is likelier than ``cap`` (Dinkelbach's iteration).

    >>> reachable_share(np.array([[50, 50], [100, 0]]), 1, cap=0.5)
    0.25
    """
    share, before = 0.0, -1.0
    while share > before:
        gain = counts[:, rare_class] - share * counts.sum(axis=1)
        weights = np.zeros(len(counts))
        weights[np.argsort(-gain, kind="stable")] = np.clip(1 - cap * np.arange(len(counts)), 0, cap)
        before, share = share, float(expected_shares(counts, weights / weights.sum())[rare_class])
    return before
