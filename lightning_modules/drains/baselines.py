"""What is to be beaten: answers that look at no pixel."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...datamodules.drains.vocabulary import CLASSES, TYPE_OF_CLASS, TYPES

Answers = NDArray[np.int64]


def majority(train_label: Answers, size: int) -> Answers:
    """The commonest class of train, for everybody.

    >>> majority(np.array([4, 4, 1]), 2).tolist()
    [4, 4]
    """
    return np.full(size, np.bincount(train_label, minlength=len(CLASSES)).argmax())


def majority_of_type(train_label: Answers, types: Answers) -> Answers:
    """The commonest class of the object's type in train; of a type that train lacks, its first class.

    >>> majority_of_type(np.array([4, 4, 3, 0]), np.array([0, 2])).tolist()
    [4, 0]
    """
    counts = np.bincount(train_label, minlength=len(CLASSES))
    best = [np.where(TYPE_OF_CLASS == t, counts, -1).argmax() for t in range(len(TYPES))]
    return np.array(best)[types]


def features_forest(
    train: Mapping[str, NDArray[np.generic]], features: NDArray[np.float32], types: Answers, trees: int, seed: int
) -> Answers:
    """A random forest on place, size and neighbours of the box; it answers what the type allows.

    Args:
        train: ``metadata`` (N, F) and ``label`` (N,).
        features: (M, F) of the objects asked about.
        types: (M,) of those.
        trees: of the forest.
        seed: of the forest.
    """
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(trees, min_samples_leaf=2, random_state=seed, n_jobs=-1)
    forest.fit(train["metadata"], train["label"])
    probability = np.zeros((len(features), len(CLASSES)))
    probability[:, forest.classes_] = forest.predict_proba(features)
    allowed = types[:, None] == TYPE_OF_CLASS
    found: Answers = np.where(allowed, probability, -1).argmax(1)
    return found
