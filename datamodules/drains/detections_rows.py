"""Single detections as files write them: a row of YOLO, an entry of JSON, and the names of their classes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import BadRowsError, StagewiseError
from .vocabulary import CLASSES, UNKNOWN, parse_class, parse_type

Corners = tuple[float, float, float, float]  # left, top, right, bottom
Row = tuple[Corners, str, float]  # box, name of the class, score

_BOX, _POLYGON = 5, 7  # columns without a score; a polygon has at least three points
_FAR_OUTSIDE = 1.5  # no detection in shares is that far off: the row holds pixels


def type_of_name(name: str) -> str:
    """The type that a detector's class means: one of the four types, or of the nine classes without its condition.

    >>> type_of_name("Toe drain- Blocked"), type_of_name("rock_toe"), type_of_name("road")
    ('toe_drain', 'rock_toe', 'unknown')
    """
    kind = parse_type(name)
    if kind is not None:
        return kind
    try:
        return CLASSES[parse_class(name)].type
    except StagewiseError:
        return UNKNOWN


def clipped(box: Sequence[float], width: int, height: int) -> Corners | None:
    """The part of a box inside the picture, in pixels; None for less than a pixel.

    >>> clipped([-5, 10, 20, 30], 100, 100), clipped([100, 0, 110, 10], 100, 100)
    ((0.0, 10.0, 20.0, 30.0), None)
    """
    left, right = (min(max(float(x), 0.0), float(width)) for x in (box[0], box[2]))
    top, bottom = (min(max(float(y), 0.0), float(height)) for y in (box[1], box[3]))
    return (left, top, right, bottom) if right - left >= 1 and bottom - top >= 1 else None


def names_of_data_yaml(folder: Path) -> list[str]:
    """The class names, by id, of the ``data.yaml`` in a folder or in the one above.

    Raises:
        StagewiseError: there is none, or it has no names.
    """
    path = next((path for path in (folder / "data.yaml", folder.parent / "data.yaml") if path.is_file()), None)
    if path is None:
        raise StagewiseError(f"no data.yaml in or above '{folder}'; pass the detector's class names by id.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(names, Mapping) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise StagewiseError(f"'{path}' has no `names` from 0 without a gap; write the detector's class names there.")
    return [str(name) for name in names]


def yolo_row(line: str, where: str, names: Sequence[str]) -> Row:
    """Reads ``class cx cy w h``, or a polygon, with or without a score at the end; shares of the picture.

    Args:
        line: of the file.
        where: ``file:line``, for the error.
        names: of the classes by id.

    Raises:
        BadRowsError: another number of columns, no numbers, a class without a name, a score or box out of range.

    >>> yolo_row("1 0.5 0.5 0.2 0.5 0.75", "a.txt:1", ["rock_toe", "toe_drain"])
    ((0.4, 0.25, 0.6, 0.75), 'toe_drain', 0.75)
    """
    tokens = line.split()
    scored = len(tokens) == _BOX + 1 or (len(tokens) > _POLYGON and len(tokens) % 2 == 0)
    if len(tokens) - scored != _BOX and len(tokens) - scored < _POLYGON:
        raise BadRowsError(
            f"{where} has {len(tokens)} columns; write 'class cx cy w h', a score after it if there is one."
        )
    try:
        label, *numbers = (float(token) for token in tokens)
    except ValueError:
        raise BadRowsError(f"{where} holds something that is no number: '{line.strip()[:60]}'.") from None
    if label not in range(len(names)):
        raise BadRowsError(f"{where} has class {tokens[0]}; the names are given for 0 to {len(names) - 1}.")
    score = numbers.pop() if scored else 1.0
    if not 0 <= score <= 1:
        raise BadRowsError(f"{where} has the score {score}; it must lie between 0 and 1.")
    if not all(abs(number) < _FAR_OUTSIDE for number in numbers):
        raise BadRowsError(
            f"{where} is not in shares of the picture from 0 to 1; divide pixels by its width and height."
        )
    return _corners(numbers), names[int(label)], score


def _corners(numbers: Sequence[float]) -> Corners:
    if len(numbers) == _BOX - 1:
        cx, cy, w, h = numbers
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    x, y = numbers[::2], numbers[1::2]
    return min(x), min(y), max(x), max(y)


def json_object(entry: Any, where: str) -> Row:
    """Reads ``{"box": [left, top, right, bottom], "type": "toe drain", "score": 0.9}``; ``score`` may be missing.

    Raises:
        BadRowsError: a key is missing or holds something else.

    >>> json_object({"box": [1, 2, 30, 40], "type": "toe drain"}, "a.json, detection 0")
    ((1.0, 2.0, 30.0, 40.0), 'toe drain', 1.0)
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
        raise BadRowsError(f"{where} has no `type`; it must be a text such as 'toe drain'.")
    box, score = entry.get("box"), entry.get("score", 1.0)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise BadRowsError(f"{where}: `box` must be [left, top, right, bottom] in pixels, got {box!r}.")
    if box[2] <= box[0] or box[3] <= box[1]:
        raise BadRowsError(f"{where}: `box` {box} has no area; write [left, top, right, bottom], not width and height.")
    if not _is_number(score) or not 0 <= score <= 1:
        raise BadRowsError(f"{where}: `score` must lie between 0 and 1, got {score!r}.")
    left, top, right, bottom = (float(value) for value in box)
    return (left, top, right, bottom), entry["type"], float(score)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
