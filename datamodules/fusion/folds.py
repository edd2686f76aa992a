"""Grouped folds: a patient is in one split, or the run stops."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SplitLeakError, StagewiseError
from .table import FusionTable

log = logging.getLogger(__name__)
METHODS = ("group", "row")
SPLITS = ("train", "val", "test")
NEW = "new"  # rows of patients that a checkpoint did not know
_MAX_NAMED = 10


def make_splits(
    table: FusionTable,
    *,
    fold: int = 0,
    folds: int = 3,
    seed: int = 0,
    val_share: float = 0.2,
    by: str = "group",
) -> dict[str, FusionTable]:
    """Train, val and test, stratified by class.

    Args:
        table: with labels.
        fold: that is the test.
        folds: how many there are.
        seed: of the folds and of val.
        val_share: about which share of the rows outside the fold is val.
        by: ``group`` keeps a patient whole; ``row`` does not, which flatters: only to measure how much.

    Raises:
        StagewiseError: no such method, fold or share, fewer groups than folds, or a split without a class.
        SplitLeakError: a group is in two splits.
    """
    check_options(fold=fold, folds=folds, val_share=val_share, by=by)
    if (groups := len(set((table.group if by == "group" else table.ids).tolist()))) < folds:
        raise StagewiseError(f"splits.folds is {folds}, but there are {groups} {by}s; take at most as many.")
    group = table.group if by == "group" else table.ids
    if by == "row":
        log.warning("fusion: splits.by=row: rows of a patient are in several splits, so figures read too well")
    test = grouped_folds(table.label, group, folds, seed)[fold]
    rest = np.setdiff1d(np.arange(len(table)), test)
    val = rest[_val(table.label[rest], group[rest], val_share, seed, len(table.classes))]
    rows = {"train": np.setdiff1d(rest, val), "val": val, "test": test}
    made = {name: table.subset(rows[name]) for name in SPLITS}
    if by == "group":
        check_disjoint(made)
    check_classes(made, fold)
    return made


def split_by_ids(table: FusionTable, ids: Mapping[str, Sequence[str]], leaky: bool = False) -> dict[str, FusionTable]:
    """The splits of a checkpoint; rows that it did not know are the split ``new``.

    New rows of patients that it did know are left out: they belong to no split without a leak.

    Args:
        table: rows.
        ids: split -> ids of its rows.
        leaky: the checkpoint's splits share patients.

    Raises:
        SplitLeakError: a patient of the table is in two of the splits.

    >>> table = FusionTable.of(["a", "b", "c"], ["p", "p", "q"], [0, 0, 0], classes=["L"])
    >>> {name: part.ids.tolist() for name, part in split_by_ids(table, {"train": ["a"]}).items()}
    {'train': ['a'], 'new': ['c']}
    """
    split_of = {name: split for split, own in ids.items() for name in own}
    chosen = np.array([split_of.get(name, NEW) for name in table.ids.tolist()], np.str_)
    known = set(table.group[chosen != NEW].tolist()) - {""}
    again = (chosen == NEW) & np.isin(table.group, sorted(known))
    if again.any() and not leaky:
        log.warning("fusion: %d new row(s) of patients that the checkpoint knew are left out", again.sum())
        chosen = np.where(again, "", chosen)
    made = {name: table.subset(chosen == name) for name in (*ids, NEW) if (chosen == name).any()}
    if NEW in made:
        log.info("fusion: %d rows that the checkpoint did not know are the split '%s'", len(made[NEW]), NEW)
    if not leaky:
        check_disjoint(made)
    return made


def ids_of(splits: Mapping[str, FusionTable]) -> dict[str, list[str]]:
    """Split -> ids of its rows, as plain strings."""
    return {name: part.ids.tolist() for name, part in splits.items()}


def check_disjoint(splits: Mapping[str, FusionTable]) -> None:
    """Refuses a patient that is in two splits.

    Raises:
        SplitLeakError: names the first ten and the remedy.
    """
    where: dict[str, list[str]] = {}
    for name, part in splits.items():
        for group in sorted(set(part.group.tolist())):
            where.setdefault(group, []).append(name)
    shared = [f"'{group}' ({', '.join(names)})" for group, names in where.items() if len(names) > 1]
    if shared:
        raise SplitLeakError(
            f"{len(shared)} patient(s) are in two splits: {', '.join(shared[:_MAX_NAMED])}. "
            "Put each into one, or correct the group column of the table."
        )


def check_classes(splits: Mapping[str, FusionTable], fold: int) -> None:
    """Refuses a split without a class.

    Raises:
        StagewiseError: names fold, split, class and remedy.
    """
    for name, part in splits.items():
        absent = [part.classes[i] for i in np.flatnonzero(part.class_count == 0)]
        if absent:
            raise StagewiseError(
                f"fold {fold}: {name} has no row of the class {', '.join(absent)}; take fewer datamodule.splits.folds, "
                "another splits.seed or val_share, or leave the class out of datamodule.classes and of the table."
            )


def grouped_folds(labels: NDArray[np.int64], groups: NDArray[Any], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Of each fold its rows, ascending; groups stay whole and the classes are spread evenly.

    Args:
        labels: (N,) classes.
        groups: (N,) patients.
        folds: as many or fewer where there are not so many groups.
        seed: of the draw.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, min(folds, len(np.unique(groups)), int(np.bincount(labels).max())))
    maker = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds
        return [rows for _, rows in maker.split(np.zeros(len(labels)), labels, groups)]


def _val(labels: NDArray[np.int64], groups: NDArray[Any], share: float, seed: int, classes: int) -> NDArray[np.int64]:
    """Of the inner folds the one whose class counts are nearest to the share."""
    total = np.bincount(labels, minlength=classes)

    def cost(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(labels[rows], minlength=classes)
        return float(np.abs(counts / np.maximum(total, 1) - share).sum())

    return min(grouped_folds(labels, groups, round(1 / share), seed), key=cost)


def check_options(*, fold: int, folds: int, val_share: float, by: str, seed: int = 0) -> None:
    """Refuses options of :func:`make_splits` that no table could be split by.

    Raises:
        StagewiseError: names the argument and the value.
    """
    if by not in METHODS:
        raise StagewiseError(f"splits.by must be one of {', '.join(METHODS)}, got '{by}'.")
    if not 0 < val_share <= 0.5:
        raise StagewiseError(f"splits.val_share must be a share above 0 and at most 0.5, got {val_share}.")
    if not isinstance(folds, int) or folds < 2:
        raise StagewiseError(f"splits.folds must be a whole number of at least 2, got {folds}.")
    if not isinstance(fold, int) or not 0 <= fold < folds:
        raise StagewiseError(f"datamodule.fold must be a number from 0 to {folds - 1}, got {fold}.")
