"""Terrain channels of a piece of a terrain model: slope, aspect, curvatures, position, ruggedness.

Slope, aspect and curvatures are Whitebox's: a third-order polynomial in a 5 x 5 window (Florinsky 2016, Digital Terrain
Analysis in Soil Science and Geology). Every value depends on its window only, so that pieces of any size agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .whitebox import Elevation, environment, surface

FIT_PX = 2
"""Half the window of the polynomial."""
Margins = tuple[int, int, int, int]
"""Pixels at the top, bottom, left and right."""
Channels = dict[str, NDArray[np.float32]]
CURVATURES = {
    "curvature": "mean_curvature",
    # Of the normal section along the contour: the curvature of the contour line itself has no bound on flat ground.
    "plan_curvature": "tangential_curvature",
    "profile_curvature": "profile_curvature",
}


@dataclass(frozen=True)
class TerrainSettings:
    """Windows and caps of the terrain and hydrology channels.

    Attributes:
        tpi_radius_m: half the window of the topographic position index.
        tri_radius_m: half the window of the ruggedness index.
        hydrology_halo_m: ground around a block that its water may come from.
        breach_m: a depression without a way out of this length stays a sink.
        area_cap_m2: a contributing area counts up to this; larger ones would need a larger halo.
        drainage_area_m2: a pixel with this contributing area is drainage.
        distance_cap_m: a distance to drainage counts up to this; at most half the halo.

    Raises:
        StagewiseError: a value that is not positive, or caps that the halo cannot serve.

    >>> TerrainSettings.of({"tpi_radius_m": 50}).tpi_radius_m
    50.0
    """

    tpi_radius_m: float = 100.0
    tri_radius_m: float = 30.0
    hydrology_halo_m: float = 1000.0
    breach_m: float = 200.0
    area_cap_m2: float = 100_000.0
    drainage_area_m2: float = 50_000.0
    distance_cap_m: float = 500.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise StagewiseError(f"terrain setting `{name}` must be above 0, got {value}.")
        if self.drainage_area_m2 > self.area_cap_m2:
            raise StagewiseError(
                f"`drainage_area_m2` {self.drainage_area_m2:g} is above `area_cap_m2` {self.area_cap_m2:g}: "
                "no pixel would be drainage."
            )
        if self.distance_cap_m > self.hydrology_halo_m / 2:
            raise StagewiseError(
                f"`distance_cap_m` {self.distance_cap_m:g} is above half of `hydrology_halo_m` "
                f"{self.hydrology_halo_m:g}: drainage that far away would not be seen alike from every block."
            )

    @classmethod
    def of(cls, settings: dict[str, Any] | None) -> "TerrainSettings":
        """From plain values; what is not given has its default."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings or {}) - set(known))
        if unknown:
            raise StagewiseError(f"no terrain setting {unknown}; there are {known}.")
        return cls(**{name: float(value) for name, value in (settings or {}).items()})

    def to_plain(self) -> dict[str, float]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)

    def terrain_halo_px(self, pixel_size_m: float) -> int:
        """Pixels around a block that its terrain channels look at."""
        radii = (radius_px(metres, pixel_size_m) for metres in (self.tpi_radius_m, self.tri_radius_m))
        return max(FIT_PX, *radii)


def radius_px(metres: float, pixel_size_m: float) -> int:
    """Half a window in pixels, at least one.

    >>> radius_px(100, 10), radius_px(5, 10)
    (10, 1)
    """
    return max(1, round(metres / pixel_size_m))


def terrain_channels(
    names: Sequence[str],
    elevation: Elevation,
    beyond: Margins,
    pixel_size_m: float,
    settings: TerrainSettings,
) -> Channels:
    """The named ones of ``channels.TERRAIN`` for a block.

    Ground beyond the raster's edge is its point reflection, which continues a plane as that plane.

    Args:
        names: of the channels.
        elevation: (H, W) metres, NaN is nodata: the block and ``settings.terrain_halo_px`` around it, as far as the
            raster goes.
        beyond: the halo's pixels that lie beyond the raster on each side.
        pixel_size_m: of its square pixels.
        settings: the windows.

    Returns:
        Name -> (h, w) of the block. NaN where there is no elevation; slope, aspect and curvatures also where the window
        of the polynomial holds a pixel without one.
    """
    top, bottom, left, right = beyond
    padded = np.pad(elevation, ((top, bottom), (left, right)), mode="reflect", reflect_type="odd")
    halo = settings.terrain_halo_px(pixel_size_m)

    def block_with(margin: int) -> Elevation:
        start = halo - margin
        return padded[start : padded.shape[0] - start, start : padded.shape[1] - start]

    makers: dict[str, Callable[[], NDArray[Any]]] = {
        "elevation": lambda: block_with(0),
        "tpi": lambda: _windowed(position_index, settings.tpi_radius_m, pixel_size_m, block_with),
        "tri": lambda: _windowed(ruggedness_index, settings.tri_radius_m, pixel_size_m, block_with),
    }
    fitted = [name for name in names if name not in makers]
    channels = surface_fit(fitted, block_with(FIT_PX), pixel_size_m) if fitted else {}
    channels.update({name: makers[name]().astype(np.float32) for name in names if name in makers})
    return channels


def _windowed(
    index: Callable[[Elevation, int], Elevation], metres: float, pixel_size_m: float, block_with: Callable[[int], Any]
) -> Elevation:
    radius = radius_px(metres, pixel_size_m)
    return index(block_with(radius), radius)[radius:-radius, radius:-radius]


def surface_fit(names: Sequence[str], elevation: Elevation, pixel_size_m: float) -> Channels:
    """Slope, aspect and curvatures, without the outermost two pixels on each side.

    Args:
        names: of ``slope`` (degrees), ``aspect_sin`` and ``aspect_cos`` (downslope, clockwise from north; 0 and 0 on
            flat ground), ``curvature``, ``plan_curvature``, ``profile_curvature`` (1/m, negative in hollows).
        elevation: (H, W) metres, NaN is nodata.
        pixel_size_m: of its square pixels.
    """
    from scipy.ndimage import maximum_filter

    inner = (slice(FIT_PX, -FIT_PX), slice(FIT_PX, -FIT_PX))
    missing = maximum_filter(np.isnan(elevation), size=2 * FIT_PX + 1)[inner]
    channels: Channels = {}
    with surface(elevation, pixel_size_m) as raster:

        def compute(tool: str) -> NDArray[np.float32]:
            values = getattr(environment(), tool)(raster).to_numpy(dtype="float32")[inner]
            return np.where(missing, np.float32(np.nan), values)

        if "slope" in names:
            channels["slope"] = compute("slope")
        if {"aspect_sin", "aspect_cos"} & set(names):
            channels.update(_aspect(compute("aspect"), names))
        channels.update({name: compute(tool) for name, tool in CURVATURES.items() if name in names})
    return channels


def _aspect(degrees: NDArray[np.float32], names: Sequence[str]) -> Channels:
    flat = degrees < 0  # the library's mark
    radians = np.radians(degrees)
    parts = {"aspect_sin": np.sin(radians), "aspect_cos": np.cos(radians)}
    return {name: np.where(flat, np.float32(0), part) for name, part in parts.items() if name in names}


def position_index(elevation: Elevation, radius: int) -> Elevation:
    """Height above the mean of the square window (Weiss 2001), over its pixels that have data; (H, W) metres."""
    mean = _window_mean(elevation, radius)
    return elevation - mean


def ruggedness_index(elevation: Elevation, radius: int) -> Elevation:
    """Root mean square of the differences between the window's other pixels and its middle; (H, W) metres.

    Riley et al. (1999) sum the squares; the mean makes windows of different sizes comparable.
    """
    mean, square = _window_mean(elevation, radius), _window_mean(elevation**2, radius)
    others = _window_mean(np.where(np.isnan(elevation), np.nan, 1.0), radius, count=True)
    total = (square - 2 * elevation * mean + elevation**2) * others
    return np.sqrt(np.maximum(total, 0) / np.maximum(others - 1, 1))


def _window_mean(values: Elevation, radius: int, count: bool = False) -> Elevation:
    """Sums pixel by pixel, not as a running sum: the result does not depend on where the piece begins."""
    from scipy.ndimage import correlate1d

    ones = np.ones(2 * radius + 1)
    valid = ~np.isnan(values)

    def total(of: Elevation) -> Elevation:
        return correlate1d(correlate1d(of.astype(np.float64), ones, 0, mode="constant"), ones, 1, mode="constant")

    n = total(valid)
    return n if count else total(np.where(valid, values, 0)) / np.maximum(n, 1)
