"""Columns that give the label away."""

import logging

import numpy as np
from numpy.typing import NDArray

from .folds import grouped_folds
from .table import FusionTable

log = logging.getLogger(__name__)
_FOLDS = 5
_TELLING = 0.98  # balanced accuracy out of fold; not 1: between the rows of a threshold there is a gap


def telling_columns(table: FusionTable) -> list[str]:
    """Columns each of which alone predicts the label out of fold, all but perfectly.

    Args:
        table: with labels.

    Returns:
        Names, in the order of the columns.
    """
    if len(table) < 2 * _FOLDS or len(set(table.group.tolist())) < 2 or (table.class_count > 0).sum() < 2:
        return []
    codes = [np.unique(np.char.lower(column), return_inverse=True)[1] for column in table.categories.T]
    columns = dict(zip(table.number_names, table.numbers.T))
    columns |= {name: code.astype(np.float64) for name, code in zip(table.category_names, codes)}
    folds = grouped_folds(table.label, table.group, _FOLDS, seed=0)
    return [name for name, column in columns.items() if _skill(column, table.label, folds) >= _TELLING]


def warn_of_leaks(table: FusionTable) -> list[str]:
    """Logs a warning for each of :func:`telling_columns`, with the remedy; returns their names."""
    found = telling_columns(table)
    for name in found:
        log.warning(
            "fusion: leak suspected: the column '%s' alone predicts the label all but perfectly; if it is not known "
            "before the label, pass datamodule.columns.drop=[%s]",
            *(name, name),
        )
    return found


def _skill(column: NDArray[np.float64], label: NDArray[np.int64], folds: list[NDArray[np.int64]]) -> float:
    """Balanced accuracy of a tree on one column, each row answered by a tree that did not see its group.

    Of a column that does not tell only an upper bound: once it is too low, no further tree is grown.
    """
    from sklearn.tree import DecisionTreeClassifier

    if len(np.unique(column)) < 2:
        return 0.0
    right, bound = np.ones(len(label), bool), 1.0
    for rows in folds:
        seen = np.setdiff1d(np.arange(len(label)), rows)
        tree = DecisionTreeClassifier(random_state=0).fit(column[seen, None], label[seen])
        right[rows] = tree.predict(column[rows, None]) == label[rows]
        bound = float(np.mean([right[label == one].mean() for one in np.unique(label)]))
        if bound < _TELLING:
            break
    return bound
