"""Reads the table of a clinic; everything that is wrong with it is in one error."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .csv_rows import CsvRows, Faults, read_csv
from .features import ROLES, categories_of, feature_names, numbers_of
from .picture_rows import PictureRows
from .table import UNKNOWN, FusionTable

log = logging.getLogger(__name__)
_ARGUMENT = "datamodule.files.table"


def read_table(
    root: str | Path,
    files: Mapping[str, Any],
    columns: Mapping[str, Any],
    classes: Sequence[str],
    labelled: bool = True,
    like: Mapping[str, Any] | None = None,
) -> FusionTable:
    """Reads the rows, their pictures' headers and the boxes.

    Args:
        root: folder; pictures are relative to it.
        files: ``{table, boxes}``; boxes None shows the pictures whole.
        columns: ``{id, group, label, image, drop, categories}``; ``categories`` are numbers that are names.
        classes: K names, in their order.
        labelled: False for new rows: without label, group or picture a row is none the worse.
        like: schema whose columns are read, whatever the file looks like; one that the file has not is all missing.

    Raises:
        DatasetNotFoundError: a file is missing.
        BadRowsError: a column is missing, or rows cannot be used; names them all, up to ten, with ``file:line``.
    """
    path = Path(root) / files["table"]
    faults = Faults(path)
    rows = read_csv(path, [columns[role] for role in (ROLES if labelled else ("id",))], _ARGUMENT, faults)
    numbers, categories = _like(rows, like, columns) if like else feature_names(rows, columns, faults)
    values = numbers_of(rows, numbers, faults)
    ids, groups = rows.column(columns["id"]), rows.column(columns["group"])
    _check_names(rows, ids, groups if labelled else None, faults)
    label = _labels(rows, columns["label"], classes, labelled, faults)
    pictures = PictureRows(Path(root), rows, columns["image"], labelled, faults)
    if labelled:
        pictures.check_groups(groups)
    boxes = pictures.boxes(files["boxes"])
    if faults.found:
        pictures.decode()
    faults.refuse()
    names = categories_of(rows, categories)
    made = FusionTable.of(ids, groups, label, classes=classes, pictures=pictures.paths(), boxes=boxes)
    return made.with_columns(values, numbers, names, categories)


def _like(rows: CsvRows, like: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    known = [*like["number_names"], *like["category_names"]]
    if absent := [name for name in known if name not in rows.header]:
        log.warning("fusion: '%s' has no column %s: all missing", rows.path, ", ".join(absent))
    used = {*known, *columns["drop"], *(columns[role] for role in ROLES)}
    if extra := [name for name in rows.header if name not in used]:
        log.warning("fusion: the model does not know the column(s) %s of '%s'", ", ".join(extra), rows.path)
    return list(like["number_names"]), list(like["category_names"])


def _check_names(rows: CsvRows, ids: Sequence[str], groups: Sequence[str] | None, faults: Faults) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name:
            faults.add(rows.where(row), "has no id")
        elif first.setdefault(name, row) != row:
            faults.add(rows.where(row), f"id '{name}' is also in {rows.where(first[name])}")
        if groups is not None and not groups[row]:
            faults.add(rows.where(row), "has no group")


def _labels(rows: CsvRows, column: str, classes: Sequence[str], labelled: bool, faults: Faults) -> list[int]:
    number = {name: i for i, name in enumerate(classes)}
    labels = []
    for row, name in enumerate(rows.column(column)):
        labels.append(number.get(name, UNKNOWN))
        if labelled and name not in number:
            faults.add(rows.where(row), f"label '{name}' is none of {', '.join(classes)}")
    return labels
