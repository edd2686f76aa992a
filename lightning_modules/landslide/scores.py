"""Figures of a susceptibility map over labelled pixels, from their tally."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .tally import COUNT, PROBABILITY, RIGHT, Tally, positive_classes, ranked_names, tally_of

NAN = float("nan")
PER_CLASS = ("prevalence", "precision", "lift", "recall", "f1", "iou")


def pixel_scores(
    label: ArrayLike, probability: ArrayLike, classes: Sequence[str], predicted: ArrayLike | None = None
) -> dict[str, float]:
    """:func:`scores` of pixels at hand: ``label`` (N,) from 0 (-1 is left out), ``probability`` (N, K).

    >>> found = pixel_scores([0, 1, -1], [[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]], ["low", "high"])
    >>> found["kappa"], found["precision/high"], found["lift/high"], found["auroc/high"]
    (1.0, 1.0, 2.0, 1.0)
    """
    return scores(tally_of(label, probability, np.zeros(np.shape(label), np.int64), classes, predicted))


def scores(tally: Tally) -> dict[str, float]:
    """Every figure of a tally.

    Those of the confusion matrix and the calibration error are exact. Those that only rank (AUROC, average precision,
    Spearman) take pixels whose odds differ by less than 0.7 % as ties, which needs no list of pixels and moves them by
    less than 0.001 where probabilities are spread out, 0.008 where all are crowded (a test holds both).

    Returns:
        ``kappa``, ``quadratic_kappa``, ``macro_f1`` (over classes that occur), ``accuracy``, ``spearman`` (score
        against class), ``ece`` (most probable class, 15 bins), ``pixels``, ``blocks``; for each class ``prevalence/``,
        ``precision/``, ``lift/`` (precision over prevalence), ``recall/``, ``f1/``, ``iou/``, ``pixels/``; ``auroc/``,
        ``average_precision/`` (the estimate of the area under precision and recall) and ``prevalence/`` of each "class
        k or higher"; ``average_precision/`` of each class in between. NaN where it is undefined; :func:`notes` says
        why.
    """
    matrix, total = tally.confusion.sum(0), tally.total()
    pixels = matrix.sum()
    found = {"pixels": float(pixels), "blocks": float(tally.blocks)}
    found |= {f"pixels/{name}": float(n) for name, n in zip(tally.classes, matrix.sum(1))}
    found |= confusion_scores(matrix, tally.classes)
    found["spearman"] = float(spearman(total.ranked[0, 0]))
    for name, positive, table in zip(ranked_names(tally.classes), positive_classes(tally.classes), total.ranked[0]):
        if positive:
            found |= _ranking(name, table[positive].sum(0), table.sum(0) - table[positive].sum(0))
    between = {f"auroc/{name}" for name in tally.classes[1:-1]}  # more probably medium is not further up
    found = {name: value for name, value in found.items() if name not in between}
    return found | {"ece": float(calibration_error(total.reliability[0, 0]))}


def confusion_scores(matrix: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """The figures of :func:`scores` that a confusion matrix gives.

    Args:
        matrix: (K, K) pixels, true class by answered class.
        classes: names.

    >>> found = confusion_scores(np.array([[8, 2], [0, 10]]), ["low", "high"])
    >>> found["accuracy"], found["recall/low"], round(found["quadratic_kappa"], 3)
    (0.9, 0.8, 0.8)
    """
    found = _agreement(matrix) | _by_class(matrix, classes)
    present = [v for name in classes if not np.isnan(v := found[f"f1/{name}"])]
    return found | {"macro_f1": float(np.mean(present)) if present else NAN}


def _rows(matrix: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """A matrix as truth, answer and weight of its cells: what scikit-learn takes."""
    truth, answer = np.indices(matrix.shape).reshape(2, -1)
    return truth, answer, matrix.ravel()


def _agreement(matrix: NDArray[np.int64]) -> dict[str, float]:
    from sklearn.metrics import cohen_kappa_score

    if (matrix.sum(1) > 0).sum() < 2:  # nothing to agree on beyond chance
        return {"kappa": NAN, "quadratic_kappa": NAN, "accuracy": _ratio(np.trace(matrix), matrix.sum())}
    truth, answer, weight = _rows(matrix)
    kinds = {"kappa": None, "quadratic_kappa": "quadratic"}
    found = {n: float(cohen_kappa_score(truth, answer, weights=w, sample_weight=weight)) for n, w in kinds.items()}
    return found | {"accuracy": _ratio(np.trace(matrix), matrix.sum())}


def _by_class(matrix: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import jaccard_score, precision_recall_fscore_support

    truth, answer, weight = _rows(matrix)
    given = {"average": None, "sample_weight": weight, "zero_division": NAN, "labels": range(len(classes))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an undefined figure is NaN here, and has its note
        precision, recall, f1, _ = precision_recall_fscore_support(truth, answer, **given)
        iou = jaccard_score(
            truth, answer, average=None, sample_weight=weight, labels=range(len(classes)), zero_division=0
        )
    found: dict[str, float] = {}
    for k, name in enumerate(classes):
        prevalence = _ratio(matrix[k].sum(), matrix.sum())
        there = matrix[k].any()  # without a true pixel no answer can be right: undefined, not 0
        values = (prevalence, precision[k], precision[k] / prevalence if there else NAN, recall[k], f1[k], iou[k])
        found |= {f"{m}/{name}": float(v) if there or m == "prevalence" else NAN for m, v in zip(PER_CLASS, values)}
    return found


def _ranking(name: str, positive: NDArray[np.int64], negative: NDArray[np.int64]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = {f"prevalence/{name}": _ratio(positive.sum(), positive.sum() + negative.sum())}
    if not (positive.any() and negative.any()):
        return found | {f"auroc/{name}": NAN, f"average_precision/{name}": NAN}
    bins = np.arange(len(positive))
    truth, score = np.repeat([1, 0], len(bins)), np.tile(bins, 2)
    weight = np.concatenate([positive, negative])
    rows = (truth[weight > 0], score[weight > 0])
    return found | {
        f"auroc/{name}": float(roc_auc_score(*rows, sample_weight=weight[weight > 0])),
        f"average_precision/{name}": float(average_precision_score(*rows, sample_weight=weight[weight > 0])),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else NAN


def spearman(table: NDArray[np.number]) -> NDArray[np.float64]:
    """Spearman's rank correlation of a contingency table, ties at their middle rank.

    Args:
        table: (..., R, C) counts; rows and columns in ascending order.

    Returns:
        (...), NaN where one of the two is constant.

    >>> spearman(np.array([[2, 0], [0, 2]])).item()
    1.0
    """
    count = table.astype(np.float64)
    row, column = count.sum(-1), count.sum(-2)  # margins: (..., R), (..., C)
    total = row.sum(-1)

    def centred(margin: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cumsum(margin, -1) - margin / 2 - total[..., None] / 2

    a, b = centred(row), centred(column)
    both = ((count @ b[..., None])[..., 0] * a).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / np.sqrt((row * a**2).sum(-1) * (column * b**2).sum(-1))


def calibration_error(reliability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected calibration error (Guo et al., ICML 2017): mean distance of stated and observed share over the bins.

    Args:
        reliability: (..., bins, 3) of :class:`Tally`.

    Returns:
        (...), NaN without pixels.

    >>> calibration_error(np.array([[10.0, 9.0, 6.0]])).item()
    0.3
    """
    distance = np.abs(reliability[..., PROBABILITY] - reliability[..., RIGHT]).sum(-1)
    with np.errstate(invalid="ignore"):
        return distance / reliability[..., COUNT].sum(-1)


def notes(tally: Tally) -> list[str]:
    """Why figures are NaN: a sentence for each class that does not occur or is never answered.

    >>> notes(tally_of([0, 0], [[0.6, 0.4], [0.7, 0.3]], [0, 1], ["low", "high"]))
    ["class 'high' has no labelled pixel here: its figures are undefined (NaN)"]
    """
    matrix, found = tally.confusion.sum(0), []
    for k, name in enumerate(tally.classes):
        if not matrix[k].any():
            found.append(f"class '{name}' has no labelled pixel here: its figures are undefined (NaN)")
        elif not matrix[:, k].any():
            found.append(f"class '{name}' is never answered: its precision and lift are undefined (NaN)")
    return found
