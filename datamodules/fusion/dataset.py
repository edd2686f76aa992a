"""Rows of a table with their pictures as samples."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset

from .table import Corners, FusionTable

Key = int | tuple[int, int]  # an item, or a row and the number of the draw
Reader = Callable[[str, Corners | None], Tensor]
MOVES = ("flip", "shift", "zoom")


class FusionDataset(Dataset[dict[str, Any]]):
    """One dict a picture; see ``stagewise.datamodules`` for the vocabulary.

    A number gives an item as it is: each picture of each row is one, and so is a row without picture, whose pixels are
    0. A (row, draw) pair gives one picture of the row, mirrored, zoomed and shifted; all of it is a function of (seed,
    draw).

    Args:
        table: a split.
        read: picture and box -> (C, px, px) uint8 or uint16.
        image: ``{px, channels, bits}``: of a row without picture.
        moves: ``{flip, shift, zoom}``: probability of mirroring; largest shift as a share of the side; half-width of
            the zoom around 1. With it the dataset is for training: as long as the table, and asked for pairs.
        seed: of the run.
    """

    def __init__(
        self,
        table: FusionTable,
        read: Reader,
        image: Mapping[str, Any],
        moves: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.table, self.read, self.moves, self.seed = table, read, moves, seed
        counts = np.array([max(1, len(own)) for own in table.pictures], np.int64)
        self.first = np.cumsum(counts) - counts  # (N,) first item of each row
        self.row_of_item = np.repeat(np.arange(len(table)), counts)
        self._shape = (int(image["channels"]), int(image["px"]), int(image["px"]))
        self._type = torch.uint16 if image["bits"] == 16 else torch.uint8

    def __len__(self) -> int:
        return len(self.row_of_item) if self.moves is None else len(self.table)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        if not isinstance(key, tuple):
            row = int(self.row_of_item[key])
            return self._sample(row, int(key) - int(self.first[row]))
        row, draw = int(key[0]), int(key[1])
        u = np.random.Generator(np.random.Philox(key=[self.seed, draw])).random(5)
        sample = self._sample(row, int(u[0] * len(self.table.pictures[row])))
        if sample["has_image"]:
            sample["image"] = self._moved(sample["image"], u[1:])
        return {**sample, "draw": draw}

    def _sample(self, row: int, picture: int) -> dict[str, Any]:
        pictures, boxes = self.table.pictures[row], self.table.boxes[row]
        if pictures:
            pixels = self.read(pictures[picture], boxes[picture])
        else:
            pixels = torch.zeros(self._shape, dtype=self._type)
        numbers = {"row": row, "sample_id": int(self.first[row]) + picture}
        return {"image": pixels, "has_image": bool(pictures), "label": int(self.table.label[row]), **numbers}

    def _moved(self, image: Tensor, u: Any) -> Tensor:
        moves = self.moves or {}
        zoom, (x, y) = 1 + moves["zoom"] * (2 * u[1] - 1), moves["shift"] * (2 * u[2:] - 1)
        return moved(image, bool(u[0] < moves["flip"]), float(zoom), (float(x), float(y)))


def moved(image: Tensor, flip: bool, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Mirrors left and right, zooms about the centre and shifts; the values stay as they are.

    Args:
        image: (C, S, S) uint8 or uint16.
        flip: left and right change sides.
        zoom: above 1 the wound grows.
        shift: to the right and down, as shares of S.

    Returns:
        (C, S, S) of the same type, 0 where nothing is left to show.

    >>> image = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
    >>> moved(image, True).tolist(), moved(image, False, shift=(0.5, 0.0)).tolist()
    ([[[1, 0], [3, 2]]], [[[0, 0], [0, 2]]])
    """
    if zoom == 1 and not any(shift):
        return image.flip(-1) if flip else image
    side = (-1 if flip else 1) / zoom
    theta = torch.tensor([[side, 0, -2 * shift[0] * side], [0, 1 / zoom, -2 * shift[1] / zoom]])
    values = image.float()[None]
    grid = affine_grid(theta[None], list(values.shape), align_corners=False)
    values = grid_sample(values, grid, align_corners=False)[0].round()
    return values.to(torch.int32).to(image.dtype)
