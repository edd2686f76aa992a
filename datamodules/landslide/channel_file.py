"""A raster that is written block by block and goes on after a kill."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .prepared import CHANNELS_FILE, Window
from .rasters import Grid

PART, PROGRESS, FACTS = f"{CHANNELS_FILE}.part", "channels.part.json", "channels.json"
TILE_PX = 256


class ChannelFile:
    """``channels.tif`` while it is made.

    The whole file is laid out first, uncompressed, so that a block has its place from the start: a block that a kill
    tore is written again, and the result is the same bytes as without the kill. It gets its name when all is there.

    Args:
        target: folder.
        grid: of the raster.
        bands: their names.
        key: of inputs and settings; progress under another key is thrown away.

    Raises:
        StagewiseError: there is not enough room.
    """

    def __init__(self, target: Path, grid: Grid, bands: tuple[str, ...], key: str) -> None:
        self.target, self.grid, self.bands, self.key = target, grid, bands, key
        self.part, self._progress = target / PART, target / PROGRESS
        target.mkdir(parents=True, exist_ok=True)
        self.done = self._found()
        if not self.done:
            self._lay_out()

    def _found(self) -> int:
        if not (self._progress.is_file() and self.part.is_file()):
            return 0
        progress = json.loads(self._progress.read_text())
        return int(progress["done"]) if progress["key"] == self.key else 0

    def _lay_out(self) -> None:
        import rasterio

        self._progress.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)
        size = 4 * len(self.bands) * self.grid.width * self.grid.height
        free = shutil.disk_usage(self.target).free
        if free < size:
            raise StagewiseError(f"{self.target} has {free:,} bytes free, the channels need {size:,}; make room.")
        profile = {
            "driver": "GTiff",
            "dtype": "float32",
            "nodata": np.nan,
            "crs": self.grid.crs,
            "transform": rasterio.Affine(*self.grid.transform),
            "width": self.grid.width,
            "height": self.grid.height,
            "count": len(self.bands),
            "tiled": True,
            "blockxsize": TILE_PX,
            "blockysize": TILE_PX,
            "interleave": "band",
            "BIGTIFF": "IF_SAFER",
        }
        with self._clear_errors(), rasterio.open(self.part, "w", **profile) as raster:
            raster.descriptions = self.bands
        if self.part.stat().st_size < size:  # GDAL does not always say that the disk was full
            raise self._full("the file could not be laid out")

    def write(self, window: Window, values: NDArray[np.float32]) -> None:
        """Writes the next block and makes it durable.

        Raises:
            StagewiseError: the disk is full or refuses.
        """
        import rasterio

        row, column, rows, columns = window
        place = ((row, row + rows), (column, column + columns))
        with self._clear_errors():
            with rasterio.open(self.part, "r+") as raster:
                raster.write(values, window=place)
            with rasterio.open(self.part) as raster:
                written = np.array_equal(raster.read(window=place), values, equal_nan=True)
            if not written:
                raise self._full(f"block {window} did not reach it")
            _sync(self.part)
            self.done += 1
            write_json(self._progress, {"key": self.key, "done": self.done})

    def finish(self, facts: dict[str, Any]) -> None:
        """Gives the file its name; ``facts`` go beside it."""
        with self._clear_errors():
            (self.target / FACTS).unlink(missing_ok=True)
            os.replace(self.part, self.target / CHANNELS_FILE)
            write_json(self.target / FACTS, facts)
            self._progress.unlink(missing_ok=True)

    def _full(self, why: object) -> StagewiseError:
        return StagewiseError(
            f"{self.part} cannot be written ({why}); is the disk full? Make room and run it again: it goes on."
        )

    def _clear_errors(self) -> "_ClearErrors":
        return _ClearErrors(self)


class _ClearErrors:
    def __init__(self, file: ChannelFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        from rasterio.errors import RasterioError

        if isinstance(error, OSError | RasterioError):
            raise self._file._full(error) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes it under its name only when it is complete and durable."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1))
    _sync(part)
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """Its content; empty where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
