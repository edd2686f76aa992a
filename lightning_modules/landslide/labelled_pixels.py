"""Labelled pixels of a split, read block by block: memory holds some blocks, whatever the raster's size."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import PreparedArea, Window

MOST_BLOCKS = 1024  # of an area, for the bootstrap; more are put together to larger ones
BATCH = 200_000  # pixels
PROBABILITIES_FILE, CLASSES_FILE = "probabilities.tif", "class_map.tif"
Read = Callable[[str, Window], NDArray[np.float32]]
"""Area and window -> (V, rows, columns)."""


class Splits(Protocol):
    """What is asked of the object that owns the splits."""

    def mask(self, area: str, window: Window, split: str) -> NDArray[np.bool_]:
        """(rows, columns) pixels of the split."""


@dataclass(frozen=True)
class Pixels:
    """N labelled pixels of one area.

    Attributes:
        label: (N,) class from 0.
        value: (N, V) what was read there.
        block: (N,) number of the spatial block.
        place: (N, 2) row and column.
    """

    label: NDArray[np.int64]
    value: NDArray[np.float32]
    block: NDArray[np.int64]
    place: NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """N labelled pixels of all areas.

    Attributes:
        x: (N, V) what was read there.
        y: (N,) class from 0.
        weight: (N,) pixels of the split that each stands for.
        area: (N,) position of the area.
        place: (N, 2) row and column.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    weight: NDArray[np.float64]
    area: NDArray[np.int64]
    place: NDArray[np.int64]


class LabelledPixels:
    """The labelled pixels of each split; a pixel without a label never comes out.

    Args:
        areas: name -> rasters.
        splits: that own the assignment.
        classes: number of classes K.
        block_px: side of a block in pixels, the unit that is read and resampled.
    """

    def __init__(self, areas: Mapping[str, PreparedArea], splits: Splits, classes: int, block_px: int) -> None:
        self.areas, self.splits, self.classes, self.block_px = dict(areas), splits, classes, block_px

    def windows(self, name: str) -> Iterator[tuple[int, Window]]:
        """Number of the block and window of each block of an area; the windows tile it."""
        area, side = self.areas[name], self.block_px
        rows, columns = math.ceil(area.height / side), math.ceil(area.width / side)
        several = math.ceil(math.sqrt(rows * columns / MOST_BLOCKS))
        for i in range(rows):
            for j in range(columns):
                row, column = i * side, j * side
                number = (i // several) * columns + j // several
                yield number, (row, column, min(side, area.height - row), min(side, area.width - column))

    def blocks(self, name: str, split: str) -> Iterator[tuple[int, Window, NDArray[np.int64]]]:
        """Blocks with labelled pixels of the split: number, window, (rows, columns) labels, -1 elsewhere."""
        if not self.areas[name].has_labels:
            return
        for number, window in self.windows(name):
            inside = self.splits.mask(name, window, split)
            if inside.any():
                label = np.where(inside, self.areas[name].read_labels(window), -1)
                if label.max() >= self.classes:
                    raise StagewiseError(
                        f"area '{name}' has label {label.max() + 1}, there are {self.classes} classes."
                    )
                if (label >= 0).any():
                    yield number, window, label

    def batches(self, name: str, split: str, read: Read) -> Iterator[Pixels]:
        """Pixels of an area, some whole blocks at a time, with what ``read`` says of them."""
        held: list[Pixels] = []
        for number, window, label in self.blocks(name, split):
            held.append(_taken(label, read(name, window), number, window, np.flatnonzero(label >= 0)))
            if sum(len(part.label) for part in held) >= BATCH:
                yield _together(held)
                held = []
        if held:
            yield _together(held)

    def counts(self, split: str) -> NDArray[np.int64]:
        """(K,) labelled pixels of each class in all areas."""
        found = np.zeros(self.classes, np.int64)
        for name in self.areas:
            for _, _, label in self.blocks(name, split):
                found += np.bincount(label[label >= 0], minlength=self.classes)
        return found

    def sample(self, split: str, read: Read, most: int, balanced: bool, seed: int = 0) -> Sample:
        """A random sample, the same for the same seed.

        Args:
            split: whose pixels.
            read: gives their values.
            most: pixels.
            balanced: up to ``most / K`` of each class, weighted back to the true frequencies; otherwise each class at
                its frequency.
            seed: of the choice.
        """
        there = self.counts(split)
        share = np.full(self.classes, most / self.classes) if balanced else most * there / max(there.sum(), 1)
        wanted = np.minimum(np.ceil(share).astype(np.int64), there)
        rng = np.random.default_rng(seed)
        chosen = [np.sort(rng.choice(n, k, replace=False)) for n, k in zip(there, wanted)]  # ordinals within a class
        seen = np.zeros(self.classes, np.int64)
        parts, areas = [], []
        for position, name in enumerate(self.areas):
            for number, window, label in self.blocks(name, split):
                picked = _picked(label.ravel(), chosen, seen)
                if len(picked):
                    parts.append(_taken(label, read(name, window), number, window, picked))
                    areas.append(np.full(len(picked), position))
        if not parts:
            raise StagewiseError(f"no labelled pixel in the split '{split}'; change the splits or label more.")
        pixels = _together(parts)
        weight = (there / np.maximum(wanted, 1))[pixels.label]
        return Sample(pixels.value, pixels.label, weight, np.concatenate(areas), pixels.place)


def _picked(label: NDArray[np.int64], chosen: list[NDArray[np.int64]], seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the chosen pixels of a block; counts its pixels in ``seen``."""
    found = []
    for k, ordinals in enumerate(chosen):
        here = np.flatnonzero(label == k)
        low, high = np.searchsorted(ordinals, [seen[k], seen[k] + len(here)])
        found.append(here[ordinals[low:high] - seen[k]])
        seen[k] += len(here)
    return np.sort(np.concatenate(found))


def _taken(
    label: NDArray[np.int64], values: NDArray[np.float32], number: int, window: Window, at: NDArray[np.int64]
) -> Pixels:
    row, column = np.unravel_index(at, label.shape)
    place = np.stack([row + window[0], column + window[1]], axis=1)
    return Pixels(label.ravel()[at], values.reshape(len(values), -1)[:, at].T, np.full(len(at), number), place)


def _together(parts: list[Pixels]) -> Pixels:
    return Pixels(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pixels.__dataclass_fields__))


class ExportedMap:
    """The class probabilities and answers of a map on disk.

    Args:
        folder: with ``probabilities.tif``: K float bands, NaN is nodata; and ``class_map.tif``, the answers.
        area: whose grid it must have.
        classes: number of classes K.

    Raises:
        StagewiseError: no such file, other bands, another grid, or (on reading) numbers that are no probabilities.
    """

    def __init__(self, folder: str | Path, area: PreparedArea, classes: int) -> None:
        import rasterio

        self.path = Path(folder) / PROBABILITIES_FILE
        if not self.path.is_file():
            raise StagewiseError(f"no map '{self.path}'; export area '{area.name}' with predict.py first.")
        self._raster: Any = rasterio.open(self.path)
        found, wanted = (self._raster.height, self._raster.width), (area.height, area.width)
        if self._raster.count != classes:
            raise StagewiseError(f"'{self.path}' has {self._raster.count} bands, the model has {classes} classes.")
        if found != wanted or not np.allclose(tuple(self._raster.transform)[:6], area.transform):
            raise StagewiseError(
                f"'{self.path}' ({found[0]} x {found[1]}) lies on another grid than area '{area.name}' "
                f"({wanted[0]} x {wanted[1]}); export the map again."
            )
        classes_file = Path(folder) / CLASSES_FILE
        if not classes_file.is_file():
            raise StagewiseError(f"no classes '{classes_file}' beside the probabilities; export the map again.")
        self._classes: Any = rasterio.open(classes_file)
        if (self._classes.height, self._classes.width) != found:
            raise StagewiseError(f"'{classes_file}' has another size than '{self.path}'; export the map again.")

    def read(self, window: Window) -> NDArray[np.float32]:
        """(K, rows, columns) probabilities; NaN in all bands where there is no prediction."""
        row, column, rows, columns = window
        p = self._raster.read(window=((row, row + rows), (column, column + columns)), masked=True)
        p = p.astype(np.float32).filled(np.nan)
        p[:, np.isnan(p).any(0)] = np.nan
        off = np.nanmax(np.abs(p.sum(0) - 1), initial=0)
        if off > 0.01:
            raise StagewiseError(f"'{self.path}' holds probabilities that add up to 1 ± {off:.2f}; export it again.")
        return p

    def answered(self, window: Window) -> NDArray[np.float32]:
        """(K + 1, rows, columns) probabilities and, last, the class; NaN where there is no prediction."""
        row, column, rows, columns = window
        p = self.read(window)
        answer = self._classes.read(1, window=((row, row + rows), (column, column + columns)))
        answer = np.where(np.isnan(p[0]), np.nan, answer).astype(np.float32)
        if np.nanmax(answer, initial=0) >= len(p):
            raise StagewiseError(f"'{self.path.parent / CLASSES_FILE}' lacks a class where there is a probability.")
        return np.concatenate([p, answer[None]])

    def close(self) -> None:
        """Closes the files."""
        self._raster.close()
        self._classes.close()
