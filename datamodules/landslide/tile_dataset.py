"""Tiles as samples: windows of the areas and, in train, synthetic tiles behind them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import StagewiseError
from .augmentation import TileAugmentation
from .prepared import PreparedArea
from .spatial_splits import SpatialSplits
from .synthetic_tiles import SyntheticTiles, Tile
from .tile_smote import TileSource
from .tiles import TileTable


class TileDataset(Dataset[dict[str, Any]]):
    """One dict a tile: ``image`` (C, H, W) in physical units with NaN for nodata, ``mask`` (H, W), ``sample_id``.

    A pixel has a class where it is labelled, belongs to the split and has data in all channels, and is -1 elsewhere.
    With an augmentation there is a ``draw`` as well: the number from torch's generator that decides it, so that
    ``ResumableDataLoader`` replays it with any number of workers.

    Args:
        areas: name -> area.
        tiles: real ones of one split.
        splits: of the areas.
        augmentation: of each sample, for train.
        synthetic: made of ``tiles``; their rows stand behind the real ones in ``self.tiles``.

    Raises:
        SplitLeakError: a tile reaches into another split.
        StagewiseError: synthetic tiles for another split than train, or with a parent that is not in ``tiles``.
    """

    def __init__(
        self,
        areas: Mapping[str, PreparedArea],
        tiles: TileTable,
        splits: SpatialSplits,
        augmentation: TileAugmentation | None = None,
        synthetic: SyntheticTiles | None = None,
    ) -> None:
        splits.check_tiles(tiles)
        self.areas, self.splits, self.augmentation, self.synthetic = dict(areas), splits, augmentation, synthetic
        self.real = len(tiles)
        self.tiles = tiles
        if synthetic is not None:
            self.tiles = tiles.with_synthetic(synthetic.ids, synthetic.parents, synthetic.counts)

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, index: int) -> Tile:
        """Channels and mask of a tile as they lie on disk."""
        if self.synthetic is not None and index >= self.real:
            return self.synthetic[index - self.real]
        area, window = self.areas[str(self.tiles.area[index])], self.tiles.window(index)
        channels, mask = area.read_channels(window), area.read_labels(window)
        own = self.splits.mask(area.name, window, self.tiles.split)
        return channels, np.where(own & ~np.isnan(channels).any(axis=0), mask, -1)

    def source(self, mean: Sequence[float], std: Sequence[float], key: str) -> TileSource:
        """The real tiles as parents for :meth:`TileSmote.make`.

        Args:
            mean: (C,) over train pixels.
            std: (C,).
            key: of the areas' rasters and the splits.

        Raises:
            StagewiseError: the split is not train.
        """
        if self.tiles.split != "train":
            raise StagewiseError(f"synthetic tiles are made of train tiles only, not of {self.tiles.split}.")
        names, counts = self.tiles.id[: self.real].tolist(), self.tiles.counts[: self.real]
        channels = next(iter(self.areas.values())).channels
        return TileSource(self.read, names, counts, channels, mean, std, key)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = (torch.from_numpy(array) for array in self.read(index))
        sample = {"image": image, "mask": mask, "sample_id": index}
        if self.augmentation is None:
            return sample
        draw = int(torch.randint(2**62, ()))
        image, mask = self.augmentation(image, mask, torch.Generator().manual_seed(draw))
        return {**sample, "image": image, "mask": mask, "draw": draw}
