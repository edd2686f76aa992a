"""Generated landslide areas in the on-disk format of real ones, to run the landslide task without real rasters.

``write_generated_landslides`` writes a folder an area with ``dtm.tif``, ``ortho.tif``, ``landcover.tif`` and
``labels.tif`` as a survey would deliver them, and, for checking only, ``truth.tif`` and ``generated.json``: the exact
probabilities and the rule behind them. The terrain is fractal and carved by its rivers; the rule is in
``generated_rule``. The set shows that a pipeline works and compares settings; it says nothing about real slopes.

What a network can see and a classifier of single pixels cannot: the rock, by the grain of the orthophoto, and what
lies uphill. What nobody can see: the draw of the labels, the landslides that the mapping missed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .extras import require
from .generated_rule import APRON_PX, COVER_EFFECT, RULE, RUNOUT_PX, Climate, Landscape, landscape

AREAS: dict[str, dict[str, float]] = {
    "alder": {},
    "birch": {
        "mean_elevation_m": 2100.0, "steepness": 0.62, "forest": 0.27, "bare": 0.12, "snow": 0.04, "crops": 0.06,
        "wet_side_deg": 165.0, "intercept": -3.3, "brightness": 1.12, "unlabelled": 0.26, "missing_corners": 0.12,
    },
}  # fmt: skip
"""Two areas with different climates; see ``Climate`` for the settings and what they are when left out."""

PRACTICE_PX = 128
"""Side of areas that are large enough to test with."""

_CRS = "EPSG:32643"
_ORIGIN_M = (520_000.0, 3_760_000.0)  # north-west corner of the first area; the next lies 100 km east
_COVER_FACTOR, _COVER_SHIFT = 2.5, 0.7  # pixel of the land cover, and how far its grid begins outside, in pixels
_NODATA_M = -9999.0
_DESCRIPTION = "generated.json"


def write_generated_landslides(
    root: str | Path,
    *,
    areas: Mapping[str, Mapping[str, float]] | None = None,
    size_px: int = 768,
    pixel_size_m: float = 10.0,
    seed: int = 0,
) -> None:
    """Writes generated areas; the same arguments give the same rasters.

    Each area is written beside its place and takes its name at the end; areas that are there already are kept, so an
    interrupted run goes on where it was.

    Args:
        root: Folder for the areas; made where it is missing.
        areas: Settings of ``Climate`` by name of the area; None for ``AREAS``.
        size_px: Rows and columns of an area, at least 64; 768 takes about 5 s an area.
        pixel_size_m: Side of a pixel in metres; the shapes are made for about 10.
        seed: Seed of everything random.

    Raises:
        StagewiseError: rasterio is missing, an argument is out of its range or unknown, or an area's folder holds
            something else than these arguments give.
    """
    require("rasterio")
    if size_px < 64 or pixel_size_m <= 0:
        raise StagewiseError(f"`size_px` must be at least 64, `pixel_size_m` above 0, got {size_px}, {pixel_size_m}.")
    chosen = {name: _climate(name, settings) for name, settings in (AREAS if areas is None else areas).items()}
    for number, (name, climate) in enumerate(chosen.items()):
        folder = Path(root) / name
        origin = _ORIGIN_M[0] + 100_000.0 * number, _ORIGIN_M[1]
        description = {
            "size_px": size_px, "pixel_size_m": pixel_size_m, "seed": [seed, number], "origin_m": list(origin),
            "climate": asdict(climate), "rule": RULE, "runout_px": RUNOUT_PX, "apron_px": APRON_PX,
            "landcover_effect": {str(code): effect for code, effect in COVER_EFFECT.items()},
        }  # fmt: skip
        if not _there(folder, description):
            drawn = landscape(np.random.default_rng((seed, number)), size_px, pixel_size_m, climate)
            _write_whole(folder, drawn, description)


def _climate(name: str, settings: Mapping[str, float]) -> Climate:
    if not name or name.startswith(".") or Path(name).name != name:
        raise StagewiseError(f"`areas` names an area {name!r}; it becomes a folder: use a plain name.")
    unknown = set(settings) - set(Climate.__dataclass_fields__)
    if unknown:
        known = ", ".join(Climate.__dataclass_fields__)
        raise StagewiseError(f"`areas` gives {name} an unknown {sorted(unknown)}; known: {known}.")
    return Climate(**settings)


def _there(folder: Path, description: dict[str, Any]) -> bool:
    """Whether the area is there, whole and made with the same arguments."""
    if not folder.exists():
        return False
    file = folder / _DESCRIPTION
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != description:
        raise StagewiseError(f"{folder} exists and was made otherwise; remove it or generate into another `root`.")
    return True


def _write_whole(folder: Path, drawn: Landscape, description: dict[str, Any]) -> None:
    """Writes an area's files into a hidden folder and gives it the final name."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")  # two runs at once must not share it
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write_rasters(partial, drawn, description["pixel_size_m"], description["origin_m"])
        (partial / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_rasters(folder: Path, drawn: Landscape, pixel_size_m: float, origin_m: tuple[float, float]) -> None:
    """Writes the five rasters of an area into a folder that is there.

    Args:
        folder: for them.
        drawn: the area.
        pixel_size_m: of its grid.
        origin_m: east and north of its north-west corner.
    """
    known = drawn.known
    height = np.where(known, drawn.height_m, np.float32(_NODATA_M))
    ortho = np.stack([*drawn.ortho * known, np.where(known, 255, 0).astype(np.uint8)])
    colours = ("red", "green", "blue", "alpha")
    truth = [drawn.p_high + drawn.p_medium, drawn.p_high, drawn.truth.astype(np.float32)]
    names = ("p_medium_or_high", "p_high", "class")
    place = pixel_size_m, origin_m
    _write(folder / "dtm.tif", height[None], *place, nodata=_NODATA_M, names=("elevation",))
    _write(folder / "ortho.tif", ortho, *place, names=colours)
    _write(folder / "labels.tif", drawn.labels[None], *place, nodata=0, names=("class",))
    _write(folder / "truth.tif", np.where(known, truth, np.float32(np.nan)), *place, nodata=float("nan"), names=names)
    shift_m = _COVER_SHIFT * pixel_size_m
    corner = origin_m[0] - shift_m, origin_m[1] + shift_m
    coarse = coarser(drawn.landcover, _COVER_FACTOR, _COVER_SHIFT)
    _write(folder / "landcover.tif", coarse[None], _COVER_FACTOR * pixel_size_m, corner, nodata=0, names=("class",))


def coarser(codes: NDArray[np.uint8], factor: float, shift: float) -> NDArray[np.uint8]:
    """Classes on a coarser grid that covers the fine one: the class at the middle of each coarse pixel.

    Args:
        codes: (N, N).
        factor: side of a coarse pixel in fine pixels.
        shift: how far the coarse grid begins above and left of the fine one, in fine pixels.

    Returns:
        (M, M).

    >>> coarser(np.arange(16, dtype=np.uint8).reshape(4, 4), 2, 0)
    array([[ 5,  7],
           [13, 15]], dtype=uint8)
    """
    side = int(np.ceil((codes.shape[0] + shift) / factor))
    middle = np.floor((np.arange(side) + 0.5) * factor - shift).astype(int).clip(0, codes.shape[0] - 1)
    return codes[np.ix_(middle, middle)]


def _write(
    path: Path, bands: NDArray[Any], pixel_size_m: float, origin_m: tuple[float, float], names: tuple[str, ...],
    nodata: float | None = None,
) -> None:  # fmt: skip
    import rasterio
    from rasterio.enums import ColorInterp

    count, rows, columns = bands.shape
    transform = rasterio.Affine(pixel_size_m, 0, origin_m[0], 0, -pixel_size_m, origin_m[1])
    profile = {"driver": "GTiff", "crs": _CRS, "transform": transform, "nodata": nodata, "dtype": bands.dtype}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1}
    with rasterio.open(path, "w", count=count, height=rows, width=columns, **profile, **layout) as raster:
        raster.write(bands)
        raster.descriptions = names
        if names[-1] == "alpha":
            raster.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
