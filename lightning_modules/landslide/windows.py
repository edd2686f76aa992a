"""Where the windows over a raster lie, and their pixels, each read once."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...datamodules.landslide.prepared import Window

Read = Callable[[Window, NDArray[np.float32]], object]


class Axis:
    """Where windows lie along one side of the raster, and what each weighs there.

    Weights rise and fall as a squared sine over the overlap, are positive everywhere, and those of all windows over a
    pixel add up to 1: nothing needs to be divided afterwards, and the raster's edge weighs as much as its middle.

    Args:
        length: of the side.
        window: side of a window; the last window is moved back to end with the raster.
        overlap: of neighbours.

    >>> axis = Axis(1000, window=512, overlap=128)
    >>> axis.starts, axis.weights.shape
    ([0, 384, 488], (3, 512))
    """

    def __init__(self, length: int, window: int, overlap: int) -> None:
        regular = range(0, max(length - window, 0), window - overlap)
        self.starts = [*regular, max(length - window, 0)]
        self.bounds = [*self.starts, length]
        self.window, self.overlap = window, overlap
        ramp = np.ones(window)
        rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
        ramp[:overlap] *= rise
        ramp[window - overlap :] *= rise[::-1]
        total = np.zeros(max(length, window))
        for start in self.starts:
            total[start : start + window] += ramp
        self.weights = np.stack([ramp / total[s : s + window] for s in self.starts]).astype(np.float32)

    def touching(self, begin: int, end: int) -> list[int]:
        """Windows that share a pixel with [begin, end)."""
        return [i for i, start in enumerate(self.starts) if start < end and start + self.window > begin]

    def blocks(self, width: int) -> list[tuple[int, int]]:
        """Pixels [begin, end) of equal runs of windows, none wider than ``width`` by more than a window."""
        most = len(Axis(width, self.window, self.overlap).starts)
        edges = np.linspace(0, len(self.starts), -(-len(self.starts) // most) + 1).round().astype(int)
        return [(self.bounds[a], self.bounds[b]) for a, b in pairwise(edges.tolist())]


class WindowReader:
    """Fills two batches in turn, so that one can be worked on; rows that the windows above had are not read again.

    Args:
        read: of :func:`~.sliding_window.predict_tiled`.
        axes: of the rows and of the columns.
        span: columns [begin, end) of the block.
        shape: (B, C, w, w) of a batch.
    """

    def __init__(
        self, read: Read, axes: Sequence[Axis], span: tuple[int, int], shape: tuple[int, int, int, int]
    ) -> None:
        self.read, self.turn = read, 0
        self.rows, self.columns = axes
        self.memory = [torch.empty(shape) for _ in range(2)]
        self.above = _RowsAbove(axes, span, shape[1])

    def __call__(self, row: int, columns: Sequence[int]) -> Tensor:
        """The windows of a row of windows, the next ones of its block from left to right."""
        self.turn = 1 - self.turn
        images = self.memory[self.turn][: len(columns)]
        side = images.shape[-1]
        for image, column in zip(images, columns):
            pixels, top, left = image.numpy(), self.rows.starts[row], self.columns.starts[column]
            known = self.above.fill(pixels, row, left)
            self.read((top + known, left, side - known, side), pixels[:, known:])
            self.above.keep(pixels, row, left)
        return images


class _RowsAbove:
    """What a row of windows has in common with the next one, for all columns of a block."""

    def __init__(self, axes: Sequence[Axis], span: tuple[int, int], channels: int) -> None:
        self.rows, columns = axes
        touched = [columns.starts[i] for i in columns.touching(*span)]
        self.left, width = touched[0], touched[-1] + columns.window - touched[0]
        shape = (channels, self.rows.overlap, width)
        self.memory = [np.empty(shape, np.float32) for _ in range(2)]  # one is read while the next row's is made
        self.row, self.known = -1, 0

    def fill(self, pixels: NDArray[np.float32], row: int, left: int) -> int:
        """Writes the rows that are known to the top of a window; returns how many."""
        if left == self.left:  # a run that goes on leaves rows of windows out
            self.row, self.known = row, self.rows.overlap if 0 < row == self.row + 1 else 0
        at = left - self.left
        pixels[:, : self.known] = self.memory[row % 2][:, : self.known, at : at + pixels.shape[-1]]
        return self.known

    def keep(self, pixels: NDArray[np.float32], row: int, left: int) -> None:
        """Takes from a window what the one below begins with."""
        if row + 1 < len(self.rows.starts):
            step, at = self.rows.starts[row + 1] - self.rows.starts[row], left - self.left
            below = pixels[:, step : step + self.rows.overlap]
            self.memory[(row + 1) % 2][:, :, at : at + pixels.shape[-1]] = below
