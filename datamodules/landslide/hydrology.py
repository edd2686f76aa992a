"""Hydrology channels of a piece of a terrain model.

Water may come from anywhere, a block sees only its halo: contributing area and distance to drainage are capped at what
the halo can serve, so that neighbouring blocks agree (tests measure how well).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .terrain import Channels, TerrainSettings, radius_px
from .whitebox import Elevation, hydrology_tool, surface

MIN_SLOPE_DEG = 0.1
"""Flat ground counts as this steep in the wetness index, which would be infinite there."""


def contributing_area(elevation: Elevation, pixel_size_m: float, breach_m: float) -> NDArray[np.float64]:
    """Area that drains through each pixel, itself included: D-infinity (Tarboton 1997, doi:10.1029/96WR03137).

    Depressions are breached first, along the cheapest way out that is at most ``breach_m`` long (Lindsay and Dhun 2015,
    doi:10.1080/13658816.2014.975715); others stay as sinks. Filling them to the brim, as is usual, sends their water
    over an outlet that may be any distance away, and 2 to 8 % of a block's pixels then differ from the whole raster's.

    Args:
        elevation: (H, W) metres, NaN is nodata; water leaves at the edge and into nodata.
        pixel_size_m: of its square pixels.
        breach_m: longest way out.

    Returns:
        (H, W) square metres, NaN where there is no elevation.
    """
    missing = np.isnan(elevation)
    if missing.all():
        return np.full(elevation.shape, np.nan)
    with surface(elevation, pixel_size_m) as raster:
        breach, accumulate = hydrology_tool("breach_depressions_least_cost"), hydrology_tool("dinf_flow_accum")
        draining = breach(dem=raster, max_dist=radius_px(breach_m, pixel_size_m), fill_deps=False)
        cells = accumulate(input=draining, out_type="cells").to_numpy()
    return np.where(missing, np.nan, cells * pixel_size_m**2)


def drainage_distance(area_m2: NDArray[Any], pixel_size_m: float, settings: TerrainSettings) -> NDArray[np.float64]:
    """Straight distance to the nearest pixel of drainage; (H, W) metres, at most ``distance_cap_m``."""
    from scipy.ndimage import distance_transform_edt

    drainage = area_m2 >= settings.drainage_area_m2
    if not drainage.any():
        return np.where(np.isnan(area_m2), np.nan, settings.distance_cap_m)
    distance = distance_transform_edt(~drainage, sampling=pixel_size_m)
    return np.where(np.isnan(area_m2), np.nan, np.minimum(distance, settings.distance_cap_m))


def topographic_wetness(specific_area_m: NDArray[Any], slope_deg: NDArray[Any]) -> Any:
    """``ln(a / tan b)``: Beven and Kirkby (1979), doi:10.1080/02626667909491834.

    >>> topographic_wetness(np.array([100.0, 100.0]), np.array([45.0, 0.0])).round(2)
    array([ 4.61, 10.96])
    """
    return np.log(specific_area_m / np.tan(np.radians(np.maximum(slope_deg, MIN_SLOPE_DEG))))


def stream_power(specific_area_m: NDArray[Any], slope_deg: NDArray[Any]) -> Any:
    """``ln(1 + a tan b)``, the logarithm of Moore et al. (1991), doi:10.1002/hyp.3360050103; 0 on flat ground.

    >>> stream_power(np.array([100.0, 100.0]), np.array([45.0, 0.0])).round(2)
    array([4.62, 0.  ])
    """
    return np.log1p(specific_area_m * np.tan(np.radians(slope_deg)))


def sediment_transport(specific_area_m: NDArray[Any], slope_deg: NDArray[Any]) -> Any:
    """``(a / 22.13)^0.6 (sin b / 0.0896)^1.3``: Moore and Burch (1986), doi:10.2136/sssaj1986.03615995005000050042x.

    >>> sediment_transport(np.array([22.13, 22.13]), np.array([5.1405, 0.0])).round(2)
    array([1., 0.])
    """
    return (specific_area_m / 22.13) ** 0.6 * (np.sin(np.radians(slope_deg)) / 0.0896) ** 1.3


def hydrology_channels(
    names: Sequence[str],
    elevation: Elevation,
    block: tuple[slice, slice],
    slope_deg: NDArray[np.float32],
    pixel_size_m: float,
    settings: TerrainSettings,
) -> Channels:
    """The named ones of ``channels.HYDROLOGY`` for a block.

    Args:
        names: of the channels.
        elevation: (H, W) metres, NaN is nodata: the block and its halo, as far as the raster goes.
        block: where the block lies in it.
        slope_deg: (h, w) of the block.
        pixel_size_m: of its square pixels.
        settings: halo and caps.

    Returns:
        Name -> (h, w) of the block: ``log_flow_accumulation`` ln(m2), ``log_distance_to_drainage`` ln(1 + m), and the
        indices of this file, whose specific area is the contributing area over the pixel's width.
    """
    area = np.minimum(contributing_area(elevation, pixel_size_m, settings.breach_m), settings.area_cap_m2)
    specific = area[block] / pixel_size_m
    makers = {
        "log_flow_accumulation": lambda: np.log(area[block]),
        "twi": lambda: topographic_wetness(specific, slope_deg),
        "spi": lambda: stream_power(specific, slope_deg),
        "sti": lambda: sediment_transport(specific, slope_deg),
        "log_distance_to_drainage": lambda: np.log1p(drainage_distance(area, pixel_size_m, settings)[block]),
    }
    return {name: makers[name]().astype(np.float32) for name in names}
