"""An area whose channels and labels lie ready on disk."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelList

CHANNELS_FILE, LABELS_FILE = "channels.tif", "labels.tif"
NO_LABEL = 0
Window = tuple[int, int, int, int]
"""First row, first column, rows, columns."""


class PreparedArea:
    """Windows of an area's channels and labels.

    Args:
        name: of the area.
        folder: with ``channels.tif`` (float32, NaN is nodata, bands described by ``channels.stored``) and, where the
            area has labels, ``labels.tif`` (uint8 on the same grid, 0 is none, 1 the lowest class).
        channels: that the bands are expanded to.
    """

    def __init__(self, name: str, folder: str | Path, channels: ChannelList) -> None:
        import rasterio

        self.name, self.folder, self.channels = name, Path(folder), channels
        with rasterio.open(self.folder / CHANNELS_FILE) as raster:
            self.height, self.width = raster.height, raster.width
            self.crs, self.transform = raster.crs.to_wkt(), tuple(raster.transform)[:6]
        self._open: dict[tuple[int, str], Any] = {}

    @property
    def pixel_size_m(self) -> float:
        """Side of a pixel in metres."""
        return float(self.transform[0])

    @property
    def has_labels(self) -> bool:
        """Whether there is a label raster."""
        return (self.folder / LABELS_FILE).is_file()

    def read_channels(self, window: Window) -> NDArray[np.float32]:
        """(C, rows, columns) in physical units, NaN where there is no data or the window leaves the raster."""
        return self.channels.expand(self._read(CHANNELS_FILE, window, np.float32(np.nan)))

    def read_labels(self, window: Window) -> NDArray[np.int64]:
        """(rows, columns) class from 0, -1 where there is no label or the window leaves the raster."""
        return self._read(LABELS_FILE, window, np.uint8(NO_LABEL))[0].astype(np.int64) - 1

    def _read(self, name: str, window: Window, fill: Any) -> NDArray[Any]:
        row, column, rows, columns = window
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + rows, self.height), min(column + columns, self.width)
        raster = self._raster(name)
        found = np.full((raster.count, rows, columns), fill)
        if bottom > top and right > left:
            inside = raster.read(window=((top, bottom), (left, right)))
            found[:, top - row : bottom - row, left - column : right - column] = inside
        return found

    def _raster(self, name: str) -> Any:
        key = (os.getpid(), name)  # a forked worker opens its own: GDAL's handles do not survive a fork
        if key not in self._open:
            import rasterio

            self._open[key] = rasterio.open(self.folder / name)
        return self._open[key]

    def close(self) -> None:
        """Closes the files; the next read opens them again."""
        for raster in self._open.values():
            raster.close()
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __enter__(self) -> "PreparedArea":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
