"""Figures of a confusion matrix of the nine classes; every figure is a function of it, so that draws are cheap."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...datamodules.drains.vocabulary import CLASS_NAMES, CLASSES, CONDITIONS, TYPE_OF_CLASS, TYPES

Counts = NDArray[np.int64]
NOTHING = len(CLASSES)  # the row of detections without an object, the column of objects without a detection
DRAWS = 1000


def confusions(label: NDArray[np.int64], predicted: NDArray[np.int64], picture: NDArray[np.int64]) -> Counts:
    """One matrix for each picture: (P, 10, 10), rows the truth; ``NOTHING`` stands for no object, no answer.

    >>> confusions(np.array([0, 8]), np.array([0, NOTHING]), np.array([5, 5]))[0].sum(), NOTHING
    (np.int64(2), 9)
    """
    _, row = np.unique(picture, return_inverse=True)
    size = NOTHING + 1
    found = np.zeros((int(row.max(initial=-1)) + 1, size, size), np.int64)
    np.add.at(found, (row, label, predicted), 1)
    return found


def scores(confusion: Counts) -> dict[str, NDArray[np.float64]]:
    """Every figure of one or many confusion matrices.

    ``macro_f1`` is the mean over the classes that the truth has; NaN stands where a figure has nothing to count.
    ``accuracy/blocked`` is the share of the objects of that condition (or type) whose class is right.

    Args:
        confusion: (..., 10, 10).

    Returns:
        name -> (...).

    >>> perfect = np.diag([1] * 9 + [0])
    >>> {name: float(scores(perfect)[name]) for name in ("accuracy", "macro_f1", "accuracy/blocked")}
    {'accuracy': 1.0, 'macro_f1': 1.0, 'accuracy/blocked': 1.0}
    """
    counts = confusion.astype(np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)[..., :NOTHING]
    true, said = counts.sum(-1)[..., :NOTHING], counts.sum(-2)[..., :NOTHING]
    precision, recall = _share(right, said), _share(right, true)
    f1 = np.where(true > 0, 2 * right / np.maximum(true + said, 1), np.nan)
    found = {
        "accuracy": _share(right.sum(-1), true.sum(-1)),
        "macro_f1": _mean(f1),
        "weighted_f1": _share(np.nansum(f1 * true, -1), true.sum(-1)),
        "balanced_accuracy": _mean(recall),
    }
    for k, name in enumerate(CLASS_NAMES):
        key = name.replace(" ", "_")
        found |= {f"precision/{key}": precision[..., k], f"recall/{key}": recall[..., k], f"f1/{key}": f1[..., k]}
    for name, members in GROUPS.items():
        found[f"accuracy/{name}"] = _share(right[..., members].sum(-1), true[..., members].sum(-1))
    return found


GROUPS: Mapping[str, list[int]] = {
    **{c: [k for k, one in enumerate(CLASSES) if one.condition == c] for c in CONDITIONS},
    **{t: np.flatnonzero(TYPE_OF_CLASS == i).tolist() for i, t in enumerate(TYPES)},
}


def intervals(by_picture: Counts, seed: int = 0, draws: int = DRAWS) -> dict[str, tuple[float, float]]:
    """95 % intervals of every figure; pictures are drawn, not objects, since those of one picture are alike.

    Args:
        by_picture: of :func:`confusions`.
        seed: of the draws.
        draws: of as many pictures as there are.

    Returns:
        name -> (2.5 %, 97.5 %), NaN where no draw could count it.
    """
    found = scores(drawn(by_picture, seed, draws))
    return {name: _bounds(values) for name, values in found.items()}


def lead(ours: Counts, theirs: Counts, name: str, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """95 % interval of the difference of a figure on the same draws of the same pictures."""
    a, b = (scores(drawn(one, seed, draws))[name] for one in (ours, theirs))
    return _bounds(a - b)


def drawn(by_picture: Counts, seed: int, draws: int) -> Counts:
    """(draws, 10, 10) sums over pictures that are drawn with replacement."""
    pictures = len(by_picture)
    times = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=draws)
    size = by_picture.shape[-1]
    found: Counts = (times @ by_picture.reshape(pictures, -1)).reshape(draws, size, size)
    return found


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0.0).sum(-1), known.sum(-1).astype(np.float64))
