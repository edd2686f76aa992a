"""The best that any model can do which sees the whole picture and not the object."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import StagewiseError


def whole_picture_ceiling(labels: ArrayLike, pictures: ArrayLike, types: ArrayLike | None = None) -> float:
    """Best accuracy of any function of the picture alone, or of the picture and the type of the object.

    Such a function gives one answer to all objects of a picture (and of a type in it), so at best the commonest label
    among them. It is measured on these very labels: no training set could teach more.

    Args:
        labels: (N,) class of each object.
        pictures: (N,) picture of each object, numbers or names.
        types: (N,) type of each object; None for a function of the picture alone.

    Returns:
        Share of the objects, 0 to 1; nan without objects.

    >>> whole_picture_ceiling([0, 0, 1, 2], ["a", "a", "a", "b"])
    0.75
    >>> whole_picture_ceiling([0, 0, 1, 2], ["a", "a", "a", "b"], types=[0, 0, 1, 1])
    1.0
    """
    label = np.unique(np.asarray(labels), return_inverse=True)[1]
    keys: Sequence[np.ndarray] = [np.asarray(pictures), *([] if types is None else [np.asarray(types)])]
    if any(len(key) != len(label) for key in keys):
        raise StagewiseError(f"one picture and type a label: {len(label)} labels, {[len(key) for key in keys]} others.")
    if not len(label):
        return float("nan")
    numbered = np.stack([np.unique(key, return_inverse=True)[1] for key in keys])
    group = np.unique(numbered, axis=1, return_inverse=True)[1].reshape(-1)
    counts = np.zeros((group.max() + 1, label.max() + 1), int)
    np.add.at(counts, (group, label), 1)
    return float(counts.max(axis=1).sum() / len(label))
