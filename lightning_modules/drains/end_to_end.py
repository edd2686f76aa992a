"""The score from the detector on: an object that was not found is wrong, a detection of nothing is a false one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.drains.boxes import to_corners
from ...datamodules.drains.detections import Detection, DetectionSource
from ...datamodules.drains.vocabulary import TYPES, UNKNOWN, class_of
from ...datamodules.images import read_image
from .matching import MISSED, match_boxes
from .scores import NOTHING, Counts, confusions
from .serving import classify

if TYPE_CHECKING:
    from .module import DrainModule


def end_to_end(module: "DrainModule", table: Any, detector: DetectionSource) -> Counts:
    """Detects, classifies and matches (one to one, of the same type, overlap from 0.5) picture by picture.

    Args:
        module: in eval mode, on its device.
        table: pictures and true objects, a ``DrainTable``.
        detector: says where the objects are.

    Returns:
        (P, 10, 10) of :func:`~.scores.confusions`: a missed object stands in the last column, a detection that stands
        for no object in the last row.
    """
    rows: list[NDArray[np.int64]] = []
    for number, (path, own) in enumerate(zip(table.paths, table.objects_of(), strict=True)):
        pixels = read_image(Path(path))
        found = detector.detect(Path(path), pixels)
        said = np.array([_class_of(one) for one in classify(module, pixels, found)], np.int64)
        corners = to_corners(table.boxes[own], (pixels.shape[-1], pixels.shape[-2]))
        label, answer = _paired(table.label[own], table.types[own], corners, found, said)
        rows.append(np.stack([label, answer, np.full(len(label), number)]))
    label, answer, picture = np.concatenate(rows, axis=1)
    return confusions(label, answer, picture)


def _class_of(described: dict[str, Any]) -> int:
    return NOTHING if described["type"] == UNKNOWN else class_of(described["type"], described["condition"])


def _paired(
    label: NDArray[np.int64],
    types: NDArray[np.int64],
    corners: NDArray[np.float64],
    found: list[Detection],
    said: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each object and of each false detection of a picture: the truth, and what was said."""
    kinds = [-1 if one.type == UNKNOWN else TYPES.index(one.type) for one in found]
    boxes = np.array([one.box for one in found], np.float64).reshape(-1, 4)
    matches = match_boxes(corners, types, boxes, kinds, [one.score for one in found])
    answers = np.where(matches.detection == MISSED, NOTHING, np.append(said, NOTHING)[matches.detection])
    false = np.full(len(matches.false), NOTHING)
    return np.concatenate([label, false]), np.concatenate([answers, said[matches.false]])
