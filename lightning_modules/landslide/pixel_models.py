"""Models of single pixels, all with one question: ``probability((N, C)) -> (N, K)``."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import quadratic_kappa

_CANDIDATES = 40  # slopes that may be a cut point


class Constant:
    """The same frequencies for every pixel.

    Args:
        frequency: (K,).

    >>> Constant(np.array([0.9, 0.1])).probability(np.zeros((2, 5))).tolist()
    [[0.9, 0.1], [0.9, 0.1]]
    """

    def __init__(self, frequency: NDArray[np.float64]) -> None:
        self.frequency = frequency

    def probability(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, K)."""
        return np.tile(self.frequency, (len(x), 1))


class SlopeThreshold:
    """Classes by K - 1 cut points on the slope, those with the best quadratic kappa on the given (train) pixels.

    Args:
        x: (N, C) channels; a slope that is NaN counts as the median.
        column: of the slope.
        y: (N,) classes.
        weight: (N,) pixels that each stands for.
        count: number of classes K.

    >>> found = SlopeThreshold(np.array([[5.0], [8.0], [30.0]]), 0, np.array([0, 0, 1]), np.ones(3), 2)
    >>> found.bin(np.array([[7.0], [40.0]])).tolist()
    [0, 1]
    """

    def __init__(
        self,
        x: NDArray[np.floating],
        column: int,
        y: NDArray[np.integer],
        weight: NDArray[np.floating],
        count: int,
    ) -> None:
        self.column, self.median = column, float(np.nan_to_num(np.nanmedian(x[:, column])))
        slope = self._slope(x)
        edges = np.unique(np.quantile(slope, np.linspace(0, 1, _CANDIDATES + 2)[1:-1]))
        table = np.zeros((len(edges) + 1, count))
        np.add.at(table, (np.searchsorted(edges, slope, side="right"), y), weight)
        below = np.concatenate([np.zeros((1, count)), np.cumsum(table, 0)])  # row i: pixels under edge i - 1
        most = min(count - 1, len(edges))
        chosen = np.array(list(combinations(range(1, len(edges) + 1), most)))
        ends = np.concatenate([below[chosen], np.broadcast_to(below[-1], (len(chosen), count - most, count))], 1)
        matrices = np.diff(ends, axis=1, prepend=0).swapaxes(1, 2)  # (choices, truth, answer)
        kappa = np.nan_to_num(quadratic_kappa(matrices), nan=-1)
        ties = np.flatnonzero(kappa >= kappa.max() - 1e-12)
        best = ties[len(ties) // 2]  # in the middle of a gap rather than at its edge
        self.cuts = edges[chosen[best] - 1]
        share = matrices[best].T + 1e-9 * below[-1]  # an empty bin answers with the frequencies of all
        self.share = share / share.sum(1, keepdims=True)

    def _slope(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.nan_to_num(x[:, self.column], nan=self.median)

    def bin(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """(N,) class of each pixel."""
        return np.searchsorted(self.cuts, self._slope(x), side="right")

    def probability(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, K) train frequencies among the pixels between the same cut points."""
        return self.share[self.bin(x)]


class PixelModel:
    """A scikit-learn classifier on standardised channels.

    As for the network nodata becomes the mean, and values beyond those of train are held to them.

    Args:
        model: the classifier.
        x: (N, C) train pixels.
        y: (N,) classes.
        weight: (N,) pixels that each stands for.
        count: number of classes K; one that is absent from ``y`` gets probability 0.
    """

    def __init__(
        self, model: Any, x: NDArray[np.floating], y: NDArray[np.integer], weight: NDArray[np.floating], count: int
    ) -> None:
        from sklearn.preprocessing import StandardScaler

        self.low, self.high = np.fmin.reduce(x), np.fmax.reduce(x)
        self.scaler, self.model, self.count = StandardScaler().fit(x, sample_weight=weight), model, count
        self.model.fit(self._ready(x), y, sample_weight=weight * (len(y) / weight.sum()))

    def _ready(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.nan_to_num(self.scaler.transform(np.clip(x, self.low, self.high)), nan=0.0)

    def probability(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, K)."""
        found = np.zeros((len(x), self.count))
        found[:, self.model.classes_] = self.model.predict_proba(self._ready(x))
        return found


def logistic() -> Any:
    """Logistic regression (multinomial), scikit-learn's default penalty."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000)


def forest(trees: int, seed: int) -> Any:
    """Random forest; leaves of at least 5 pixels, whose shares are probabilities worth ranking by."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(trees, min_samples_leaf=5, n_jobs=-1, random_state=seed)
