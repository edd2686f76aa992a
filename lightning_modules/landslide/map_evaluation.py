"""Exported maps and baselines counted over the labelled pixels of a split."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import PreparedArea, Window
from .baselines import Baselines, leak_gap
from .labelled_pixels import ExportedMap, LabelledPixels, Sample, Splits
from .tally import RANK_BINS, Tally, join, merge, rank_bin, susceptibility, tally_of

Metrics = dict[str, float]


@dataclass(frozen=True)
class AreaCount:
    """What was counted over one area's map.

    Attributes:
        tally: of the labelled pixels of the split.
        ground: (bins,) all pixels of the split that have a prediction, labelled or not, by score: they rank the ground
            for the rate curves and are never right or wrong.
        missing: labelled pixels of the split without a prediction.
    """

    tally: Tally
    ground: NDArray[np.int64]
    missing: int


class MapEvaluation:
    """Counts maps of areas over the labelled pixels of a split.

    Args:
        maps: area -> folder with ``probabilities.tif``.
        areas: name -> rasters; those with train labels are needed for the baselines.
        splits: that own the assignment.
        schema: of the model: ``classes``, ``channels``, ``tile_px``.
        block_px: side of the blocks that are resampled; None takes a tile's.

    Raises:
        StagewiseError: a map without its area, or one that does not fit.
    """

    def __init__(
        self,
        maps: Mapping[str, str | Path],
        areas: Mapping[str, PreparedArea],
        splits: Splits,
        schema: Mapping[str, Any],
        block_px: int | None = None,
    ) -> None:
        unknown = sorted(set(maps) - set(areas))
        if unknown:
            raise StagewiseError(f"maps of {unknown}, but the data has the areas {sorted(areas)}.")
        self.classes, self.schema = tuple(schema["classes"]), schema
        self.areas, self.splits = areas, splits
        self.pixels = LabelledPixels(areas, splits, len(self.classes), block_px or int(schema["tile_px"]))
        self.maps = {name: ExportedMap(folder, areas[name], len(self.classes)) for name, folder in maps.items()}

    def count(self, split: str) -> dict[str, AreaCount]:
        """Every area that has a map and labelled pixels of the split."""
        counted = {name: self._count_area(name, split) for name in self.areas if name in self.maps}
        return {name: count for name, count in counted.items() if count is not None}

    def require_maps(self, split: str) -> None:
        """Refuses to score a part of a split.

        Raises:
            StagewiseError: an area has labelled pixels of the split and no map.
        """
        for name in self.areas:
            if name not in self.maps and any(True for _ in self.pixels.blocks(name, split)):
                raise StagewiseError(f"area '{name}' has labelled pixels of the split '{split}' and no map; export it.")

    def _count_area(self, name: str, split: str) -> AreaCount | None:
        parts: list[Tally] = []
        missing = 0
        for batch in self.pixels.batches(name, split, lambda _, window: self.maps[name].answered(window)):
            there = ~np.isnan(batch.value[:, 0])
            missing += int((~there).sum())
            p, answer = batch.value[there, :-1], batch.value[there, -1].astype(np.int64)
            parts = [merge([*parts, tally_of(batch.label[there], p, batch.block[there], self.classes, answer)])]
        return AreaCount(parts[0], self._ground(name, split), missing) if parts else None

    def _ground(self, name: str, split: str) -> NDArray[np.int64]:
        found = np.zeros(RANK_BINS, np.int64)
        for _, window in self.pixels.windows(name):
            inside = self.splits.mask(name, window, split)
            if inside.any():
                p = self.maps[name].read(window)[:, inside].T
                bins = rank_bin(susceptibility(p[~np.isnan(p[:, 0])]))
                found += np.bincount(bins, minlength=RANK_BINS)
        return found

    def channels(self, name: str, window: Window) -> NDArray[np.float32]:
        """(C, rows, columns) of an area."""
        return self.areas[name].read_channels(window)

    def fit_baselines(self, train_pixels: int, trees: int, seed: int) -> Baselines:
        """Baselines fitted on train pixels; their rule of decision is chosen on val pixels."""
        channels = list(self.schema["channels"])
        slope = channels.index("slope") if "slope" in channels else None
        train = self.pixels.sample("train", self.channels, train_pixels, balanced=True, seed=seed)
        val = None
        if self.pixels.counts("val").any():
            sample = self.pixels.sample("val", self.channels, train_pixels // 2, balanced=True, seed=seed)
            val = (sample.x, sample.y, sample.weight)
        return Baselines(self.classes, slope, trees, seed).fit(train.x, train.y, train.weight, val)

    def count_baselines(self, fitted: Baselines, split: str) -> dict[str, Tally]:
        """Tally of each baseline over exactly the pixels that the maps are scored on."""
        areas: dict[str, list[Tally]] = {name: [] for name in fitted.models}
        size = len(self.classes)

        def read(name: str, window: Window) -> NDArray[np.float32]:
            return np.concatenate([self.maps[name].read(window), self.channels(name, window)])

        for name in (name for name in self.areas if name in self.maps):
            parts: dict[str, list[Tally]] = {model: [] for model in fitted.models}
            for batch in self.pixels.batches(name, split, read):
                there = ~np.isnan(batch.value[:, 0])
                label, block = batch.label[there], batch.block[there]
                for model, (p, answer) in fitted.predict(batch.value[there, size:]).items():
                    parts[model] = [merge([*parts[model], tally_of(label, p, block, self.classes, answer)])]
            for model, found in parts.items():
                areas[model] += found
        return {model: join(found) for model, found in areas.items()}

    def close(self) -> None:
        """Closes the maps."""
        for exported in self.maps.values():
            exported.close()

    def leak(self, split: str, most: int, trees: int, seed: int) -> Metrics:
        """What a leaky random split would have claimed (:func:`~.baselines.leak_gap`)."""
        train, test = (self.pixels.sample(name, self.channels, most, False, seed) for name in ("train", split))
        x, y = np.concatenate([train.x, test.x]), np.concatenate([train.y, test.y])
        tiles = np.concatenate([self._tiles(train), self._tiles(test)])
        is_test = np.arange(len(tiles)) >= len(train.y)
        return leak_gap(x, y, tiles, is_test, self.classes, trees, seed)

    def _tiles(self, sample: Sample) -> NDArray[np.int64]:
        """(N, 4) the tiles, overlapped by half, that hold each pixel."""
        step = max(int(self.schema["tile_px"]) // 2, 1)
        row, column = (sample.place // step + 1).T  # the tile that starts there, and the one before it
        corners = [((sample.area << 20 | row - i) << 20) | column - j for i in (0, 1) for j in (0, 1)]
        return np.stack(corners, axis=1)
