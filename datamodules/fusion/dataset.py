"""Rows of a table with their pictures as samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """A batch, all of items or all of pairs; its pictures are moved together, which takes half the time."""
        pairs = [(int(key[0]), int(key[1])) for key in keys if isinstance(key, tuple)]
        return self._drawn(pairs) if pairs else [self._item(int(key)) for key in keys if not isinstance(key, tuple)]

    def _item(self, item: int) -> dict[str, Any]:
        row = int(self.row_of_item[item])
        return self._sample(row, item - int(self.first[row]))

    def _drawn(self, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        u = uniform_of(self.seed, [draw for _, draw in pairs], 5)
        samples = [self._sample(row, int(own[0] * len(self.table.pictures[row]))) for (row, _), own in zip(pairs, u)]
        seen = [i for i, sample in enumerate(samples) if sample["has_image"]]
        if seen:
            images = self._moved(torch.stack([samples[i]["image"] for i in seen]), u[seen, 1:])
            for i, image in zip(seen, images):
                samples[i]["image"] = image
        return [{**sample, "draw": draw} for sample, (_, draw) in zip(samples, pairs)]

    def _sample(self, row: int, picture: int) -> dict[str, Any]:
        pictures, boxes = self.table.pictures[row], self.table.boxes[row]
        if pictures:
            pixels = self.read(pictures[picture], boxes[picture])
        else:
            pixels = torch.zeros(self._shape, dtype=self._type)
        numbers = {"row": row, "sample_id": int(self.first[row]) + picture}
        return {"image": pixels, "has_image": bool(pictures), "label": int(self.table.label[row]), **numbers}

    def _moved(self, images: Tensor, u: NDArray[np.float64]) -> Tensor:
        moves, drawn = self.moves or {}, torch.from_numpy(u)
        zoom, shift = 1 + moves["zoom"] * (2 * drawn[:, 1] - 1), moves["shift"] * (2 * drawn[:, 2:] - 1)
        return moved(images, drawn[:, 0] < moves["flip"], zoom, shift)


def uniform_of(seed: int, draws: Sequence[int], count: int) -> NDArray[np.float64]:
    """(B, count) random numbers in [0, 1); a row is a function of (seed, draw)."""
    bits = np.random.Philox(key=[seed, 0])  # one for all: a new one asks the system for numbers that nobody needs
    start, generator = bits.state, np.random.Generator(bits)
    found = np.empty((len(draws), count))
    for row, draw in zip(found, draws):
        start["state"]["key"][1] = draw
        bits.state = start
        generator.random(out=row)
    return found


def moved(images: Tensor, flip: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Mirrors left and right, zooms about the centre and shifts; the values stay as they are.

    Args:
        images: (B, C, S, S) uint8 or uint16.
        flip: (B,) left and right change sides.
        zoom: (B,) above 1 the wound grows.
        shift: (B, 2) to the right and down, as shares of S.

    Returns:
        (B, C, S, S) of the same type, 0 where nothing is left to show.

    >>> image, stay = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2), torch.tensor([[0.0, 0.0]])
    >>> moved(image, torch.tensor([True]), torch.ones(1), stay).tolist()
    [[[[1, 0], [3, 2]]]]
    >>> moved(image, torch.tensor([False]), torch.ones(1), torch.tensor([[0.5, 0.0]])).tolist()
    [[[[0, 0], [0, 2]]]]
    """
    if (zoom == 1).all() and not shift.any():
        return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
    side, none = torch.where(flip, -1, 1) / zoom, torch.zeros_like(zoom)
    theta = torch.stack([side, none, -2 * shift[:, 0] * side, none, 1 / zoom, -2 * shift[:, 1] / zoom], 1)
    values = images.float()
    grid = affine_grid(theta.float().view(-1, 2, 3), list(values.shape), align_corners=False)
    return grid_sample(values, grid, align_corners=False).round().to(torch.int32).to(images.dtype)
