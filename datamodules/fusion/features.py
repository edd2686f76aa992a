"""Which columns are numbers and which are names."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadRowsError
from .csv_rows import CsvRows, Faults

log = logging.getLogger(__name__)
_MOSTLY = 0.8  # of a column that is numbers but for a few cells, or for its decimal commas, somebody must hear
ROLES = ("id", "group", "label", "image")


def feature_names(rows: CsvRows, columns: Mapping[str, Any], faults: Faults) -> tuple[list[str], list[str]]:
    """Names of the number columns and of the category columns, in the file's order.

    A column is of numbers if all its cells are that are not empty. Id, group, label, image and ``drop`` are no
    features, and a column without any value is none.

    Args:
        rows: of the file.
        columns: ``{id, group, label, image, drop, categories}``.
        faults: takes numbers that are not finite.

    Raises:
        BadRowsError: ``drop`` or ``categories`` name a column that is not there.
    """
    for argument in ("drop", "categories"):
        if absent := [name for name in columns[argument] if name not in rows.header]:
            raise BadRowsError(
                f"datamodule.columns.{argument} names {absent}, but '{rows.path}' has {', '.join(rows.header)}."
            )
    out = {columns[role] for role in ROLES} | set(columns["drop"])
    numbers, categories = [], []
    for name in (name for name in rows.header if name not in out):
        given = {cell for cell in rows.column(name) if cell}
        if not given:
            log.warning("fusion: the column '%s' is empty and left out", name)
        elif name not in columns["categories"] and _is_numeric(name, rows, faults):
            numbers.append(name)
        else:
            categories.append(name)
    return numbers, categories


def _is_numeric(name: str, rows: CsvRows, faults: Faults) -> bool:
    cells = [(i, cell) for i, cell in enumerate(rows.column(name)) if cell]
    words = [(i, cell) for i, cell in cells if _number(cell) is None]
    if words:
        if np.mean([_number(cell.replace(",", ".")) is not None for _, cell in cells]) >= _MOSTLY:
            row, cell = words[0]
            log.warning(
                "fusion: the column '%s' counts as categories, since %d of %d cells are no numbers, first '%s' in %s",
                *(name, len(words), len(cells), cell, rows.where(row)),
            )
        return False
    return True


def numbers_of(rows: CsvRows, names: Sequence[str], faults: Faults) -> NDArray[np.float64]:
    """(N, Fn) cells as numbers, NaN where missing; what is no finite number is a fault."""
    values = np.full((len(rows), len(names)), np.nan)
    for column, name in enumerate(names):
        for row, cell in enumerate(rows.column(name)):
            if cell:
                number = _number(cell)
                if number is None or not math.isfinite(number):
                    faults.add(rows.where(row), f"{name} '{cell}' is no number")
                else:
                    values[row, column] = number
    return values


def categories_of(rows: CsvRows, names: Sequence[str]) -> NDArray[np.str_]:
    """(N, Fc) cells as they are, "" where missing."""
    if not names:
        return np.zeros((len(rows), 0), "U1")
    return np.stack([np.asarray(rows.column(name), np.str_) for name in names], 1)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
