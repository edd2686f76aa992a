"""What a map must beat: majority, slope threshold, logistic regression and random forest on pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decision import choose, class_weights
from .pixel_models import Constant, PixelModel, SlopeThreshold, forest, logistic
from .scores import pixel_scores

TITLES = {
    "majority": "majority",
    "slope_threshold": "slope threshold",
    "logistic_regression": "logistic regression",
    "random_forest": "random forest",
}
Answer = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Probabilities (N, K) and answered classes (N,)."""


class Baselines:
    """Models that see one pixel at a time, fitted on train pixels.

    They get what makes them strong, so that beating them means something. All learn the true frequencies (the weights
    undo a stratified sample), so their probabilities are calibrated like the map's, and each answers by the rule that
    the map answers by, chosen on the same validation pixels (:func:`~.decision.choose`). The slope threshold answers
    with its own cut points, fitted on train. No choice ever sees a test label.

    Args:
        classes: names, low to high.
        slope: position of the slope channel; None leaves the slope threshold out.
        trees: of the forest.
        seed: of the forest.

    >>> x = np.array([[1.0], [2.0], [30.0], [35.0]])
    >>> fitted = Baselines(["low", "high"], slope=0, trees=5).fit(x, np.array([0, 0, 1, 1]), np.ones(4))
    >>> fitted.predict(np.array([[3.0], [40.0]]))["slope_threshold"][1].tolist()
    [0, 1]
    """

    def __init__(self, classes: Sequence[str], slope: int | None = None, trees: int = 200, seed: int = 0) -> None:
        self.classes, self.slope, self.trees, self.seed = tuple(classes), slope, trees, seed
        self.models: dict[str, Any] = {}
        self.exponents: dict[str, float] = {}

    def fit(
        self,
        x: NDArray[np.floating],
        y: NDArray[np.integer],
        weight: NDArray[np.floating],
        validation: tuple[NDArray[np.floating], NDArray[np.integer], NDArray[np.floating]] | None = None,
    ) -> "Baselines":
        """Fits all on train pixels.

        Args:
            x: (N, C) channels in physical units, NaN where there is no data.
            y: (N,) classes.
            weight: (N,) train pixels that each of these stands for.
            validation: the same of validation pixels, which choose the exponents; without them all are 0 (argmax).
        """
        count = len(self.classes)
        self.frequency = np.bincount(y, weight, count) / weight.sum()
        self.models = {"majority": Constant(self.frequency)}
        if self.slope is not None:
            self.models["slope_threshold"] = SlopeThreshold(x, self.slope, y, weight, count)
        for name, model in (("logistic_regression", logistic()), ("random_forest", forest(self.trees, self.seed))):
            self.models[name] = PixelModel(model, x, y, weight, count)
        self.exponents = {name: self._exponent(name, validation) for name in self.models}
        return self

    def predict(self, x: NDArray[np.floating]) -> dict[str, Answer]:
        """Probabilities and answers of each baseline for (N, C) pixels."""
        found = {}
        for name, model in self.models.items():
            probability = model.probability(x)
            found[name] = (probability, self._answer(name, x, probability, self.exponents[name]))
        return found

    def _answer(
        self, name: str, x: NDArray[np.floating], probability: NDArray[np.float64], exponent: float
    ) -> NDArray[np.int64]:
        if name == "slope_threshold":
            return self.models[name].bin(x)
        return (probability * class_weights(self.frequency, exponent)).argmax(1)

    def _exponent(self, name: str, validation: Any) -> float:
        if name in ("majority", "slope_threshold") or validation is None or len(np.unique(validation[1])) < 2:
            return 0.0
        x, y, weight = validation
        return float(choose(self.models[name].probability(x), y, self.frequency, weight)["exponent"])


def leak_gap(
    x: NDArray[np.floating],
    y: NDArray[np.integer],
    tiles: NDArray[np.integer],
    test: NDArray[np.bool_],
    classes: Sequence[str],
    trees: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """How much a random tile split flatters: the same forest, scored on it and on the given split.

    The leaky split gives tiles, which overlap, to train or test at random, and a pixel belongs to every split that one
    of its tiles belongs to: how a table of tiles was once shuffled. Both forests learn from as many pixels.

    Args:
        x: (N, C) channels of labelled train and test pixels.
        y: (N,) classes.
        tiles: (N, T) ids of the tiles that hold each pixel; T = 4 where they overlap by half.
        test: (N,) whether the buffered split calls the pixel test.
        classes: names, low to high.
        trees: of each forest.
        seed: of the forests and of the leaky split.

    Returns:
        ``buffered/``, ``leaky/`` and ``gap/`` (leaky - buffered) of ``quadratic_kappa``, ``auroc/`` and
        ``average_precision/`` of the highest class; ``test_pixels_in_train``, the share that the leaky split shares.
    """
    rng = np.random.default_rng(seed)
    names, tile = np.unique(tiles, return_inverse=True)
    is_test = (rng.random(len(names)) < test.mean())[tile.reshape(tiles.shape)]
    leaky_train, leaky_test = (~is_test).any(1), is_test.any(1)
    wanted = ("quadratic_kappa", f"auroc/{classes[-1]}", f"average_precision/{classes[-1]}")
    found: dict[str, float] = {}
    size = min(int((~test).sum()), int(leaky_train.sum()))
    for name, train, query in (("buffered", ~test, test), ("leaky", leaky_train, leaky_test)):
        rows = rng.choice(np.flatnonzero(train), size, replace=False)
        model = PixelModel(forest(trees, seed), x[rows], y[rows], np.ones(len(rows)), len(classes))
        scored = pixel_scores(y[query], model.probability(x[query]), classes)
        found |= {f"{name}/{key}": scored[key] for key in wanted}
    found |= {f"gap/{key}": found[f"leaky/{key}"] - found[f"buffered/{key}"] for key in wanted}
    return found | {"test_pixels_in_train": float(leaky_train[leaky_test].mean())}
