"""``rows.csv``: what each modality said of each row, written by an evaluation and read where folds are pooled."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import DatasetNotFoundError, StagewiseError

FILE = "rows.csv"
_OWN = ("id", "group", "fold", "split", "label")
_RULE = "rule/"  # before the kind, in the names of columns


@dataclass(frozen=True)
class RowFile:
    """The rows of a file.

    Args:
        ids: (N,), and ``group``, ``fold`` (N,) as written.
        label: (N,) class.
        answers: modality -> (N, K).
        classes: K names.
        rules: kind -> (N, K), what each rule makes of the same rows; empty where the model is one modality.
    """

    ids: NDArray[np.str_]
    group: NDArray[np.str_]
    fold: NDArray[np.str_]
    label: NDArray[np.int64]
    answers: dict[str, NDArray[np.float64]]
    classes: tuple[str, ...]
    rules: dict[str, NDArray[np.float64]]


def write_rows(
    path: Path,
    rows: Mapping[str, Any],
    answers: Mapping[str, Any],
    classes: Sequence[str],
    fold: int,
    split: str,
    rules: Mapping[str, Any],
) -> None:
    """A line for each row: who, the truth, and of each modality and rule its answer and each class's probability.

    Args:
        path: of the CSV.
        rows: ``ids``, ``group``, ``label`` (N,).
        answers: modality -> (N, K).
        classes: K names.
        fold: that was left out of the training.
        split: that the rows are.
        rules: kind -> (N, K).
    """
    said = {**answers, **{f"{_RULE}{kind}": p for kind, p in rules.items()}}
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([*_OWN, *(f"{name}:{one}" for name in said for one in ("answer", *classes))])
        for i, (one, group, label) in enumerate(zip(rows["ids"], rows["group"], rows["label"])):
            cells = ((classes[p[i].argmax()], *(f"{value:.6f}" for value in p[i])) for p in said.values())
            lines.writerow([one, group, fold, split, classes[label], *(cell for own in cells for cell in own)])
    part.replace(path)


def read_rows(path: Path) -> RowFile:
    """Reads what :func:`write_rows` wrote.

    Raises:
        DatasetNotFoundError: no such file.
        StagewiseError: it is no such file, or has no rows.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"no '{path}'; the run has no evaluation of its test rows, run train.py to its end.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        header, lines = list(reader.fieldnames or []), list(reader)
    names = [name.removesuffix(":answer") for name in header if name.endswith(":answer")]
    if header[: len(_OWN)] != list(_OWN) or not names or not lines:
        raise StagewiseError(f"'{path}' is no {FILE} of an evaluation of fusion, or has no rows.")
    classes = tuple(h.removeprefix(f"{names[0]}:") for h in header if h.startswith(f"{names[0]}:"))[1:]
    said = {name: np.array([[float(line[f"{name}:{c}"]) for c in classes] for line in lines]) for name in names}
    answers = {name: p for name, p in said.items() if not name.startswith(_RULE)}
    rules = {name.removeprefix(_RULE): p for name, p in said.items() if name.startswith(_RULE)}
    ids, group, fold = (np.array([line[key] for line in lines], np.str_) for key in ("id", "group", "fold"))
    label = np.array([classes.index(line["label"]) for line in lines])
    return RowFile(ids, group, fold, label, answers, classes, rules)
