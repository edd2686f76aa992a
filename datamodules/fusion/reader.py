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
    needed = [columns[role] for role in (("id", "group", "label") if labelled else ("id",))]
    rows = read_csv(path, needed, "datamodule.files.table" if labelled else "input", faults)
    if columns["image"] not in rows.header:
        log.warning("fusion: '%s' has no column '%s' (columns.image): no row has a picture", path, columns["image"])
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
    exact = {name: i for i, name in enumerate(classes)}
    loose = {_plain(name): i for i, name in enumerate(classes)}
    if len(loose) < len(exact):
        loose = {}  # letters or spaces tell classes apart
    labels = []
    for row, name in enumerate(rows.column(column)):
        labels.append(exact.get(name, loose.get(_plain(name), UNKNOWN)))
        if labelled and labels[-1] == UNKNOWN:
            told = f"label '{name}' is none of datamodule.classes: {', '.join(classes)}"
            faults.add(rows.where(row), told if name else "has no label")
    return labels


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
