"""Where each picture was taken: a table, or a pattern on the file names."""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadRowsError, DatasetNotFoundError, SplitLeakError, StagewiseError
from .table import DrainTable

log = logging.getLogger(__name__)
DEFAULT_FILE = "locations.csv"
_REMEDY = "pass datamodule.locations.file=CSV (stem,location[,fold]) or datamodule.locations.pattern=REGEX with a group"
_MAX_NAMED = 10


def locate(
    table: DrainTable, root: str | Path, file: str | None = None, pattern: str | None = None
) -> tuple[DrainTable, dict[str, int] | None]:
    """Fills in the location of every picture.

    Args:
        table: without locations.
        root: the folder; ``locations.csv`` in it is used where neither file nor pattern is given.
        file: CSV with ``stem``, ``location`` and optionally ``fold``; relative to ``root``.
        pattern: regular expression searched in each stem; its first group is the location.

    Returns:
        The table, and the fold of each location where the CSV has that column.

    Raises:
        StagewiseError: both or none of them, a pattern without a group.
        DatasetNotFoundError: the CSV is not there.
        BadRowsError: it lacks a column or a picture, or the pattern misses one.
        SplitLeakError: the CSV puts a location into two folds.
    """
    if file and pattern:
        raise StagewiseError(f"`locations` has both a file and a pattern; {_REMEDY}, not both.")
    if pattern:
        return replace(table, location=_by_pattern(table.paths, pattern)), None
    path = Path(root) / (file or DEFAULT_FILE)
    if not path.is_file():
        if file:
            raise DatasetNotFoundError(f"no file locations.file='{path}'; {_REMEDY}.")
        raise StagewiseError(f"nothing says where the pictures under '{root}' were taken; {_REMEDY}.")
    places, folds = read_locations(path)
    stems = [Path(p).stem for p in table.paths]
    if missing := [stem for stem in stems if stem not in places]:
        raise BadRowsError(f"'{path}' lacks {len(missing)} picture(s): {_named(missing)}; add a row for each.")
    return replace(table, location=np.array([places[stem] for stem in stems], np.str_)), folds


def read_locations(path: Path) -> tuple[dict[str, str], dict[str, int] | None]:
    """Stem -> location, and location -> fold where the file has folds.

    Raises:
        BadRowsError: a column is missing or empty, a stem stands twice with two locations, a fold is no whole number.
        SplitLeakError: a location is in two folds.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    places: dict[str, str] = {}
    folds: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        stem, location = row.get("stem"), row.get("location")
        if not stem or not location:
            raise BadRowsError(f"{path}:{line} has no stem or no location; the columns are stem, location[, fold].")
        if places.setdefault(stem, location) != location:
            raise BadRowsError(f"{path}:{line}: '{stem}' is at '{places[stem]}' and at '{location}'; keep one row.")
        if "fold" in row:
            fold = _fold(row, f"{path}:{line}")
            if folds.setdefault(location, fold) != fold:
                raise SplitLeakError(f"{path}:{line}: '{location}' is in the folds {folds[location]} and {fold}.")
    return places, folds or None


def _fold(row: Mapping[str, Any], where: str) -> int:
    try:
        return int(row["fold"])
    except (TypeError, ValueError):
        raise BadRowsError(f"{where}: fold '{row['fold']}' is no whole number; number the folds from 0.") from None


def _by_pattern(paths: Sequence[str], pattern: str) -> np.ndarray[Any, np.dtype[np.str_]]:
    try:
        searched = re.compile(pattern)
    except re.error as error:
        raise StagewiseError(f"locations.pattern '{pattern}' is no regular expression: {error}.") from error
    if searched.groups < 1:
        raise StagewiseError(f"locations.pattern '{pattern}' has no group; put the location in (…).")
    found = [searched.search(Path(path).stem) for path in paths]
    missing = [Path(path).stem for path, match in zip(paths, found) if not match or not match[1]]
    if missing:
        raise BadRowsError(f"locations.pattern '{pattern}' misses {len(missing)} picture(s): {_named(missing)}.")
    return np.array([match[1] for match in found if match], np.str_)


def _named(stems: Sequence[str]) -> str:
    return ", ".join(f"'{stem}'" for stem in stems[:_MAX_NAMED]) + (", …" if len(stems) > _MAX_NAMED else "")
