"""Rows of a YOLO label file: ``class cx cy w h``, or ``class x1 y1 x2 y2 …`` for a polygon."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BadRowsError
from .boxes import from_corners, to_corners

TOO_SMALL = "too small"
ROUNDING = 1e-3  # how far outside the picture a coordinate may lie by rounding
BOX, POLYGON = 5, 7  # columns of a box; least columns of a polygon: three points
NO_CLASS = -1  # of an id that `data.yaml` does not name


class LabelRow(NamedTuple):
    """An object as a row says it; ``where`` is ``file:line``."""

    label: int
    corners: NDArray[np.float64]  # left, top, right, bottom as shares of the picture
    where: str

    def fault(self, picture_w_h: Sequence[int], min_px: float) -> str | None:
        """Why the row is no object of a picture of that size; None where it is one."""
        if self.label == NO_CLASS:
            return "of a class that data.yaml does not name"
        if not (self.corners >= -ROUNDING).all() or not (self.corners <= 1 + ROUNDING).all():
            return "outside the picture"
        sides = self.corners[2:] - self.corners[:2]
        if (sides <= 0).any():
            return "without area"
        return TOO_SMALL if (sides * np.asarray(picture_w_h) < min_px).any() else None

    def box(self) -> NDArray[np.float64]:
        """(4,) ``cx, cy, w, h``, inside the picture."""
        return from_corners(self.corners.clip(0, 1), (1, 1))[0]


def read_label_rows(path: str | Path, class_of_id: Sequence[int]) -> list[LabelRow]:
    """Reads one file.

    Args:
        path: of the file; a missing one is a picture without objects.
        class_of_id: class 0..8 of each id of ``data.yaml``.

    Raises:
        BadRowsError: a row that is neither box nor polygon, or holds no numbers; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a mark first
    except UnicodeDecodeError as error:
        raise BadRowsError(f"'{path}' is no text; write one row an object.") from error
    return [_row(line, f"{path}:{i}", class_of_id) for i, line in enumerate(lines, 1) if line.strip()]


def _row(line: str, where: str, class_of_id: Sequence[int]) -> LabelRow:
    tokens = line.split()
    if len(tokens) != BOX and (len(tokens) < POLYGON or len(tokens) % 2 == 0):
        raise BadRowsError(
            f"{where} has {len(tokens)} columns; write 'class cx cy w h', or 'class x1 y1 x2 y2 x3 y3 …' with at least "
            "three points."
        )
    try:
        label, numbers = float(tokens[0]), np.array([float(token) for token in tokens[1:]])
    except ValueError:
        raise BadRowsError(f"{where} holds something that is no number: '{line.strip()[:60]}'.") from None
    if not np.isfinite(numbers).all() or not math.isfinite(label):
        raise BadRowsError(f"{where} holds a number that is not finite; correct or remove the row.")
    if label != int(label):
        raise BadRowsError(f"{where} has class {tokens[0]}; write a whole number from 0 to {len(class_of_id) - 1}.")
    known = 0 <= label < len(class_of_id)
    return LabelRow(class_of_id[int(label)] if known else NO_CLASS, _corners(numbers), where)


def _corners(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(numbers) == BOX - 1:
        return to_corners(numbers, (1, 1))[0]
    points = numbers.reshape(-1, 2)
    return np.concatenate([points.min(0), points.max(0)])
