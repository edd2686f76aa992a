"""Reads a YOLO folder into a table, and says what of it cannot be used."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ..errors import BadRowsError, DatasetNotFoundError
from ..images import find_images, why_unreadable
from .data_yaml import DataYaml, read_data_yaml
from .label_rows import TOO_SMALL, LabelRow, read_label_rows
from .table import DrainTable

log = logging.getLogger(__name__)
MAX_NAMED, MAX_WARNED = 10, 3
SUFFIXES = (".jpg", ".jpeg", ".png")
_EXIF_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
_EMPTY = "pictures without objects"
_NO_FAULT = (_EMPTY, f"boxes {TOO_SMALL}")


@dataclass(frozen=True)
class YoloFolder:
    """The objects of a folder and what was left out, by reason, as ``file:line`` or path.

    Args:
        table: all splits.
        notes: reason -> where; pictures without objects stay in the table, everything else was dropped.
    """

    table: DrainTable
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_yolo(root: str | Path, *, strict: bool = False, min_px: float = 4) -> YoloFolder:
    """Reads ``data.yaml``, the size of every picture and every label.

    Boxes are of the picture as its EXIF orientation turns it: so YOLO's own tools read it, and so it is shown.

    Args:
        root: folder with ``data.yaml``.
        strict: what cannot be used is an error instead of being dropped and counted. Boxes that are too small are
            dropped all the same.
        min_px: least side of a box.

    Raises:
        DatasetNotFoundError: ``data.yaml`` or a folder is missing, or there is no picture.
        BadRowsError: a label row that cannot be read; or, where ``strict``, anything that cannot be used.
    """
    described = read_data_yaml(root)
    reader = _Reader(described, min_px)
    for split, folders in described.folders.items():
        for folder in folders:
            reader.read_folder(split, folder)
    notes = {reason: tuple(where) for reason, where in reader.notes.items()}
    report(notes, strict)
    if not reader.paths:
        raise DatasetNotFoundError(
            f"no picture in the folders that '{Path(root) / 'data.yaml'}' names can be read; add {', '.join(SUFFIXES)}."
        )
    table = DrainTable.of(reader.boxes, reader.label, reader.picture, reader.paths, reader.sizes, reader.split)
    return YoloFolder(table, notes)


def report(notes: Mapping[str, Iterable[str]], strict: bool) -> None:
    """One warning line with counts and the first places, or one error.

    Raises:
        BadRowsError: ``strict``, and something was left out that is not merely small; names the first ten.
    """
    counted = {reason: list(where) for reason, where in notes.items()}
    faults = [w for reason, where in counted.items() if reason not in _NO_FAULT for w in where]
    lost = {reason: where for reason, where in counted.items() if where and reason != _EMPTY}
    told = ", ".join(f"{len(where)} {reason}" for reason, where in lost.items())
    if strict and faults:
        named = ", ".join(faults[:MAX_NAMED])
        raise BadRowsError(f"{told}: {named}. Correct or remove them, or set strict=false to drop and count them.")
    if told:
        some = ", ".join(faults[:MAX_WARNED]) + (", …" if len(faults) > MAX_WARNED else "")
        log.warning("drains: left out: %s%s", told, f": {some}; correct or remove them" if faults else "")
    if counted.get(_EMPTY):
        log.info("drains: %d %s, which stay", len(counted[_EMPTY]), _EMPTY)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height as EXIF turns the picture, from the header only.

    Raises:
        BadRowsError: missing, empty or no picture.
    """
    try:
        with Image.open(path) as image:
            # of a PNG without EXIF, `getexif` would decode the whole picture
            exif = image.getexif() if "exif" in image.info else {}
            turned = exif.get(_EXIF_ORIENTATION) in _QUARTER_TURNS
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadRowsError(f"'{path}': {why_unreadable(path)}; replace or remove the file.") from error


def label_path(picture: str | Path) -> Path:
    """The last folder called ``images`` becomes ``labels``; without one the label lies beside its picture.

    >>> label_path("set/images/train/a.jpg").as_posix()
    'set/labels/train/a.txt'
    """
    return _labels_of(Path(picture)).with_suffix(".txt")


def _labels_of(path: Path) -> Path:
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


class _Reader:
    """Collects the rows of a table, and what does not become one."""

    def __init__(self, described: DataYaml, min_px: float) -> None:
        self.class_of_id, self.min_px = described.class_of_id, min_px
        self.boxes: list[NDArray[np.float64]] = []
        self.label: list[int] = []
        self.picture: list[int] = []
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        self.split: list[str] = []
        self.notes: dict[str, list[str]] = {}

    def read_folder(self, split: str, folder: Path) -> None:
        pictures = [path for path in find_images(folder) if path.suffix.lower() in SUFFIXES]
        for path in tqdm(pictures, desc=f"reading {split}", leave=False, disable=len(pictures) < 1000):
            self.read_picture(split, path)
        wanted = {label_path(path) for path in pictures}
        found = (path for path in sorted(_labels_of(folder).rglob("*.txt")) if path.name != "classes.txt")
        for path in found:
            if path not in wanted:
                self.note("label files without picture", str(path))

    def read_picture(self, split: str, path: Path) -> None:
        rows = read_label_rows(label_path(path), self.class_of_id)
        try:
            size = picture_size(path)
        except BadRowsError:
            self.note("unreadable pictures", str(path))
            return
        kept = [row for row in rows if self.is_usable(row, size)]
        if not kept:
            self.note(_EMPTY, str(path))
        for row in kept:
            self.boxes.append(row.box())
            self.label.append(row.label)
            self.picture.append(len(self.paths))
        self.paths.append(path)
        self.sizes.append(size)
        self.split.append(split)

    def is_usable(self, row: LabelRow, size: tuple[int, int]) -> bool:
        if fault := row.fault(size, self.min_px):
            self.note(f"boxes {fault}", row.where)
        return fault is None

    def note(self, reason: str, where: str) -> None:
        self.notes.setdefault(reason, []).append(where)
