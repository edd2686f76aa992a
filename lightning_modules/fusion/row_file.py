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


@dataclass(frozen=True)
class RowFile:
    """The rows of a file.

    Args:
        ids: (N,), and ``group``, ``fold`` (N,) as written.
        label: (N,) class.
        answers: modality -> (N, K).
        classes: K names.
    """

    ids: NDArray[np.str_]
    group: NDArray[np.str_]
    fold: NDArray[np.str_]
    label: NDArray[np.int64]
    answers: dict[str, NDArray[np.float64]]
    classes: tuple[str, ...]


def write_rows(
    path: Path, rows: Mapping[str, Any], answers: Mapping[str, Any], classes: Sequence[str], fold: int, split: str
) -> None:
    """A line for each row: who, the truth, and of each modality its answer and the probability of each class.

    Args:
        path: of the CSV.
        rows: ``ids``, ``group``, ``label`` (N,).
        answers: modality -> (N, K).
        classes: K names.
        fold: that was left out of the training.
        split: that the rows are.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([*_OWN, *(f"{name}:{one}" for name in answers for one in ("answer", *classes))])
        for i, (one, group, label) in enumerate(zip(rows["ids"], rows["group"], rows["label"])):
            said = ((classes[p[i].argmax()], *(f"{value:.6f}" for value in p[i])) for p in answers.values())
            lines.writerow([one, group, fold, split, classes[label], *(cell for part in said for cell in part)])
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
    answers = {name: np.array([[float(line[f"{name}:{c}"]) for c in classes] for line in lines]) for name in names}
    ids, group, fold = (np.array([line[key] for line in lines], np.str_) for key in ("id", "group", "fold"))
    return RowFile(ids, group, fold, np.array([classes.index(line["label"]) for line in lines]), answers, classes)
