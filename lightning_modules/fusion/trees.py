"""A fitted scikit-learn forest as plain arrays.

A pickle would run code when it is loaded, and skops took 6 s and 15 MB for 500 trees, tied to one version of
scikit-learn. The arrays take a tenth of that, load in a moment and mean the same for ever.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Packed = dict[str, Tensor]  # left, right, feature, threshold (M,); share (M, K); root (T,)


def pack(forest: Any, columns: int) -> Packed:
    """The trees of a ``RandomForestClassifier``, one behind the other.

    Args:
        forest: fitted; its classes are some of ``0 .. columns - 1``.
        columns: K; a class that the forest never saw has share 0.

    Returns:
        ``left`` and ``right`` (M,) number of the child, a leaf is its own; ``feature``, ``threshold`` (M,); ``share``
        (M, K) of the classes; ``root`` (T,).
    """
    trees = [one.tree_ for one in forest.estimators_]
    root = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
    share = np.concatenate([tree.value[:, 0, :] for tree in trees])
    placed = np.zeros((len(share), columns))
    placed[:, np.asarray(forest.classes_, np.int64)] = share / share.sum(1, keepdims=True)
    joined = {name: [getattr(tree, name) for tree in trees] for name in ("feature", "threshold")}
    return {
        "left": _numbers([_child(tree.children_left, at) for tree, at in zip(trees, root)], np.int32),
        "right": _numbers([_child(tree.children_right, at) for tree, at in zip(trees, root)], np.int32),
        "feature": _numbers([np.maximum(one, 0) for one in joined["feature"]], np.int16),
        "threshold": _numbers(joined["threshold"], np.float64),
        "share": torch.from_numpy(placed.astype(np.float32)),
        "root": torch.from_numpy(root.astype(np.int32)),
    }


def _child(child: NDArray[np.int64], root: int) -> NDArray[np.int64]:
    own = np.arange(len(child))
    return np.where(child < 0, own, child) + root


def _numbers(parts: list[NDArray[Any]], kind: type) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(kind))


def shares(packed: Packed, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, F) -> (N, K) mean share of the classes over all trees, as ``predict_proba`` gives it."""
    array = {name: value.numpy() for name, value in packed.items()}
    node = np.repeat(array["root"][None], len(features), 0)  # (N, T)
    row = np.arange(len(features))[:, None]
    while True:
        goes_left = features[row, array["feature"][node]] <= array["threshold"][node]
        after = np.where(goes_left, array["left"][node], array["right"][node])
        if (after == node).all():
            return array["share"][node].mean(1, dtype=np.float64)  # type: ignore[no-any-return]
        node = after
