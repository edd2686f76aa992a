"""What a detector found in each picture, read from files: a folder of YOLO rows, or one JSON.

A source is asked picture by picture. Its files are read and checked as a whole when it is made, so a mistake in them
ends the run before the first picture.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from torch import Tensor

from ..errors import BadRowsError, DatasetNotFoundError, StagewiseError
from .detections_rows import Corners, Row, clipped, json_object, names_of_data_yaml, type_of_name, yolo_row
from .vocabulary import UNKNOWN

log = logging.getLogger(__name__)

_JSON_LAYOUT = (
    '[{"image": "a.jpg", "detections": [{"box": [left, top, right, bottom], "type": "toe drain", "score": 0.9}]}]'
)


@dataclass(frozen=True)
class Detection:
    """One object as a detector sees it.

    Attributes:
        box: left, top, right, bottom in pixels of the picture.
        type: one of ``TYPES``, or ``UNKNOWN``.
        score: of the detector, 0 to 1.
    """

    box: Corners
    type: str
    score: float = 1.0


class DetectionSource(Protocol):
    """Anything that says what is in a picture."""

    unknown: Counter[str]
    """Names seen so far that are no type of drains, with how many detections had them."""

    def detect(self, path: Path, picture: Tensor) -> list[Detection]:
        """The objects of one picture; ``picture`` is uint8 (3, H, W) in RGB, decoded from ``path``."""
        ...


def make_detections(rows: Iterable[Row], path: Path, picture: Tensor, unknown: Counter[str]) -> list[Detection]:
    """Clips boxes to the picture and names their types.

    Args:
        rows: box in pixels, name of the class, score.
        path: of the picture, for the log.
        picture: (..., H, W).
        unknown: counts the names that are no type.

    Returns:
        A detection a row, without those of which less than a pixel lies inside the picture; their count is logged.
    """
    height, width = picture.shape[-2:]
    found, lost = [], 0
    for box, name, score in rows:
        inside = clipped(box, width, height)
        if inside is None:
            lost += 1
            continue
        found.append(Detection(inside, type_of_name(name), score))
        unknown.update([name] if found[-1].type == UNKNOWN else [])
    if lost:
        log.warning("%s: %d detections left out: less than a pixel of them lies inside the picture", path.name, lost)
    return found


class YoloDetections:
    """A folder with a ``STEM.txt`` for each picture, as YOLO's ``save_txt`` writes it; a missing one says "nothing".

    A row is ``class cx cy w h`` or ``class x1 y1 x2 y2 x3 y3 …``, in shares of the picture, and may end with a score.

    Args:
        folder: the rows lie in it or in its ``labels``.
        names: of the classes by id, the nine or the four types; None for those of a ``data.yaml`` in or above the
            folder.

    Raises:
        DatasetNotFoundError: no such folder, or no ``.txt`` in it.
        StagewiseError: no names are given and there is no ``data.yaml``.
        BadRowsError: names file and line of a row that cannot be used.
    """

    def __init__(self, folder: str | Path, names: Sequence[str] | None = None) -> None:
        self.unknown: Counter[str] = Counter()
        rows = Path(folder, "labels") if Path(folder, "labels").is_dir() else Path(folder)
        files = sorted(path for path in rows.glob("*.txt") if path.name != "classes.txt")  # which labelImg writes
        if not files:
            raise DatasetNotFoundError(f"no .txt files in '{rows}'; pass the folder with one for each picture.")
        known = names_of_data_yaml(Path(folder)) if names is None else list(names)
        self._rows = {path.stem: _read_rows(path, known) for path in files}

    def detect(self, path: Path, picture: Tensor) -> list[Detection]:
        """The rows of the picture's file, by its stem."""
        height, width = picture.shape[-2:]
        rows = (
            ((left * width, top * height, right * width, bottom * height), name, score)
            for (left, top, right, bottom), name, score in self._rows.get(Path(path).stem, [])
        )
        return make_detections(rows, Path(path), picture, self.unknown)


def _read_rows(path: Path, names: Sequence[str]) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a mark first
    except UnicodeDecodeError as error:
        raise BadRowsError(f"'{path}' is no text; write one row a detection.") from error
    return [yolo_row(line, f"{path}:{number}", names) for number, line in enumerate(lines, 1) if line.strip()]


class JsonDetections:
    """One JSON: a list with an entry a picture, boxes in its pixels; a picture that is not named holds nothing.

    ``[{"image": "a.jpg", "detections": [{"box": [left, top, right, bottom], "type": "toe drain", "score": 0.9}]}]``.
    ``image`` is the picture's name, with as many of its folders as tell it from others. ``score`` may be missing.

    Args:
        file: the JSON.

    Raises:
        DatasetNotFoundError: no such file.
        StagewiseError: it is no JSON of this layout; names the entry.
    """

    def __init__(self, file: str | Path) -> None:
        self.unknown: Counter[str] = Counter()
        self._rows: dict[tuple[str, ...], list[Row]] = {}
        if not Path(file).is_file():
            raise DatasetNotFoundError(f"no file '{file}'; pass a JSON of detections.")
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise StagewiseError(f"'{file}' is no JSON: {error}; write {_JSON_LAYOUT}.") from error
        if not isinstance(content, list):
            raise StagewiseError(f"'{file}' has another layout; it must be {_JSON_LAYOUT}.")
        for number, entry in enumerate(content):
            self._add(entry, f"'{file}', entry {number}")

    def _add(self, entry: Any, where: str) -> None:
        named = isinstance(entry, Mapping) and isinstance(entry.get("image"), str)
        if not named or not isinstance(entry.get("detections"), list):
            raise StagewiseError(f"{where} has another layout; the file must be {_JSON_LAYOUT}.")
        key = PurePosixPath(entry["image"].replace("\\", "/")).parts
        if key in self._rows or not key:
            raise StagewiseError(f"{where}: `image` is '{entry['image']}'; it must name a picture, each only once.")
        self._rows[key] = [json_object(one, f"{where}, detection {i}") for i, one in enumerate(entry["detections"])]

    def detect(self, path: Path, picture: Tensor) -> list[Detection]:
        """The detections of the entry that names most of the picture's path."""
        parts = Path(path).parts
        keys = (parts[start:] for start in range(len(parts)))
        rows = next((self._rows[key] for key in keys if key in self._rows), [])
        return make_detections(rows, Path(path), picture, self.unknown)
