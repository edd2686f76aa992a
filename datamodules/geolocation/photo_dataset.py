"""Rows of a photo table as samples."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..images import centre_box, crop, random_box, read_image
from .photo_table import PhotoTable
from .shard_pictures import ShardPictures

Key = int | tuple[int, int]  # a row, or a row and the number of the draw


class PhotoDataset(Dataset[dict[str, Any]]):
    """One dict a picture; see ``stagewise.datamodules`` for the vocabulary.

    A plain row gives the centre crop; a (row, draw) pair gives a random crop that is a function of (seed, draw).

    Args:
        table: rows of the split.
        cell: (N,) position of each row's cell in the cell table.
        image_px: side of the square picture.
        area: share of the largest square that a random crop keeps, smallest and largest.
        ratio: width / height of a random crop, smallest and largest.
        seed: of the run.
        shards: where the pictures are, if not in files of their own.
    """

    def __init__(
        self,
        table: PhotoTable,
        cell: NDArray[np.int64],
        image_px: int,
        area: tuple[float, float] = (0.8, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        seed: int = 0,
        shards: ShardPictures | None = None,
    ) -> None:
        self.table, self.cell, self.image_px = table, cell, image_px
        self.area, self.ratio, self.seed, self.shards = area, ratio, seed, shards

    def __len__(self) -> int:
        return len(self.table)

    def labels(self, row: int) -> dict[str, Any]:
        """Everything of a sample but its picture."""
        return {
            "lat_lon_deg": torch.tensor(self.table.lat_lon_deg[row], dtype=torch.float32),
            "label": int(self.table.region[row]),
            "cell": int(self.cell[row]),
            "sample_id": row,
        }

    def picture(self, row: int, draw: int | None) -> Tensor:
        """uint8 (3, image_px, image_px)."""
        if self.shards:
            image = self.shards.image(int(self.table.line[row]) - 2)  # line 1 is the header
        else:
            image = read_image(self.table.image_path(row))
        height, width = image.shape[-2:]
        if draw is None:
            return crop(image, centre_box(height, width), self.image_px)
        return crop(image, random_box(height, width, self.area, self.ratio, (self.seed, draw)), self.image_px)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        row, draw = key if isinstance(key, tuple) else (key, None)
        sample = {"image": self.picture(row, draw), **self.labels(row)}
        return sample if draw is None else {**sample, "draw": draw}


class FeatureDataset(Dataset[dict[str, Any]]):
    """The same samples with the frozen encoders' outputs instead of the picture.

    Args:
        photos: the samples that the features were made from.
        features: name -> (views, N, D) half-precision array, memory-mapped.
    """

    def __init__(self, photos: PhotoDataset, features: dict[str, NDArray[np.float16]]) -> None:
        self.photos, self.features = photos, features

    def __len__(self) -> int:
        return len(self.photos)

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """A whole batch at once: one gather a feature instead of one a sample."""
        pairs = np.array([k if isinstance(k, tuple) else (k, 0) for k in keys])
        rows, draws = pairs.T
        batch = {}
        for name, array in self.features.items():
            batch[name] = torch.from_numpy(array[_views(draws, len(array)), rows].astype(np.float32))
        table = self.photos.table
        batch["lat_lon_deg"] = torch.from_numpy(table.lat_lon_deg[rows].astype(np.float32))
        batch["label"] = torch.from_numpy(table.region[rows]).long()
        batch["cell"] = torch.from_numpy(self.photos.cell[rows])
        batch["sample_id"] = torch.from_numpy(rows)
        return batch if isinstance(keys[0], int) else {**batch, "draw": torch.from_numpy(draws)}


def _views(draws: NDArray[np.int64], views: int) -> NDArray[np.int64]:
    """Spreads the draws over the stored views (Knuth's multiplicative hash), the same on every resume."""
    return (draws.astype(np.uint64) * np.uint64(2654435761) >> np.uint64(16)).astype(np.int64) % views


def collate_batch(batch: Any) -> Any:
    """``FeatureDataset`` gives whole batches; they pass as they are."""
    return batch if isinstance(batch, dict) else torch.utils.data.default_collate(batch)
