"""A network over a raster of any size: overlapping windows, blended smoothly, in memory that does not grow with it.

The raster is cut into column blocks a few thousand pixels wide. Down a block, a strip one window high holds the sums;
rows that no further window touches are final and are written at once. What two blocks share is predicted twice: one
column of windows in ten at 4096 pixels, nothing for rasters up to that width. Carrying the sums across on disk instead
would save it, but its files would have to survive a kill together with the strip.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import Window
from .windows import Axis, Read, WindowReader

Infer = Callable[[Tensor], Tensor]
Write = Callable[[Window, NDArray[np.float32]], None]
BLOCK_PX = 4096


class Tiling(NamedTuple):
    """How a raster is cut.

    Args:
        window: side of the windows in pixels.
        overlap: of neighbouring windows; at most half a window.
        batch: windows a call.
        block: width of the strip in pixels, which bounds the memory.
    """

    window: int = 512
    overlap: int = 128
    batch: int = 4
    block: int = BLOCK_PX


TILING = Tiling()


class _Strip:
    """Sums of the windows over the rows [top, top + window) of a block.

    In numpy: torch's threads would wait for each other in every one of these small sums while the reader has a core.
    """

    def __init__(self, begin: int, end: int, window: int) -> None:
        self.begin, self.end, self.window, self.top = begin, end, window, 0
        self.sums: NDArray[np.float32] | None = None

    def add(
        self,
        prediction: NDArray[np.float32],
        row_weight: NDArray[np.float32],
        column: int,
        column_weight: NDArray[np.float32],
    ) -> None:
        """Adds (K, w, w), weighted, with its first column at ``column``, cut to the block."""
        if self.sums is None:
            self.sums = np.zeros((len(prediction), self.window, self.end - self.begin), np.float32)
        first, last = max(column, self.begin), min(column + self.window, self.end)
        inside = slice(first - column, last - column)
        weight = row_weight[:, None] * column_weight[inside]
        for total, values in zip(self.sums, prediction):
            total[:, first - self.begin : last - self.begin] += values[:, inside] * weight

    def advance(self, top: int) -> None:
        """Drops the rows above ``top``."""
        step, self.top = top - self.top, top
        if self.sums is not None and step:
            kept = max(self.window - step, 0)
            self.sums[:, :kept] = self.sums[:, self.window - kept :]
            self.sums[:, kept:] = 0


class _Job(NamedTuple):
    """A batch: windows of one row of windows, and whether they are its last."""

    row: int
    columns: Sequence[int]
    last: bool


def finished_units(height: int, width: int, tiling: Tiling = TILING) -> list[Window]:
    """The pieces in which :func:`predict_tiled` writes, in order; together they cover the raster once.

    >>> finished_units(600, 300)
    [(0, 0, 88, 300), (88, 0, 512, 300)]
    """
    rows, columns = (Axis(n, tiling.window, tiling.overlap) for n in (height, width))
    spans = list(pairwise(rows.bounds))
    return [(a, begin, b - a, end - begin) for begin, end in columns.blocks(tiling.block) for a, b in spans]


def predict_tiled(
    infer: Infer,
    read: Read,
    channels: int,
    height: int,
    width: int,
    write: Write,
    tiling: Tiling = TILING,
    device: str | torch.device = "cpu",
    done: Container[Window] = (),
) -> None:
    """Runs a network over a raster and blends its windows.

    Args:
        infer: images (B, C, w, w) on ``device`` -> (B, K, w, w); called under ``no_grad``. The images are overwritten
            after the next call.
        read: takes a window, w wide and at most w high, and fills its (C, rows, w), which are a part of the batch:
            nothing is copied. Called in a thread of its own, one batch ahead. A window leaves the raster where that is
            smaller; what stands there comes to nothing, but has to be filled.
        channels: C.
        height: of the raster.
        width: of the raster.
        write: window of :func:`finished_units`, (K, rows, columns) -> None. The array is used again after the call.
        tiling: how the raster is cut.
        device: of the network; the sums stay on the CPU.
        done: units that an earlier run wrote. They are not written again, and the others come out bit for bit as in
            one run, as long as ``infer`` is a function of its batch alone.

    Raises:
        StagewiseError: a tiling that does not cover, or arrays of another shape than promised.

    >>> halves = lambda image: image / 2
    >>> found = np.zeros((1, 70, 50), np.float32)
    >>> def write(window, values):
    ...     row, column, rows, columns = window
    ...     found[:, row : row + rows, column : column + columns] = values
    >>> predict_tiled(halves, lambda window, pixels: pixels.fill(1), 1, 70, 50, write, Tiling(32, 8, 4, 32))
    >>> bool(np.abs(found - 0.5).max() < 1e-6)
    True
    """
    _check(tiling, height, width)
    axes = [Axis(n, tiling.window, tiling.overlap) for n in (height, width)]
    for begin, end in axes[1].blocks(tiling.block):
        load = WindowReader(read, axes, (begin, end), (tiling.batch, channels, tiling.window, tiling.window))
        units = [(a, begin, b - a, end - begin) for a, b in pairwise(axes[0].bounds)]
        pending = [unit not in done for unit in units]
        strip = _Strip(begin, end, tiling.window)
        jobs = list(_jobs(axes[0], axes[1].touching(begin, end), pending, tiling.batch))
        with closing(_ahead(load, jobs)) as batches:
            for job, images in batches:
                strip.advance(axes[0].starts[job.row])
                _add(strip, _infer(infer, images.to(device)), axes, job)
                if job.last and pending[job.row] and strip.sums is not None:
                    write(units[job.row], strip.sums[:, : units[job.row][2]])


def _jobs(rows: Axis, columns: Sequence[int], pending: Sequence[bool], batch: int) -> Iterator[_Job]:
    """Batches never span two rows of windows, so that a resumed run forms the same ones."""
    wanted = [(a, b) for (a, b), wait in zip(pairwise(rows.bounds), pending) if wait]
    for row in sorted({i for a, b in wanted for i in rows.touching(a, b)}):
        for first in range(0, len(columns), batch):
            yield _Job(row, columns[first : first + batch], first + batch >= len(columns))


def _ahead(load: WindowReader, jobs: Iterable[_Job]) -> Generator[tuple[_Job, Tensor], None, None]:
    """Loads the next batch while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for job in jobs:
            following = (job, reader.submit(load, job.row, job.columns))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _infer(infer: Infer, images: Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        prediction = infer(images)
    if prediction.shape[:1] + prediction.shape[2:] != images.shape[:1] + images.shape[2:]:
        raise StagewiseError(f"`infer` made {tuple(prediction.shape)} of {tuple(images.shape)}; it must keep B, H, W.")
    found: NDArray[np.float32] = prediction.float().cpu().numpy()
    return found


def _add(strip: _Strip, predictions: NDArray[np.float32], axes: Sequence[Axis], job: _Job) -> None:
    for prediction, column in zip(predictions, job.columns):
        weights = axes[0].weights[job.row], axes[1].starts[column], axes[1].weights[column]
        strip.add(prediction, *weights)


def _check(tiling: Tiling, height: int, width: int) -> None:
    if not 0 <= 2 * tiling.overlap <= tiling.window:
        raise StagewiseError(f"`overlap` must be 0 to half of the window {tiling.window}, got {tiling.overlap}.")
    if min(tiling.batch, tiling.block, tiling.window, height, width) < 1:
        raise StagewiseError(f"{tiling} over {height} x {width} pixels: sizes must be at least 1.")
