"""What a step of the chain leaves on disk for the next: an array a window, a file each."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datamodules.landslide.prepared import Window

PART = ".part"
REMEDY = "make room on the disk and run it again: it goes on"


class Stage:
    """Arrays of windows that cover a raster once.

    A window is there when its file has its name, and a file gets its name when it is whole and on disk: a run that is
    killed, or that finds the disk full, leaves what it finished and nothing else.

    Args:
        folder: of the files; made if need be. One of its own for each set of inputs and settings.
        windows: that cover the raster.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stage = Stage(folder, [(0, 0, 2, 2), (0, 2, 2, 2)])
    ...     stage.write((0, 0, 2, 2), np.full((1, 2, 2), 7, np.float32))
    ...     stage.write((0, 2, 2, 2), np.full((1, 2, 2), 8, np.float32))
    ...     stage.read((1, 1, 1, 2)).tolist(), len(Stage(folder, stage.windows).done)
    ([[[7.0, 8.0]]], 2)
    """

    def __init__(self, folder: str | Path, windows: Sequence[Window]) -> None:
        self.folder, self.windows = Path(folder), list(windows)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{PART}"):
            leftover.unlink()
        self.done = {window for window in self.windows if self._path(window).is_file()}

    def _path(self, window: Window) -> Path:
        return self.folder / f"{'_'.join(map(str, window))}.npy"

    def write(self, window: Window, values: NDArray[np.float32]) -> None:
        """Writes (K, rows, columns) of one of ``windows``.

        Raises:
            OSError: the disk is full; the window is not there then.
        """
        path = self._path(window)
        part = path.with_suffix(PART)
        try:
            with open(part, "wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            raise OSError(f"'{path}' could not be written ({error}); {REMEDY}.") from error
        finally:
            part.unlink(missing_ok=True)
        self.done.add(window)

    def read(self, window: Window) -> NDArray[np.float32]:
        """(K, rows, columns) of any window inside the raster."""
        row, column, rows, columns = window
        found: NDArray[np.float32] | None = None
        for piece in self.windows:
            top, left = max(row, piece[0]), max(column, piece[1])
            bottom, right = min(row + rows, piece[0] + piece[2]), min(column + columns, piece[1] + piece[3])
            if bottom <= top or right <= left:
                continue
            values = np.load(self._path(piece), mmap_mode="r")  # reads the pages that are asked for and no more
            if found is None:
                found = np.full((len(values), rows, columns), np.nan, np.float32)
            inside = values[:, top - piece[0] : bottom - piece[0], left - piece[1] : right - piece[1]]
            found[:, top - row : bottom - row, left - column : right - column] = inside
        if found is None:
            raise ValueError(f"the window {window} lies outside of the raster.")
        return found
