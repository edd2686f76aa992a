"""Oversampling of rare classes: how often an epoch shows each object."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import QuotaError
from .vocabulary import CLASSES

_BLOCKED = np.array([one.condition == "blocked" for one in CLASSES])


def class_targets(class_count: ArrayLike, min_per_class: int = 200, blocked_share: float = 0.25) -> NDArray[np.int64]:
    """Draws of each class in an epoch.

    Args:
        class_count: (9,) objects of train.
        min_per_class: least draws of a class that has objects.
        blocked_share: least share of all draws that the blocked classes have together.

    Returns:
        (9,) at least ``class_count``: no object is left out.

    Raises:
        QuotaError: a negative ``min_per_class`` or a share outside [0, 1).

    >>> class_targets([52, 78, 76, 153, 366, 257, 97, 148, 238]).tolist()
    [200, 277, 200, 200, 366, 257, 277, 200, 238]
    """
    if min_per_class < 0 or not 0 <= blocked_share < 1:
        raise QuotaError(
            f"`rare` needs min_per_class >= 0 and blocked_share in [0, 1), got {min_per_class} and {blocked_share}."
        )
    counts = np.asarray(class_count, np.int64)
    targets = np.where(counts > 0, np.maximum(counts, min_per_class), 0)
    wanted = blocked_share / (1 - blocked_share) * targets[~_BLOCKED].sum()
    blocked = targets * _BLOCKED
    if 0 < blocked.sum() < wanted:
        targets = np.where(_BLOCKED, np.ceil(blocked * wanted / blocked.sum()), targets).astype(np.int64)
    return targets


def repeated_rows(labels: ArrayLike, targets: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
    """Rows of train, each class as often as wanted and its objects equally often, to within one.

    Args:
        labels: (N,) classes.
        targets: (9,) of :func:`class_targets`.
        seed: chooses the objects that come once more.

    Returns:
        (M,) rows, ascending.

    >>> repeated_rows([0, 0, 1], [4, 2, 0, 0, 0, 0, 0, 0, 0]).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    labels, targets = np.asarray(labels, np.int64), np.asarray(targets, np.int64)
    generator, repeats = np.random.default_rng(seed), np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        each, more = divmod(int(targets[label]), len(rows))
        repeats[rows] = each
        repeats[rows[:more]] += 1
    return np.repeat(np.arange(len(labels)), repeats)
