"""How many pixels a second become channels, and which step takes how long?

    python benchmarks/landslide_channels.py            # --threads N, --pairs N, --quick

The recipe's 28 channels from a terrain model, an orthophoto at half the pixel size and land cover, 4096 x 4096, from
and to disk. Then the two parts that come from a library, against libraries that give the same, on one array in memory:
slope, aspect and curvatures against xdem, flow accumulation with its treatment of depressions against pyflwdir. A peer
that is not installed is left out, and the table says so.
"""

import importlib.util
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, write

from stagewise.datamodules.landslide.channel_maker import make_channels
from stagewise.datamodules.landslide.channels import RECIPE, WORLD_COVER, ChannelList
from stagewise.datamodules.landslide.hydrology import contributing_area
from stagewise.datamodules.landslide.terrain import TerrainSettings, surface_fit

PX = 10.0
FITTED = ("slope", "aspect_sin", "aspect_cos", "curvature", "plan_curvature", "profile_curvature")
SLOPE_TOLERANCE_DEG = 0.01  # xdem fits the same polynomial in the same window


def fractal(size: int) -> NDArray[np.float32]:
    """Relief of 1 km whose amplitude falls with the wavelength to the power 1.9."""
    noise = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1
    height = np.fft.irfft2(np.fft.rfft2(noise) * frequency**-1.9, (size, size))
    return (1500 + 250 * height / height.std()).astype(np.float32)


def write_inputs(folder: Path, size: int) -> None:
    rng = np.random.default_rng(1)
    ortho = rng.integers(1, 255, (3, 2 * size, 2 * size), dtype=np.uint8)
    cover = np.array(WORLD_COVER, np.uint8)[rng.integers(0, 11, (size, size))]
    for name, bands, pixel in (
        ("dtm", fractal(size)[None], PX),
        ("ortho", ortho, PX / 2),
        ("landcover", cover[None], PX),
    ):
        shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
        transform = rasterio.Affine(pixel, 0, 500_000, 0, -pixel, 3_700_000)
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", tiled=True, crs="EPSG:32642", transform=transform, **shape
        ) as raster:
            raster.write(bands)


def whole_recipe(size: int) -> dict[str, Any]:
    """One run from disk to disk: seconds of each step, pixels a second, peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), size)
        before = peak_mb()
        make_channels(folder, ChannelList(RECIPE), Path(folder) / "made")
        seconds = json.loads((Path(folder) / "made" / "channels.json").read_text())["seconds"]
    total = sum(seconds.values())
    return {
        "size": size,
        "seconds": seconds,
        "total_s": total,
        "pixels_per_s": size**2 / total,
        "peak_mb_before": before,
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def terrain_contestants(height: NDArray[np.float32]) -> dict[str, Callable[[], Any]]:
    contestants: dict[str, Callable[[], Any]] = {"ours (Whitebox)": lambda: surface_fit(FITTED, height, PX)}
    if importlib.util.find_spec("xdem"):
        from xdem import terrain

        names = ["slope", "aspect", "max_curvature", "tangential_curvature", "profile_curvature"]
        contestants["xdem"] = lambda: terrain.get_terrain_attribute(height, names, resolution=PX)
        inner = (slice(2, -2), slice(2, -2))
        difference = np.abs(contestants["xdem"]()[0][inner] - contestants["ours (Whitebox)"]()["slope"])
        agree("slope of xdem", float(np.nanmax(difference)), SLOPE_TOLERANCE_DEG)
    return contestants


def flow_contestants(height: NDArray[np.float32]) -> dict[str, Callable[[], Any]]:
    """No parity: ours breaches and spreads water (D-infinity), pyflwdir fills and sends it one way (D8)."""
    breach_m = TerrainSettings().breach_m
    contestants: dict[str, Callable[[], Any]] = {"ours (Whitebox)": lambda: contributing_area(height, PX, breach_m)}
    if importlib.util.find_spec("pyflwdir"):
        import pyflwdir

        def peer() -> Any:
            _, directions = pyflwdir.dem.fill_depressions(height, nodata=np.nan)
            return pyflwdir.from_array(directions, ftype="d8", check_ftype=False).upstream_area("cell")

        contestants["pyflwdir"] = peer
    return contestants


def against_peers(what: str, contestants: dict[str, Callable[[], Any]], pairs: int, pixels: int) -> tuple[Any, Any]:
    seconds = in_turn(contestants, pairs)
    ours = seconds["ours (Whitebox)"]
    rows = [
        {
            "what": what,
            "who": name,
            "Mpx/s": show(spread([pixels / value / 1e6 for value in values])),
            "share, or times ours": show(ratio(values, ours)),
        }
        for name, values in seconds.items()
    ]
    if len(seconds) == 1:
        rows.append({"what": what, "who": "no peer is installed", "Mpx/s": "-", "share, or times ours": "-"})
    return {name: spread(values) for name, values in seconds.items()}, rows


def main() -> None:
    options = parse(parser_of(__doc__, pairs=5))
    size, piece = (512, 256) if options.quick else (4096, 1024)
    recipe = whole_recipe(size)
    height = fractal(piece)
    terrain, terrain_rows = against_peers("terrain", terrain_contestants(height), options.pairs, piece**2)
    flow, flow_rows = against_peers("flow accumulation", flow_contestants(height), options.pairs, piece**2)
    rows = [
        {
            "what": f"recipe: {step}",
            "who": "ours",
            "Mpx/s": f"{size**2 / value / 1e6:.3g}",
            "share, or times ours": f"{share:.0%}",
        }
        for step, value in recipe["seconds"].items()
        for share in [value / recipe["total_s"]]
    ]
    total = {
        "what": "recipe: all",
        "who": "ours",
        "Mpx/s": f"{recipe['pixels_per_s'] / 1e6:.3g}",
        "share, or times ours": "100%",
    }
    write(
        "landslide_channels",
        options,
        {"recipe": recipe, "terrain": terrain, "flow accumulation": flow},
        [*rows, total, *terrain_rows, *flow_rows],
    )


if __name__ == "__main__":
    main()
