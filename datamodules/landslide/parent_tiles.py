"""The parents of synthetic tiles, on disk, and which of them are neighbours."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .synthetic_tiles import Tile

BLOCK_BYTES = 64 << 20  # of the tiles' vectors that are in memory at a time


def nearest(blocks: Iterable[NDArray[np.float32]], k: int) -> NDArray[np.int64]:
    """The k nearest of each of N vectors, by exact distances, from pieces of the vectors.

    Args:
        blocks: (N, F) each, together all features, no NaN.
        k: below N.

    Returns:
        (N, k) nearest first, without the vector itself.

    >>> points = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]], np.float32)
    >>> nearest([points[:, :1], points[:, 1:]], k=2).tolist()
    [[1, 2], [0, 2], [1, 0]]
    """
    products: Any = 0.0
    for block in blocks:
        centred = block - block.mean(0)  # distances stay the same, and their difference of squares keeps its digits
        products = products + (centred @ centred.T).astype(np.float64)
    square = np.diag(products)
    distance = square[:, None] + square - 2 * products
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


class ParentTiles:
    """Copies of tiles in a file without a name, read whole or, across all tiles, by pieces.

    A tile's window in the rasters is quick to read once, and slow to read once for each piece.

    Args:
        folder: with room for the tiles.
        read: position -> channels and mask.
        positions: (N,) of the tiles.
        shape: (C, H, W) of each.
    """

    def __init__(
        self, folder: Path, read: Callable[[int], Tile], positions: NDArray[np.int64], shape: tuple[int, int, int]
    ) -> None:
        self.tiles, self.shape = len(positions), shape
        self._pixels = shape[1] * shape[2]
        self._channels, self._masks = (tempfile.TemporaryFile(dir=folder) for _ in range(2))
        for position in positions.tolist():
            channels, mask = read(position)
            self._channels.write(np.ascontiguousarray(channels, np.float32).data)
            self._masks.write(np.ascontiguousarray(mask, np.int8).data)
        self._channels.flush()
        self._masks.flush()

    def __getitem__(self, index: int) -> Tile:
        """Channels and mask of the tile at that place of ``positions``."""
        values = self.shape[0] * self._pixels
        channels = _read(self._channels, np.float32, index * values, values).reshape(self.shape)
        mask = _read(self._masks, np.int8, index * self._pixels, self._pixels).reshape(self.shape[1:])
        return channels, mask.astype(np.int64)

    def blocks(self, mean: Sequence[float], std: Sequence[float]) -> Iterator[NDArray[np.float32]]:
        """(tiles, F) pieces of the normalised vectors, nodata at the mean, as a network sees them.

        Args:
            mean: (C,).
            std: (C,).
        """
        values, size = self.shape[0] * self._pixels, max(1, BLOCK_BYTES // (4 * self.tiles))
        for start in range(0, values, size):
            channel = np.arange(start, min(start + size, values)) // self._pixels
            block = np.empty((self.tiles, len(channel)), np.float32)
            for tile, row in enumerate(block):
                row[:] = _read(self._channels, np.float32, tile * values + start, len(row))
            block -= np.asarray(mean, np.float32)[channel]
            block /= np.asarray(std, np.float32)[channel]
            yield np.nan_to_num(block, copy=False)

    def __enter__(self) -> "ParentTiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._channels.close()
        self._masks.close()


def _read(file: Any, kind: Any, start: int, count: int) -> NDArray[Any]:
    size = np.dtype(kind).itemsize
    return np.frombuffer(os.pread(file.fileno(), count * size, start * size), kind)
