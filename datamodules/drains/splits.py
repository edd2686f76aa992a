"""Grouped splits: a location is in one of them, or the run stops."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import SplitLeakError, StagewiseError
from .table import DrainTable
from .vocabulary import CLASS_NAMES

log = logging.getLogger(__name__)
METHODS = ("location", "folder")
NEW = "new"  # locations that a checkpoint did not know
_VAL_NAMES = ("valid", "validation")  # as other tools call it
_MAX_NAMED = 10
_TRIES = 2000


def make_splits(
    table: DrainTable,
    fold_of: Mapping[str, int] | None = None,
    *,
    method: str = "location",
    fold: int = 0,
    folds: int = 5,
    val_share: float = 0.15,
    seed: int = 0,
    leaky: bool = False,
) -> dict[str, DrainTable]:
    """Train, val and test.

    Args:
        table: with locations.
        fold_of: fold of each location; None makes them.
        method: ``location`` makes folds and ignores the folders; ``folder`` keeps the folders' splits.
        fold: that is the test; of the method ``location``.
        folds: how many are made where ``fold_of`` is None.
        val_share: of train's objects; val is cut from train by location, unless the folders have one.
        seed: of the folds and of val.
        leaky: says of the folders' splits that a location may be in two of them.

    Raises:
        StagewiseError: no such method, fold or share, no train, a class without an object in train, or a
            split without any.
        SplitLeakError: a location is in two of the folders' splits, and ``leaky`` is not said.
    """
    if method not in METHODS:
        raise StagewiseError(f"splits.method must be one of {', '.join(METHODS)}, got '{method}'.")
    if not 0 < val_share < 1:
        raise StagewiseError(f"splits.val_share must be a share between 0 and 1, got {val_share}.")
    table = _fold_splits(table, fold_of, fold, folds, seed) if method == "location" else _folder_splits(table, leaky)
    if "train" not in table.split:
        raise StagewiseError(
            f"no split 'train' in data.yaml, only {sorted(set(table.split))}; or splits.method=location."
        )
    if "val" not in table.split:
        table = _with_val(table, val_share, seed)
    made = by_name(table)
    _check_classes(made)
    return made


def by_name(table: DrainTable) -> dict[str, DrainTable]:
    """Split name -> its pictures, train and val first."""
    names = sorted(set(table.split.tolist()), key=lambda name: (name != "train", name != "val", name))
    return {name: table.subset(table.split == name) for name in names}


def split_by_lists(table: DrainTable, locations: Mapping[str, Sequence[str]]) -> dict[str, DrainTable]:
    """The splits of a checkpoint; pictures of locations that it did not know are the split ``new``.

    Args:
        table: with locations.
        locations: split -> its locations.

    >>> table = DrainTable.of([], [], [], ["a.jpg", "b.jpg"], [(8, 8), (8, 8)])
    >>> table = replace(table, location=np.array(["here", "there"]))
    >>> [(name, part.paths) for name, part in split_by_lists(table, {"train": ["here"]}).items()]
    [('train', ('a.jpg',)), ('new', ('b.jpg',))]
    """
    split_of = {location: name for name, own in locations.items() for location in own}
    chosen = np.array([split_of.get(location, NEW) for location in table.location], np.str_)
    if new := int((chosen == NEW).sum()):
        log.info("drains: %d pictures of locations that the checkpoint did not know are the split '%s'", new, NEW)
    return by_name(replace(_once(table), split=chosen[_first(table)]))


def locations_of(splits: Mapping[str, DrainTable]) -> dict[str, list[str]]:
    """Split -> its locations, as plain strings."""
    return {name: sorted(set(part.location.tolist())) for name, part in splits.items()}


def check_disjoint(table: DrainTable) -> None:
    """Refuses a location that is in two splits.

    Raises:
        SplitLeakError: names the first ten and the remedies.
    """
    pairs = sorted(set(zip(table.location.tolist(), table.split.tolist())))
    where: dict[str, list[str]] = {}
    for location, name in pairs:
        where.setdefault(location, []).append(name)
    shared = [f"'{location}' ({', '.join(names)})" for location, names in where.items() if len(names) > 1]
    if shared:
        raise SplitLeakError(
            f"{len(shared)} location(s) are in two splits of data.yaml: {', '.join(shared[:_MAX_NAMED])}. "
            "Use splits.method=location, or say splits.leaky=true and say so beside your figures."
        )


def _folder_splits(table: DrainTable, leaky: bool) -> DrainTable:
    names = np.where(np.isin(table.split, _VAL_NAMES), "val", table.split)
    table = replace(table, split=names)
    if not leaky:
        check_disjoint(table)
    else:
        log.warning("drains: splits.leaky=true: the folders' splits may share locations, so figures read too well")
    return table


def _fold_splits(table: DrainTable, fold_of: Mapping[str, int] | None, fold: int, folds: int, seed: int) -> DrainTable:
    table = _once(table)
    if fold_of is None:
        of_picture = _grouped_folds(table, folds, seed)
    else:
        of_picture = np.array([fold_of[location] for location in table.location])
    if fold not in of_picture:
        raise StagewiseError(f"splits.fold is {fold}, but the folds are {sorted(set(of_picture.tolist()))}.")
    return replace(table, split=np.where(of_picture == fold, "test", "train"))


def _first(table: DrainTable) -> NDArray[np.int64]:
    """Positions of the pictures, each file once: folders of two splits may be the same."""
    return np.sort(np.unique(np.array(table.paths, np.str_), return_index=True)[1])


def _once(table: DrainTable) -> DrainTable:
    return table.subset(_first(table))


def _grouped_folds(table: DrainTable, folds: int, seed: int) -> NDArray[np.int64]:
    """(P,) fold of each picture; locations stay whole, the classes are spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    places = len(set(table.location.tolist()))
    if not 2 <= folds <= places:
        raise StagewiseError(f"{folds} folds need 2 and at most as many as there are locations ({places}).")
    groups = table.location[table.picture]
    maker = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of: dict[str, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer objects than folds
        for number, (_, rows) in enumerate(maker.split(np.zeros(len(table)), table.label, groups)):
            fold_of.update(dict.fromkeys(groups[rows].tolist(), number))
    return np.array([fold_of.get(location, -1) for location in table.location])  # -1: no objects, so train


def _with_val(table: DrainTable, share: float, seed: int) -> DrainTable:
    train = table.subset(table.split == "train")
    places, of_picture = np.unique(train.location, return_inverse=True)
    counts = np.zeros((len(places), len(CLASS_NAMES)), np.int64)
    np.add.at(counts, (of_picture[train.picture], train.label), 1)
    cut = np.isin(table.location, places[_val_places(counts, share, seed)]) & (table.split == "train")
    return replace(table, split=np.where(cut, "val", table.split))


def _val_places(counts: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Of many random sets of locations the one that holds about the same share of every class.

    Folds would not do: their sizes follow from their number, and a few large locations leave them far from it.

    Args:
        counts: (locations, classes) objects.
        share: that val is to hold.
        seed: of the draws.
    """
    if len(counts) < 2:
        raise StagewiseError("train has one location, so no val can be cut from it; give data.yaml a `val`.")
    generator = np.random.default_rng(seed)
    orders = np.argsort(generator.random((_TRIES, len(counts))), axis=1)
    before = np.cumsum(counts.sum(1)[orders], axis=1) - counts.sum(1)[orders]
    taken = np.zeros((_TRIES, len(counts)), bool)
    np.put_along_axis(taken, orders, before < share * counts.sum() * generator.random((_TRIES, 1)), axis=1)
    in_val = taken @ counts  # (tries, classes)
    total = counts.sum(0)
    cost = np.abs(in_val / np.maximum(total, 1) - share).sum(1)
    cost += len(CLASS_NAMES) * ((in_val == total) & (total > 0)).sum(1)  # a class that train would lose
    return taken[cost.argmin()]


def _check_classes(splits: Mapping[str, DrainTable]) -> None:
    for name, part in splits.items():
        absent = [CLASS_NAMES[i] for i in np.flatnonzero(part.class_count == 0)]
        if absent and (name == "train" or not len(part)):
            raise StagewiseError(
                f"{name} has no object of {', '.join(absent)}; choose another splits.fold or seed, or add pictures."
            )
        if absent:
            log.warning("drains: %s has no object of %s", name, ", ".join(absent))
