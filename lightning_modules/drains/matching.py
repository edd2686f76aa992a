"""Which detection stands for which object: what the end-to-end score starts from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...datamodules.drains.boxes import from_corners, iou
from ...datamodules.errors import StagewiseError

MISSED = -1


@dataclass(frozen=True)
class Matches:
    """Which detection stands for which object of a picture.

    Attributes:
        detection: (N,) of each true object, ``MISSED`` where none is left for it.
        false: (F,) detections that stand for no object.
    """

    detection: NDArray[np.int64]
    false: NDArray[np.int64]


def match_boxes(
    true_boxes: ArrayLike,
    true_types: ArrayLike,
    boxes: ArrayLike,
    types: ArrayLike,
    scores: ArrayLike,
    least_iou: float = 0.5,
) -> Matches:
    """Matches detections and objects of one picture one to one, as COCO does.

    The detections choose in the order of their scores; each takes the object of its own type, not yet taken, that it
    overlaps most. The conditions play no part.

    Args:
        true_boxes: (N, 4) left, top, right, bottom in pixels.
        true_types: (N,) type ids.
        boxes: (M, 4) of the detections.
        types: (M,) type ids; -1, a type that is not known, matches nothing.
        scores: (M,); of equal ones the first chooses first.
        least_iou: overlap from which a detection stands for an object.

    >>> true, found = [[0, 0, 10, 10]], [[0, 0, 10, 9], [0, 0, 10, 10]]
    >>> match_boxes(true, [2], found, [2, 2], [0.4, 0.9])
    Matches(detection=array([1]), false=array([0]))
    """
    if not 0 < least_iou <= 1:
        raise StagewiseError(f"`least_iou` must be above 0 and at most 1, got {least_iou}.")
    wanted, kinds = np.asarray(true_types, np.int64).reshape(-1), np.asarray(types, np.int64).reshape(-1)
    overlap = iou(from_corners(boxes, (1, 1)), from_corners(true_boxes, (1, 1)))  # (M, N); the unit does not matter
    overlap = np.where((kinds[:, None] == wanted) & (kinds[:, None] >= 0), overlap, 0.0)
    taken = np.full(len(wanted), MISSED, np.int64)
    for i in np.argsort(-np.asarray(scores, float).reshape(-1), kind="stable"):
        free = np.where(taken == MISSED, overlap[i], 0.0)
        if free.size and free.max() >= least_iou:
            taken[free.argmax()] = i
    return Matches(taken, np.setdiff1d(np.arange(len(kinds)), taken))
