"""Boxes as YOLO writes them, where they lie in the picture, and what lies around them.

A box is ``cx, cy, w, h`` as shares of the picture's width and height. A type of -1 is one that is not known. What is
measured here never depends on the condition of any object.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .vocabulary import TYPES

Boxes = NDArray[np.float64]  # (N, 4)
POSITIONS = ("top", "middle", "bottom")
FEATURES = (
    "centre_x",
    "centre_y",
    "width",
    "height",
    "log_aspect",
    "area",
    *(f"others_{type}" for type in TYPES),
    "nearest_other",
    "covered",
    "others_above",
    "others_below",
    *(f"is_{type}" for type in TYPES),
)


def position_of(boxes: ArrayLike) -> NDArray[np.int64]:
    """(N, 4) boxes -> (N,) index into ``POSITIONS``, measured at the centre.

    >>> position_of([[0.5, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.5, 0.7, 0.1, 0.1]]).tolist()
    [0, 1, 2]
    """
    y = _boxes(boxes)[:, 1]
    return (y >= 0.33).astype(np.int64) + (y > 0.66)


def context_of(types: ArrayLike) -> NDArray[np.int64]:
    """Which types the other objects of a picture have.

    Args:
        types: (N,) of all objects of one picture.

    Returns:
        (N,) bit mask; bit ``t`` is set where an object other than this one has type ``t``.

    >>> context_of([3, 3, 0]).tolist(), context_of([2]).tolist()
    ([9, 9, 8], [0])
    """
    return ((_others(types) > 0) << np.arange(len(TYPES))).sum(1)


def box_features(boxes: ArrayLike, types: ArrayLike, picture_w_h: Sequence[float]) -> NDArray[np.float32]:
    """What a box and its neighbours say without a pixel; an object is never its own neighbour.

    Args:
        boxes: (N, 4) all objects of one picture.
        types: (N,) their types.
        picture_w_h: width and height of the picture, pixels.

    Returns:
        (N, F), in the order of ``FEATURES``. Distances are between centres, as shares of the picture's diagonal; 1
        where there is no other object. ``covered`` is the share of the box that other boxes cover.

    >>> lone = box_features([[0.5, 0.5, 0.2, 0.1]], [2], (300, 300))[0]
    >>> {name: round(float(x), 2) for name, x in zip(FEATURES, lone) if x}  # doctest: +NORMALIZE_WHITESPACE
    {'centre_x': 0.5, 'centre_y': 0.5, 'width': 0.2, 'height': 0.1, 'log_aspect': 0.69, 'area': 0.02,
     'nearest_other': 1.0, 'is_toe_drain': 1.0}
    """
    boxes, types = _boxes(boxes), np.asarray(types, np.int64).reshape(-1)
    size = np.asarray(picture_w_h, np.float64)
    below = boxes[:, None, 1] < boxes[None, :, 1]  # [i, j]: j lies below i
    columns = [
        boxes,
        np.log(boxes[:, 2] * size[0] / (boxes[:, 3] * size[1])),
        boxes[:, 2] * boxes[:, 3],
        _others(types),
        _nearest(boxes, size),
        _covered(boxes),
        below.sum(0),
        below.sum(1),
        types[:, None] == np.arange(len(TYPES)),
    ]
    return np.column_stack(columns).astype(np.float32)


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(N, 4) and (M, 4) boxes of the same picture -> (N, M) intersection over union.

    >>> iou([[0.5, 0.5, 0.2, 0.2]], [[0.6, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]).round(3).tolist()
    [[0.333, 0.0]]
    """
    first, second = to_corners(a, (1, 1))[:, None], to_corners(b, (1, 1))[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = sides.clip(0).prod(-1)
    areas = [(corners[..., 2:] - corners[..., :2]).prod(-1) for corners in (first, second)]
    return common / np.maximum(areas[0] + areas[1] - common, np.finfo(float).tiny)


def to_corners(boxes: ArrayLike, picture_w_h: Sequence[float]) -> NDArray[np.float64]:
    """(N, 4) boxes -> (N, 4) left, top, right, bottom in pixels, not rounded.

    >>> to_corners([[0.5, 0.5, 0.5, 0.2]], (200, 100)).tolist()
    [[50.0, 40.0, 150.0, 60.0]]
    """
    centre, side = np.split(_boxes(boxes) * np.tile(np.asarray(picture_w_h, np.float64), 2), 2, axis=1)
    return np.concatenate([centre - side / 2, centre + side / 2], 1)


def from_corners(corners: ArrayLike, picture_w_h: Sequence[float]) -> Boxes:
    """(N, 4) left, top, right, bottom in pixels -> (N, 4) boxes.

    >>> from_corners([[50, 40, 150, 60]], (200, 100)).round(6).tolist()
    [[0.5, 0.5, 0.5, 0.2]]
    """
    first, last = np.split(_boxes(corners) / np.tile(np.asarray(picture_w_h, np.float64), 2), 2, axis=1)
    return np.concatenate([(first + last) / 2, last - first], 1)


def _boxes(boxes: ArrayLike) -> Boxes:
    return np.asarray(boxes, np.float64).reshape(-1, 4)  # no boxes at all are (0, 4) too


def _others(types: ArrayLike) -> NDArray[np.int64]:
    """(N, types) how many other objects of the picture have each type."""
    own = np.asarray(types, np.int64).reshape(-1, 1) == np.arange(len(TYPES))
    return own.sum(0) - own


def _nearest(boxes: Boxes, size: NDArray[np.float64]) -> NDArray[np.float64]:
    centres = boxes[:, :2] * size / np.hypot(*size)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(apart, 1.0)  # a picture's diagonal: no other object can be farther
    return apart.min(1, initial=1.0)


def _covered(boxes: Boxes) -> NDArray[np.float64]:
    """(N,) share of each box inside the union of the others, exact: on the grid that all their edges make."""
    corners = to_corners(boxes, (1, 1))
    inside, lengths = [], []
    for axis in (0, 1):
        edges = np.unique(corners[:, [axis, axis + 2]])
        inside.append((corners[:, axis, None] <= edges[:-1]) & (edges[1:] <= corners[:, axis + 2, None]))
        lengths.append(np.diff(edges))
    cells = inside[1][:, :, None] & inside[0][:, None, :]  # (N, rows, columns)
    shared = cells & (cells.sum(0) > 1)  # another box too, as the box itself is one
    covered = np.einsum("nyx,y,x->n", shared.astype(np.float64), lengths[1], lengths[0])
    return covered / np.maximum(boxes[:, 2] * boxes[:, 3], np.finfo(float).tiny)
