"""The last step of the metadata pipeline: one forest for K classes, or K - 1 for an order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from .trees import Packed, pack


class ForestStep(ClassifierMixin, BaseEstimator):
    """Fits ``RandomForestClassifier``.

    The K - 1 forests of an order are weighted by the K classes, so that their answers are of one distribution.

    Args:
        options: of :class:`MetadataForest`.
        classes: K.
    """

    def __init__(self, options: dict[str, Any], classes: int) -> None:
        self.options = options
        self.classes = classes

    def fit(self, X: NDArray[Any], y: NDArray[np.int64]) -> "ForestStep":
        """Fits on (N, F) features and (N,) classes."""
        from sklearn.utils.class_weight import compute_sample_weight

        weight = compute_sample_weight("balanced", y) if self.options["weighting"] == "balanced" else None
        targets = [y > k for k in range(self.classes - 1)] if self.options["ordinal"] else [y]
        self.forests_ = [self._forest().fit(X, target, sample_weight=weight) for target in targets]
        self.columns_ = 2 if self.options["ordinal"] else self.classes
        return self

    def _forest(self) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        own = {name: self.options[name] for name in ("min_samples_leaf", "max_features")}
        return RandomForestClassifier(self.options["trees"], random_state=self.options["seed"], n_jobs=-1, **own)

    def packed(self) -> list[Packed]:
        """The forests as arrays."""
        return [pack(forest, self.columns_) for forest in self.forests_]
