"""Rasters on disk: a file that is whole, and the reference grid."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetNotFoundError, StagewiseError
from .extras import require

CACHE_BYTES = 32 << 20
"""Of GDAL, whose default is a twentieth of the machine's memory and would make the memory grow with the raster."""
NO_CRS = "{path} has no CRS; give it its own, for example `rio edit-info --crs EPSG:32642 {path}`."


@dataclass(frozen=True)
class Grid:
    """Square metric pixels, north up.

    Attributes:
        crs: WKT.
        transform: the affine one's first six numbers; x of the left edge is the third, y of the top edge the sixth.
        width: columns.
        height: rows.

    >>> grid = Grid("", (10.0, 0.0, 500.0, 0.0, -10.0, 900.0), 30, 20)
    >>> grid.pixel_size_m, grid.bounds
    (10.0, (500.0, 700.0, 800.0, 900.0))
    >>> Grid.from_plain(grid.to_plain()) == grid
    True
    """

    crs: str
    transform: tuple[float, ...]
    width: int
    height: int

    @property
    def pixel_size_m(self) -> float:
        """Side of a pixel."""
        return self.transform[0]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top."""
        size, left, top = self.transform[0], self.transform[2], self.transform[5]
        return left, top - self.height * size, left + self.width * size, top

    def pixels_of(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of places, which may lie outside."""
        column = np.floor((x - self.transform[2]) / self.transform[0])
        row = np.floor((self.transform[5] - y) / self.transform[0])
        return row.astype(np.int64), column.astype(np.int64)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON or a checkpoint."""
        return {**asdict(self), "transform": list(self.transform)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Grid":
        """Back from ``to_plain``."""
        return cls(**{**values, "transform": tuple(values["transform"])})


@contextmanager
def bounded_cache() -> Iterator[None]:
    """Reads and writes rasters with little memory."""
    require("rasterio")
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):  # rasterio counts bytes, whatever GDAL says of small numbers
        yield


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A raster that is there, readable and whole.

    Raises:
        DatasetNotFoundError: there is no such file.
        StagewiseError: it is no raster, or it is truncated.
    """
    require("rasterio")
    import rasterio

    path = Path(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"no raster {path}.")
    try:
        raster = rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise StagewiseError(
            f"{path} cannot be read as a raster ({error}); it may be truncated: copy it anew."
        ) from None
    with raster:
        _check_whole(raster, path)
        yield raster


def _check_whole(raster: Any, path: Path) -> None:
    """GDAL opens a TIFF whose last blocks were never copied, and fails half-way; its table of blocks tells at once."""
    if raster.driver != "GTiff":
        return
    size = path.stat().st_size
    rows, columns = raster.block_shapes[0]
    bands = raster.indexes if raster.profile.get("interleave") == "band" else (1,)
    for band in bands:
        for i in range(-(-raster.height // rows)):
            for j in range(-(-raster.width // columns)):
                offset = raster.get_tag_item(f"BLOCK_OFFSET_{j}_{i}", "TIFF", bidx=band)
                length = raster.get_tag_item(f"BLOCK_SIZE_{j}_{i}", "TIFF", bidx=band)
                if offset is not None and int(offset) + int(length or 0) > size:
                    raise StagewiseError(
                        f"{path} is truncated: its block ({i}, {j}) of band {band} ends at byte "
                        f"{int(offset) + int(length)}, the file has {size}; copy it anew."
                    )


def read_grid(path: str | Path) -> Grid:
    """The grid of a raster.

    Raises:
        StagewiseError: the file is missing or truncated, has no CRS or one without metres, or its pixels are rotated,
            not square or not north up.
    """
    with opened(path) as raster:
        crs, transform = raster.crs, tuple(float(value) for value in raster.transform)[:6]
        grid = (raster.width, raster.height)
    _check_crs(crs, path)
    a, b, _, d, e, _ = transform
    if b or d or a <= 0 or e >= 0 or abs(a + e) > 1e-6 * a:
        raise StagewiseError(
            f"{path} must have square pixels, north up, without rotation; its transform is {transform}: "
            "reproject it, for example `rio warp --res`."
        )
    return Grid(crs.to_wkt(), transform, *grid)


def _check_crs(crs: Any, path: str | Path) -> None:
    if crs is None:
        raise StagewiseError(NO_CRS.format(path=path))
    remedy = "reproject it to a metric one, such as its UTM zone: `rio warp --dst-crs EPSG:326xx`."
    if not crs.is_projected:
        raise StagewiseError(f"{path} has the CRS {crs.to_string()[:80]}, in degrees; {remedy}")
    if abs(crs.linear_units_factor[1] - 1) > 1e-9:
        raise StagewiseError(f"{path} has the CRS {crs.to_string()[:80]}, in {crs.linear_units}; {remedy}")


def check_pixel_size(grid: Grid, expected_m: float, tolerance: float = 0.01) -> None:
    """Refuses a grid whose pixels are not those that a model was trained with.

    Raises:
        StagewiseError: names both sizes.

    >>> check_pixel_size(Grid("", (10.05, 0.0, 0.0, 0.0, -10.05, 0.0), 1, 1), 10.0)
    """
    if abs(grid.pixel_size_m - expected_m) > tolerance * expected_m:
        raise StagewiseError(
            f"the raster's pixels are {grid.pixel_size_m:g} m, the model was trained with {expected_m:g} m; "
            f"resample it, for example `rio warp --res {expected_m:g}`."
        )
