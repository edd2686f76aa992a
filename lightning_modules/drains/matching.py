"""The end-to-end score: objects that the detector missed are wrong, and what it made up is counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...datamodules.drains.boxes import from_corners, iou
from ...datamodules.drains.vocabulary import CLASSES
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


@dataclass(frozen=True)
class EndToEnd:
    """How well detector and classifier do together.

    Attributes:
        objects: true objects.
        missed: of them, without a detection.
        false: detections that stand for no object.
        accuracy: share of the objects that are found and have the right class.
        macro_f1: mean over the classes that occur among the objects; a miss lowers the recall of its class, a false
            detection the precision of the class that it was given.
        recall: (9,) share of each class that is found and right; nan for a class without objects.
    """

    objects: int
    missed: int
    false: int
    accuracy: float
    macro_f1: float
    recall: NDArray[np.float64]


def end_to_end(labels: ArrayLike, predicted: ArrayLike, false: Sequence[int] | ArrayLike = ()) -> EndToEnd:
    """Scores the objects of all pictures.

    Args:
        labels: (N,) true classes.
        predicted: (N,) class of the matched detection, ``MISSED`` where there is none.
        false: (F,) classes given to the detections that match nothing; -1 for those of unknown type.

    Raises:
        StagewiseError: not one prediction a label, or a class out of range.

    >>> score = end_to_end([0, 0, 8], [0, MISSED, 8], false=[8])
    >>> round(score.accuracy, 3), round(score.macro_f1, 3), score.missed, score.false
    (0.667, 0.667, 1, 1)
    """
    truth, answer, extra = (np.asarray(values, np.int64).reshape(-1) for values in (labels, predicted, false))
    _check(truth, answer, extra)
    if not len(truth):
        raise StagewiseError("no object to score; end_to_end needs at least one true object.")
    right = np.bincount(truth[truth == answer], minlength=len(CLASSES))
    present = np.bincount(truth, minlength=len(CLASSES))
    given = np.concatenate([answer, extra])
    said = np.bincount(given[given >= 0], minlength=len(CLASSES))
    there = present > 0
    f1 = 2 * right[there] / (present + said)[there]
    recall = np.where(there, right / np.maximum(present, 1), np.nan)
    missed = int((answer == MISSED).sum())
    return EndToEnd(len(truth), missed, len(extra), float((truth == answer).mean()), float(f1.mean()), recall)


def _check(truth: NDArray[np.int64], answer: NDArray[np.int64], extra: NDArray[np.int64]) -> None:
    if len(truth) != len(answer):
        raise StagewiseError(f"one prediction a label: {len(answer)} predictions for {len(truth)} labels.")
    for name, values, least in (("labels", truth, 0), ("predicted", answer, MISSED), ("false", extra, MISSED)):
        if len(values) and not least <= values.min() <= values.max() < len(CLASSES):
            raise StagewiseError(f"`{name}` must be classes from {least} to {len(CLASSES) - 1}, got {values.min()} to "
                                 f"{values.max()}.")  # fmt: skip
