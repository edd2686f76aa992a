"""The bridge to Whitebox Workflows: an array goes in as a raster in memory, arrays come out."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .extras import require

NODATA = -9999.0
Elevation = NDArray[Any]


@cache
def environment() -> Any:
    """The library."""
    return import_module("whitebox_workflows").WbEnvironment()  # its stub file is no valid Python


@cache
def hydrology_tool(name: str) -> Any:
    """A tool of the library's hydrology; it searches its whole catalogue for each, which takes longer than a block."""
    return getattr(environment().hydrology, name)


@contextmanager
def surface(elevation: Elevation, pixel_size_m: float) -> Iterator[Any]:
    """The terrain model in the library's memory, which is freed at the end.

    The library takes files only, so the array travels through a temporary one. It is written as float64: the tiny
    gradients that it puts on filled ground are below float32's resolution at 5000 m.

    Args:
        elevation: (H, W) metres, NaN is nodata.
        pixel_size_m: of its square pixels.

    Raises:
        StagewiseError: the library is not installed, or the temporary folder is full.
    """
    require("rasterio", "whitebox_workflows")
    import rasterio

    whitebox = environment()
    with tempfile.TemporaryDirectory(prefix="stagewise-") as folder:
        path = str(Path(folder) / "dtm.tif")
        profile = {"driver": "GTiff", "count": 1, "dtype": "float64", "nodata": NODATA}
        transform = rasterio.Affine(pixel_size_m, 0, 0, 0, -pixel_size_m, 0)
        rows, columns = elevation.shape
        try:
            with rasterio.open(path, "w", height=rows, width=columns, transform=transform, **profile) as raster:
                raster.write(np.where(np.isnan(elevation), NODATA, elevation).astype(np.float64), 1)
        except (OSError, rasterio.errors.RasterioError) as error:
            raise StagewiseError(f"{path} cannot be written ({error}); make room there, or set TMPDIR.") from None
        in_memory = whitebox.read_raster(path, file_mode="m")
    try:
        yield in_memory
    finally:
        whitebox.clear_raster_memory()
