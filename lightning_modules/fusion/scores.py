"""Figures of class probabilities; every one is a sum over patients, so that draws of patients are matrix products."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
BINS = 10  # of the calibration error: a few hundred rows fill no more
FIGURES = ("kappa", "kappa_quadratic", "accuracy", "macro_f1", "balanced_accuracy", "log_loss", "ece")
_SMALLEST = 1e-7
Numbers = NDArray[np.float64]
Figures = dict[str, Numbers]


@dataclass(frozen=True)
class Tally:
    """What G patients add to each figure.

    Args:
        confusion: (G, K, K) truth x answer.
        loss: (G,) sum of the negative logarithms of the true class's probability.
        reliability: (G, BINS, 3) rows, sum of the stated probability, right answers.
    """

    confusion: Numbers
    loss: Numbers
    reliability: Numbers


def tally(probability: NDArray[np.floating], label: NDArray[np.int64], group: NDArray[np.str_]) -> Tally:
    """Counts the rows of each patient.

    Args:
        probability: (N, K), rows sum to 1.
        label: (N,).
        group: (N,) patient.
    """
    _, patient = np.unique(group, return_inverse=True)
    count, classes = int(patient.max(initial=-1)) + 1, probability.shape[1]
    answer, stated = probability.argmax(1), probability.max(1).astype(np.float64)
    confusion, loss, reliability = np.zeros((count, classes, classes)), np.zeros(count), np.zeros((count, BINS, 3))
    np.add.at(confusion, (patient, label, answer), 1)
    true = np.take_along_axis(probability.astype(np.float64), label[:, None], 1)[:, 0]
    np.add.at(loss, patient, -np.log(np.maximum(true, _SMALLEST)))
    bins = np.minimum((stated * BINS).astype(int), BINS - 1)
    np.add.at(reliability, (patient, bins), np.stack([np.ones(len(label)), stated, answer == label], 1))
    return Tally(confusion, loss, reliability)


def figures(counted: Tally, taken: NDArray[np.number] | None = None) -> Figures:
    """Every figure of ``FIGURES``, once for each draw.

    ``kappa`` is Cohen's without weights, ``kappa_quadratic`` the one with squared distances of the classes' order;
    ``macro_f1`` and ``balanced_accuracy`` are means over the classes that the truth has.

    Args:
        counted: of G patients.
        taken: (D, G) how often each patient counts; once each if None.

    Returns:
        name -> (D,); NaN where a figure is not defined.

    >>> perfect = tally(np.eye(3), np.arange(3), np.array(["a", "b", "c"]))
    >>> {name: float(value[0]) for name, value in figures(perfect).items() if name.startswith("kappa")}
    {'kappa': 1.0, 'kappa_quadratic': 1.0}
    """
    weight = np.ones((1, len(counted.loss))) if taken is None else np.asarray(taken, np.float64)
    found = of_confusion(np.tensordot(weight, counted.confusion, 1))
    rows = weight @ counted.confusion.sum((1, 2))
    bins = np.tensordot(weight, counted.reliability, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["log_loss"] = weight @ counted.loss / rows
        found["ece"] = np.abs(bins[..., 1] - bins[..., 2]).sum(-1) / rows
    return found


def of_confusion(matrix: Numbers) -> Figures:
    """(D, K, K) truth x answer -> the figures that need the answers alone."""
    truth, said, right = matrix.sum(2), matrix.sum(1), np.diagonal(matrix, axis1=1, axis2=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = right / truth, 2 * right / (truth + said)
        accuracy = right.sum(1) / truth.sum(1)
    rank = np.arange(matrix.shape[-1])
    return {
        "kappa": _kappa(matrix, 1 - np.eye(len(rank))),
        "kappa_quadratic": _kappa(matrix, np.subtract.outer(rank, rank) ** 2.0),
        "accuracy": accuracy,
        "macro_f1": _mean_where(f1, truth > 0),
        "balanced_accuracy": _mean_where(recall, truth > 0),
    }


def _kappa(matrix: Numbers, penalty: Numbers) -> Numbers:
    truth, said = matrix.sum(-1), matrix.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = np.einsum("...i,ij,...j->...", truth, penalty, said) / truth.sum(-1)
        found = 1 - np.einsum("...ij,ij->...", matrix, penalty) / chance
    return np.where((truth > 0).sum(-1) < 2, np.nan, found)


def _mean_where(value: Numbers, there: NDArray[np.bool_]) -> Numbers:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, value, 0.0).sum(1) / there.sum(1)  # type: ignore[no-any-return]


def recalls(counted: Tally) -> list[float]:
    """Of each class the share of its rows that are answered right; NaN of a class without rows."""
    matrix = counted.confusion.sum(0)
    with np.errstate(invalid="ignore"):
        found: list[float] = (np.diagonal(matrix) / matrix.sum(1)).tolist()
    return found


def kappa_of(probability: NDArray[np.floating], label: NDArray[np.int64]) -> float:
    """Kappa of the most probable classes; rows without an answer are left out."""
    known = ~np.isnan(probability).any(1)
    rows = probability[known]
    return float(figures(tally(rows, label[known], np.arange(len(rows)).astype(str)))["kappa"][0])


def draws_of(patients: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """(D, G) how often each patient is drawn: rows of one are alike, so that patients are drawn, not rows."""
    share = np.full(patients, 1 / max(patients, 1))
    found: NDArray[np.int64] = np.random.default_rng(seed).multinomial(patients, share, size=draws)
    return found


def interval(values: Numbers) -> tuple[float, float]:
    """2.5 % and 97.5 % of the draws; NaN where more than one in twenty is not defined."""
    low, high = np.quantile(_known(values), [0.025, 0.975])
    return float(low), float(high)


def standard_error(values: Numbers) -> float:
    """Standard deviation of the draws; NaN where :func:`interval` is."""
    return float(_known(values).std())


def _known(values: Numbers) -> Numbers:
    known = values[~np.isnan(values)]
    return known if len(known) >= 0.95 * max(len(values), 1) else np.array([np.nan])


def swapped_p(ours: Tally, theirs: Tally, name: str = "kappa", draws: int = DRAWS, seed: int = 0) -> float:
    """Paired permutation test of a difference: were the two models one, each patient's answers could change hands.

    Args:
        ours: of G patients.
        theirs: of the same.
        name: of the figure.
        draws: of exchanges.
        seed: of the draws.

    Returns:
        Two-sided p, never 0: (1 + exchanges that differ at least as much) / (1 + draws).
    """
    stay = np.random.default_rng(seed).integers(0, 2, (draws, len(ours.loss)))

    def mixed(one: Tally, other: Tally) -> Numbers:
        matrix = np.tensordot(stay, one.confusion, 1) + np.tensordot(1 - stay, other.confusion, 1)
        return of_confusion(matrix)[name]

    seen = abs(float((figures(ours)[name] - figures(theirs)[name])[0]))
    drawn = np.abs(mixed(ours, theirs) - mixed(theirs, ours))
    return float((1 + (drawn >= seen - 1e-12).sum()) / (1 + draws))


def corrected_p(difference: NDArray[np.float64], test_share: float) -> float:
    """Paired t test over folds, with the variance that overlapping train rows hide (Nadeau and Bengio 2003).

    https://doi.org/10.1023/A:1024068626366

    Args:
        difference: (J,) of the J folds.
        test_share: test rows for each train row.

    Returns:
        Two-sided p; NaN with fewer than two folds.

    >>> round(corrected_p(np.array([0.05, 0.06, 0.04]), 0.5), 3)
    0.032
    """
    from scipy.stats import t

    folds = len(difference)
    if folds < 2:
        return float("nan")
    spread = float(difference.std(ddof=1)) * (1 / folds + test_share) ** 0.5
    if spread == 0:
        return 1.0 if not difference.any() else 0.0
    return float(2 * t.sf(abs(difference.mean()) / spread, folds - 1))
