"""Windows of a raster on a grid that may not be its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .prepared import Window
from .rasters import NO_CRS, Grid, opened

Band = str | int
"""Name (the band's description) or number from 1."""


def check_covers(grid: Grid, raster: Any, path: str | Path, whole: bool = True) -> None:
    """Refuses a raster whose outline leaves out a part of the grid.

    Its last pixel's width is forgiven: two rasters cut to one outline seldom end in the same pixel.

    Args:
        grid: to be covered.
        raster: opened.
        path: for the message.
        whole: False is content with an overlap.

    Raises:
        StagewiseError: says how much of the grid is covered.
    """
    if raster.crs is None:
        raise StagewiseError(NO_CRS.format(path=path))
    left, bottom, right, top = grid.bounds
    half = grid.pixel_size_m / 2
    x, y = np.meshgrid(np.linspace(left + half, right - half, 65), np.linspace(top - half, bottom + half, 65))
    column, row = _source_pixels(grid, raster, x.ravel(), y.ravel())
    inside = (column >= -1) & (column <= raster.width + 1) & (row >= -1) & (row <= raster.height + 1)
    if not inside.any():
        raise StagewiseError(
            f"{path} does not overlap the reference grid, whose bounds are {grid.bounds}; is it of another place, or "
            f"its CRS ({raster.crs.to_string()[:80]}) wrong?"
        )
    if whole and not inside.all():
        raise StagewiseError(
            f"{path} covers {inside.mean():.0%} of the reference grid, whose bounds are {grid.bounds}; "
            "cut the terrain model to what all inputs cover."
        )


def _source_pixels(grid: Grid, raster: Any, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Columns and rows in the raster, with fractions, of places in the grid's CRS."""
    from rasterio.warp import transform

    there_x, there_y = (np.array(values) for values in transform(grid.crs, raster.crs, x.tolist(), y.tolist()))
    a, b, c, d, e, f = tuple(~raster.transform)[:6]
    return a * there_x + b * there_y + c, d * there_x + e * there_y + f


def _fixed_scale(grid: Grid, raster: Any) -> dict[str, float]:
    """How far the interpolation reaches; GDAL estimates it anew for each window, and values would depend on it."""
    left, bottom, right, top = grid.bounds
    x = (left + right) / 2 + np.array([0, grid.pixel_size_m, 0])
    y = (bottom + top) / 2 + np.array([0, 0, grid.pixel_size_m])
    column, row = _source_pixels(grid, raster, x, y)
    across, down = (np.hypot(column[i] - column[0], row[i] - row[0]) for i in (1, 2))
    return {"XSCALE": float(1 / across), "YSCALE": float(1 / down)}


def band_numbers(raster: Any, wanted: Sequence[Band], path: str | Path) -> list[int]:
    """Numbers of bands that are given by number or by their description.

    Raises:
        StagewiseError: one that is not there; names those that are.
    """
    names = {name: number for number, name in zip(raster.indexes, raster.descriptions) if name}
    numbers = [names.get(band) if isinstance(band, str) else band for band in wanted]
    missing = [band for band, number in zip(wanted, numbers) if number not in raster.indexes]
    if missing:
        there = list(names) or f"without names, {raster.count} of them"
        raise StagewiseError(f"{path} has no band {missing}; its bands: {there}; name others in `inputs`.")
    return [number for number in numbers if number is not None]


class AlignedRaster:
    """Windows of a raster on a grid, which may not be its own.

    Args:
        path: of the raster.
        bands: names or numbers.
        grid: that is read.
        classes: values are codes: the nearest is taken, otherwise they are interpolated.
        whole: the grid must be covered entirely.

    Raises:
        StagewiseError: it is missing or truncated, lacks a band, or does not cover the grid.
    """

    def __init__(
        self, path: str | Path, bands: Sequence[Band], grid: Grid, classes: bool = False, whole: bool = True
    ) -> None:
        import rasterio
        from rasterio.enums import Resampling

        self.path = Path(path)
        with opened(self.path) as raster:
            self.bands = band_numbers(raster, bands, self.path)
            check_covers(grid, raster, self.path, whole)
        self._source = rasterio.open(self.path)
        self._view = self._source
        own = (self._source.width, self._source.height, tuple(self._source.transform)[:6])
        if own == (grid.width, grid.height, grid.transform) and self._source.crs == rasterio.CRS.from_wkt(grid.crs):
            return
        self._view = self._warped(grid, Resampling.nearest if classes else Resampling.bilinear)

    def _warped(self, grid: Grid, resampling: Any) -> Any:
        from rasterio import Affine
        from rasterio.enums import ColorInterp
        from rasterio.vrt import WarpedVRT

        source = self._source
        floating = np.issubdtype(source.dtypes[0], np.floating)
        nodata = source.nodata if source.nodata is not None else (np.nan if floating else None)
        if nodata is None:  # beyond its edge there would be zeros
            mask: dict[str, Any] = {"add_alpha": ColorInterp.alpha not in source.colorinterp}
        else:
            mask = {"src_nodata": nodata, "nodata": nodata}
        return WarpedVRT(
            source,
            crs=grid.crs,
            transform=Affine(*grid.transform),
            width=grid.width,
            height=grid.height,
            resampling=resampling,
            tolerance=1e-6,  # pixels; the default 0.125 lets a value depend on the window it is read with
            **mask,
            **_fixed_scale(grid, source),
        )

    def read(self, window: Window) -> NDArray[np.float32]:
        """(bands, rows, columns), NaN where there is no data.

        Raises:
            StagewiseError: the file cannot be read there.
        """
        from rasterio.errors import RasterioError

        row, column, rows, columns = window
        try:
            found = self._view.read(
                self.bands, window=((row, row + rows), (column, column + columns)), masked=True, out_dtype="float32"
            )
        except RasterioError as error:
            raise StagewiseError(f"{self.path} cannot be read at {window} ({error}); copy it anew.") from None
        return found.filled(np.nan)

    def close(self) -> None:
        """Closes the file."""
        if self._view is not self._source:
            self._view.close()
        self._source.close()
