"""Intervals of an evaluation's figures by resampling spatial blocks: neighbouring pixels are no independent samples."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .scores import PER_CLASS, calibration_error, spearman
from .tally import Tally, positive_classes, ranked_names

MIN_BLOCKS = 8
DRAWS = 1000
LEVEL = 0.95
_CHUNK = 128  # draws at once: their histograms take up to 128 x K x 4096 x 8 bytes
Figures = dict[str, NDArray[np.float64]]


def intervals(
    tally: Tally, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Percentile intervals over draws of blocks with replacement (cluster bootstrap, Davison & Hinkley 1997, 3.8).

    A draw is the number of times that each block is taken, so that all draws together are matrix products with the
    blocks' counts.

    Args:
        tally: of pixels in G blocks.
        draws: number of draws.
        seed: of the draws.
        level: share of the draws inside.

    Returns:
        Name of :func:`~.scores.scores` -> lower and upper bound; notes. Both bounds are NaN, with a note, where there
        are fewer than ``MIN_BLOCKS`` blocks and where over 5 % of the draws leave the figure undefined.
    """
    taken = draw_blocks(tally, draws, seed)
    if taken is None:
        names = figures_of(tally, np.zeros((1, len(tally.block))))
        text = f"no intervals: {tally.blocks} blocks with labels, {MIN_BLOCKS} are needed"
        return {name: (float("nan"), float("nan")) for name in names}, [text]
    return _percentiles(figures_of(tally, taken), level)


def leads(
    tally: Tally, others: Mapping[str, Tally], draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, dict[str, tuple[float, float]]]:
    """Intervals of the differences ``tally - other`` of each figure, over the same draws of the same blocks.

    Two intervals that overlap say little; this says whether one map is better on the same ground.

    Returns:
        Name of the other -> name of the figure -> lower and upper bound; empty with fewer than ``MIN_BLOCKS`` blocks.

    Raises:
        ValueError: the others were counted over different blocks.
    """
    taken, found = draw_blocks(tally, draws, seed), {}
    for name, other in others.items():
        if not np.array_equal(tally.confusion.sum((1, 2)), other.confusion.sum((1, 2))):
            raise ValueError(f"`{name}` was counted over other blocks; count all over the same pixels.")
    if taken is None:
        return {name: {} for name in others}
    ours = figures_of(tally, taken)
    for name, other in others.items():
        theirs = figures_of(other, taken)
        found[name] = _percentiles({key: ours[key] - theirs[key] for key in ours}, level)[0]
    return found


def draw_blocks(tally: Tally, draws: int, seed: int) -> NDArray[np.float64] | None:
    """(D, G) how often each block is taken in each draw; None with fewer than ``MIN_BLOCKS`` blocks with pixels."""
    blocks = np.flatnonzero(tally.confusion.sum((1, 2)) > 0)
    if len(blocks) < MIN_BLOCKS:
        return None
    taken = np.zeros((draws, len(tally.block)))
    share = np.full(len(blocks), 1 / len(blocks))
    taken[:, blocks] = np.random.default_rng(seed).multinomial(len(blocks), share, size=draws)
    return taken


def _percentiles(
    drawn: Mapping[str, NDArray[np.float64]], level: float
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    found, undefined = {}, []
    for name, values in drawn.items():
        finite = values[np.isfinite(values)]
        if len(finite) < 0.95 * len(values):
            found[name] = (float("nan"), float("nan"))
            undefined.append(name)
        else:
            low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
            found[name] = (float(low), float(high))
    text = f"no interval, undefined in over 5 % of the draws: {', '.join(undefined)}"
    return found, [text] if undefined else []


def figures_of(tally: Tally, taken: NDArray[np.number]) -> Figures:
    """The figures of :func:`~.scores.scores` with blocks weighted.

    Args:
        tally: of pixels in G blocks.
        taken: (D, G) how often each block counts.

    Returns:
        Name -> (D,).

    >>> from .tally import tally_of
    >>> tally = tally_of([0, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 0, 1], ["low", "high"])
    >>> figures_of(tally, np.array([[1, 1], [1, 0]]))["precision/high"].tolist()
    [0.5, 1.0]
    """
    weight = taken.astype(np.float64)
    matrix = np.einsum("dg,gij->dij", weight, tally.confusion.astype(np.float64))
    found = _of_matrix(matrix, tally.classes)
    error = np.einsum("dg,gbs->dbs", weight, tally.reliability[:, 0])
    found["ece"] = calibration_error(error)
    for s, (name, positive) in enumerate(zip(ranked_names(tally.classes), positive_classes(tally.classes))):
        found |= _ranking(tally.ranked[:, s], weight, name, positive)
    return found


def _ranking(ranked: NDArray[np.int32], weight: NDArray[np.float64], name: str, positive: list[int]) -> Figures:
    """Of (G, K, RANK_BINS) counts and (D, G) weights: Spearman of the score, or how well it finds positive classes."""
    rows = ranked
    if positive:
        yes = ranked[:, positive].sum(1)
        rows = np.stack([yes, ranked.sum(1) - yes], axis=1)
    table = rows[..., ranked.any((0, 1))].astype(np.float64)  # a bin that is empty everywhere changes no rank
    flat, shape = table.reshape(len(table), -1), (-1, *table.shape[1:])
    ordered = positive[-1:] == [ranked.shape[1] - 1]
    chunks = [weight[i : i + _CHUNK] for i in range(0, len(weight), _CHUNK)]
    parts = [_of_table((chunk @ flat).reshape(shape), name, bool(positive), ordered) for chunk in chunks]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _of_table(table: NDArray[np.float64], name: str, binary: bool, ordered: bool) -> Figures:
    if not binary:
        return {"spearman": spearman(table)}
    yes, no = table[:, 0], table[:, 1]
    found = {f"average_precision/{name}": average_precision(yes, no)}
    return found | ({f"auroc/{name}": auroc(yes, no)} if ordered else {})


def _of_matrix(matrix: NDArray[np.float64], classes: tuple[str, ...]) -> Figures:
    """(D, K, K) -> name -> (D,)."""
    truth, answer, right = matrix.sum(2), matrix.sum(1), np.diagonal(matrix, axis1=1, axis2=2)
    total = truth.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        prevalence = truth / total[:, None]
        precision, recall = right / answer, right / truth
        f1, iou = 2 * right / (truth + answer), right / (truth + answer - right)
        values = (prevalence, precision, precision / prevalence, recall, f1, iou)
        found = {"accuracy": right.sum(1) / total, "macro_f1": _mean_where(f1, truth > 0)}
    for metric, value in zip(PER_CLASS, values):
        there = value if metric == "prevalence" else np.where(truth > 0, value, np.nan)
        found |= {f"{metric}/{name}": there[:, k] for k, name in enumerate(classes)}
    return found | {"kappa": _kappa(matrix, 1 - np.eye(len(classes))), "quadratic_kappa": quadratic_kappa(matrix)}


def _mean_where(value: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(there, value, 0).sum(1) / there.sum(1)


def quadratic_kappa(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa with squared distances of (..., K, K) confusion matrices; NaN with fewer than two true classes.

    >>> quadratic_kappa(np.diag([3.0, 2.0, 1.0])).item()
    1.0
    """
    rank = np.arange(matrix.shape[-1])
    return _kappa(matrix, np.subtract.outer(rank, rank) ** 2.0)


def _kappa(matrix: NDArray[np.float64], penalty: NDArray[np.float64]) -> NDArray[np.float64]:
    truth, answer = matrix.sum(-1), matrix.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = np.einsum("...i,ij,...j->...", truth, penalty, answer) / truth.sum(-1)
        found = 1 - np.einsum("...ij,ij->...", matrix, penalty) / chance
    return np.where((truth > 0).sum(-1) < 2, np.nan, found)


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of (..., bins) counts in ascending score; pixels in one bin are ties.

    >>> auroc(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0])).item()
    0.875
    """
    below = np.cumsum(negative, -1) - negative / 2
    with np.errstate(invalid="ignore"):
        return (positive * below).sum(-1) / (positive.sum(-1) * negative.sum(-1))


def average_precision(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average precision of (..., bins) counts in ascending score, as scikit-learn's; NaN where all are of one kind.

    >>> round(average_precision(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0])).item(), 3)
    0.833
    """
    found = np.cumsum(positive[..., ::-1], -1)
    ranked = found + np.cumsum(negative[..., ::-1], -1)
    precision = found / np.maximum(ranked, 1)
    both = (positive.sum(-1) > 0) & (negative.sum(-1) > 0)
    with np.errstate(invalid="ignore"):
        value = (positive[..., ::-1] * precision).sum(-1) / positive.sum(-1)
    return np.where(both, value, np.nan)
