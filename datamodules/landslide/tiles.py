"""The tiles of a split: which windows of which areas, and how many labelled pixels of each class they hold."""

import csv
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .prepared import PreparedArea, Window
from .spatial_splits import SpatialSplits

REAL, SYNTHETIC = "real", "synthetic"
CHUNK_PX = 1024  # side of what is read at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileTable:
    """Square windows of one split, one row each.

    Args:
        split: whose pixels are labelled; all others are to be ignored.
        tile_px: side of a tile.
        area: (N,) name of the area.
        row: (N,) first row of the window, which may leave the area.
        col: (N,) first column.
        counts: (N,K) labelled pixels of each class, of this split.
        id: (N,) unique name.
        source: (N,) ``real`` or ``synthetic``; the place of a synthetic tile is that of its first parent.
        parents: (N,2) ids of a synthetic tile's parents, empty for a real one.

    Raises:
        StagewiseError: an id twice.
    """

    split: str
    tile_px: int
    area: NDArray[np.str_]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    counts: NDArray[np.int64]
    id: NDArray[np.str_]
    source: NDArray[np.str_]
    parents: NDArray[np.str_]

    def __post_init__(self) -> None:
        names, times = np.unique(self.id, return_counts=True)
        if len(names) < len(self.id):
            raise StagewiseError(
                f"the tile id '{names[times > 1][0]}' is there {times.max()} times; ids must be unique."
            )

    def __len__(self) -> int:
        return len(self.id)

    def window(self, index: int) -> Window:
        """Window of a real tile."""
        return int(self.row[index]), int(self.col[index]), self.tile_px, self.tile_px

    def with_synthetic(
        self, ids: Sequence[str], parents: Sequence[tuple[str, str]], counts: NDArray[np.int64]
    ) -> "TileTable":
        """This table and, behind its rows, synthetic tiles.

        Args:
            ids: (M,) new names.
            parents: (M,) ids of both parents.
            counts: (M,K) pixels of each class.

        Raises:
            StagewiseError: a split that is not train, a parent that is no tile of this table, or an id twice.
        """
        if self.split != "train":
            raise StagewiseError(f"synthetic tiles are for train only, not for {self.split}.")
        place = {name: i for i, name in enumerate(self.id)}
        unknown = [name for pair in parents for name in pair if name not in place]
        if unknown:
            raise StagewiseError(f"the parents {unknown[:5]} of synthetic tiles are no train tiles.")
        at = np.array([place[first] for first, _ in parents], np.int64)
        return replace(
            self,
            area=np.concatenate([self.area, self.area[at]]),
            row=np.concatenate([self.row, self.row[at]]),
            col=np.concatenate([self.col, self.col[at]]),
            counts=np.concatenate([self.counts, np.reshape(counts, (-1, self.counts.shape[1]))]),
            id=np.concatenate([self.id, np.array(ids, np.str_)]),
            source=np.concatenate([self.source, np.full(len(ids), SYNTHETIC)]),
            parents=np.concatenate([self.parents, np.reshape(np.array(parents, np.str_), (-1, 2))]),
        )

    def write_csv(self, path: str | Path) -> None:
        """Writes a row a tile, for people to look at."""
        classes = [f"class_{k + 1}" for k in range(self.counts.shape[1])]
        part = Path(f"{path}.{os.getpid()}.part")  # runs at once share the folder
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["id", "split", "area", "row", "col", "tile_px", *classes, "source", "parent_1", "parent_2"]
            )
            for i, count in enumerate(self.counts.tolist()):
                place = (self.area[i], self.row[i], self.col[i], self.tile_px)
                writer.writerow([self.id[i], self.split, *place, *count, self.source[i], *self.parents[i]])
        os.replace(part, path)


def train_tiles(
    areas: Mapping[str, PreparedArea], splits: SpatialSplits, tile_px: int, stride_px: int, min_labelled: int = 1
) -> TileTable:
    """Windows on a grid that hold pixels labelled in train; they overlap where the stride is less than the tile.

    Args:
        areas: name -> area.
        splits: of the areas.
        tile_px: side of a tile.
        stride_px: from one window to the next.
        min_labelled: pixels of train that a window must hold.

    Raises:
        StagewiseError: no such window, a stride that leaves gaps, or a label that is no class.
        SplitLeakError: a window reaches into another split.
    """
    if not 0 < stride_px <= tile_px:
        raise StagewiseError(f"`stride_px` must be 1 to `tile_px`={tile_px}, or pixels are left out; got {stride_px}.")
    return _tiles(areas, splits, "train", tile_px, stride_px, min_labelled)


def eval_tiles(areas: Mapping[str, PreparedArea], splits: SpatialSplits, split: str, tile_px: int) -> TileTable:
    """Windows side by side that hold each labelled pixel of a split exactly once.

    Args:
        areas: name -> area.
        splits: of the areas.
        split: ``val``, ``calibration``, ``test``, or ``train`` to score that too.
        tile_px: side of a tile.

    Raises:
        StagewiseError: no such window, or a label that is no class.
        SplitLeakError: a window reaches into another split.
    """
    return _tiles(areas, splits, split, tile_px, tile_px, 1)


def label_counts(area: PreparedArea, cell_px: int, classes: int) -> NDArray[np.int64]:
    """Labelled pixels of each class in each square cell; a piece of the raster is in memory at a time.

    Args:
        area: with labels or without.
        cell_px: side of a cell.
        classes: K.

    Returns:
        (R,C,K) with R and C rounded up.

    Raises:
        StagewiseError: a label that is no class.
    """
    shape = (-(-area.height // cell_px), -(-area.width // cell_px), classes)
    counts, cells = np.zeros(shape, np.int64), max(1, CHUNK_PX // cell_px)
    for top in range(0, shape[0] if area.has_labels else 0, cells):
        for left in range(0, shape[1], cells):
            here = counts[top : top + cells, left : left + cells]
            size = here.shape[0] * cell_px, here.shape[1] * cell_px
            labels = _read(area, (top * cell_px, left * cell_px, *size), classes)
            row, col = np.nonzero(labels >= 0)
            place = (row // cell_px * here.shape[1] + col // cell_px) * classes + labels[row, col]
            here += np.bincount(place, minlength=here.size).reshape(here.shape)
    return counts


def _tiles(
    areas: Mapping[str, PreparedArea], splits: SpatialSplits, split: str, tile_px: int, stride_px: int, least: int
) -> TileTable:
    found = [
        (name, row, col, count)
        for name, area in areas.items()
        if area.has_labels
        for row, col, count in _windows(area, splits, split, tile_px, stride_px)
        if count.sum() >= least
    ]
    if not found:
        raise StagewiseError(
            f"no window of {tile_px} pixels in {sorted(areas)} holds {least} labelled pixels of {split}."
        )
    names, rows, cols, counts = zip(*found)
    ids = [f"{name}_r{row}_c{col}" for name, row, col in zip(names, rows, cols)]
    table = TileTable(
        split,
        tile_px,
        *(np.array(names), np.array(rows, np.int64), np.array(cols, np.int64), np.stack(counts)),
        np.array(ids),
        np.full(len(found), REAL),
        np.full((len(found), 2), ""),
    )
    splits.check_tiles(table)
    log.info("%d %s tiles; labelled pixels of each class: %s", len(table), split, table.counts.sum(axis=0).tolist())
    return table


def _windows(
    area: PreparedArea, splits: SpatialSplits, split: str, side: int, stride: int
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Each window on the grid: first row, first column, (K,) labelled pixels of the split."""
    left = _starts(area.width, side, stride)
    for top in _starts(area.height, side, stride).tolist():
        strip = (top, 0, side, int(left[-1]) + side)
        own = splits.mask(area.name, strip, split)
        if own.any():
            labels = np.where(own, _read(area, strip, splits.classes), -1)
            columns = np.stack([(labels == k).sum(axis=0) for k in range(splits.classes)])
            total = np.pad(columns.cumsum(axis=1), ((0, 0), (1, 0)))
            for col, count in zip(left.tolist(), (total[:, left + side] - total[:, left]).T):
                yield top, col, count


def _starts(length: int, side: int, stride: int) -> NDArray[np.int64]:
    return np.arange(0, max(length - side, 0) + stride, stride)


def _read(area: PreparedArea, window: Window, classes: int) -> NDArray[np.int64]:
    labels = area.read_labels(window)
    if labels.max() >= classes:
        raise StagewiseError(
            f"labels.tif of area '{area.name}' holds the value {labels.max() + 1}, but its classes are 1 to {classes} "
            "and 0 is none; make the labels again with the right list of classes."
        )
    return labels
