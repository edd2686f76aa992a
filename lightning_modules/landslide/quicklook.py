"""A map as one picture: classes over relief, score, uncertainty."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.landslide.prepared import CHANNELS_FILE, PreparedArea
from ...datamodules.landslide.rasters import bounded_cache, opened
from .maps import NO_CLASS

NODATA_GREY = "0.8"
UNKNOWN_LAND = 0.75
ROUND_KM = (1, 2, 5)


def draw_quicklook(folder: str | Path, path: str | Path, area: PreparedArea | None = None, most_px: int = 1000) -> None:
    """Draws the class map, the score and the uncertainty side by side, from overviews.

    Args:
        folder: with the layers of a map.
        path: of the PNG.
        area: whose elevation or slope shades the class map, where it has one of them.
        most_px: longer side of each picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    folder = Path(folder)
    with bounded_cache():
        classes, meta = _small(folder / "class_map.tif", most_px)
        score, _ = _small(folder / "score.tif", most_px)
        spread, about = _small(folder / "uncertainty.tif", most_px)
        grey = _relief(area, classes.shape, meta["pixel_km"] * 1000)
    height, width = classes.shape
    size = (15.0, float(np.clip(4.7 * height / width + 1.0, 3, 12)))
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 0.985))  # or the titles touch the edge
    figure, axes = pyplot.subplots(2, 3, figsize=size, layout=layout, height_ratios=(size[1] - 0.9, 0.15))
    _draw_classes(axes[:, 0], classes, grey, meta)
    _draw_values(axes[:, 1], score, "susceptibility score", "RdYlGn_r", (0.0, 1.0))
    top = float(np.nanmax(spread, initial=1e-6))
    _draw_values(axes[:, 2], spread, f"{about['tags']['kind']} ({about['tags']['unit']})", "viridis", (0.0, top))
    for axis in axes[0]:
        axis.set(xticks=[], yticks=[])
        _scale_bar(axis, meta["pixel_km"], classes.shape)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _small(path: Path, most_px: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """A layer with at most ``most_px`` to a side, floats as they are, and what its file says of it."""
    with opened(path) as raster:
        shrink = max(1.0, max(raster.height, raster.width) / most_px)
        shape = max(1, round(raster.height / shrink)), max(1, round(raster.width / shrink))
        values = raster.read(1, out_shape=shape)
        meta = {"tags": raster.tags(), "pixel_km": raster.transform[0] * raster.width / shape[1] / 1000}
        if raster.dtypes[0] == "uint8":
            meta["colours"] = raster.colormap(1)
    return values, meta


def _relief(area: PreparedArea | None, shape: tuple[int, ...], pixel_m: float) -> NDArray[np.floating]:
    """Grey from 0 to 1: light from the north-west on the elevation, else steep is dark, else one grey."""
    name = next((n for n in ("elevation", "slope") if area is not None and n in area.channels.stored), None)
    if area is None or name is None:
        return np.full(shape, UNKNOWN_LAND)
    with opened(area.folder / CHANNELS_FILE) as raster:
        values = raster.read(area.channels.stored.index(name) + 1, out_shape=shape).astype(np.float64)
    if name == "slope":
        return np.nan_to_num(np.clip(1 - values / 90, 0, 1), nan=UNKNOWN_LAND)
    return hillshade(values, pixel_m) if min(shape) > 1 else np.full(shape, UNKNOWN_LAND)


def hillshade(elevation_m: NDArray[np.floating], pixel_m: float) -> NDArray[np.floating]:
    """Grey from 0 to 1 with light from the north-west.

    Args:
        elevation_m: (H, W), at least 2 x 2.
        pixel_m: size of a pixel.

    >>> hillshade(np.zeros((2, 2)), 10.0).round(2).tolist()
    [[0.68, 0.68], [0.68, 0.68]]
    """
    south, east = np.gradient(elevation_m, pixel_m)
    lit = (1 + east + south) / np.sqrt(3 * (1 + east**2 + south**2))  # what rises to the east and south faces it
    return np.nan_to_num(np.clip(0.25 + 0.75 * lit, 0, 1), nan=UNKNOWN_LAND)


def _draw_classes(axes: Any, classes: NDArray[Any], grey: NDArray[np.floating], meta: dict[str, Any]) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    names = [meta["tags"][f"class_{i}"] for i in range(NO_CLASS) if f"class_{i}" in meta["tags"]]
    table = np.array([meta["colours"][i][:3] for i in range(NO_CLASS + 1)]) / 255
    picture = table[classes] * (0.45 + 0.55 * grey[..., None])
    picture[classes == NO_CLASS] = to_rgb(NODATA_GREY)
    axes[0].imshow(picture, interpolation="nearest")
    known = np.bincount(classes[classes != NO_CLASS].ravel(), minlength=len(names))
    share = 100 * known / max(1, known.sum())
    entries = [Patch(color=table[i], label=f"{name} {share[i]:.1f} %") for i, name in enumerate(names)]
    entries.append(Patch(color=NODATA_GREY, label="no data"))
    axes[0].set_title("susceptibility class")
    axes[1].axis("off")
    axes[1].legend(handles=entries, loc="center", ncols=len(entries), frameon=False, fontsize=8, columnspacing=1.0)


def _draw_values(
    axes: Any, values: NDArray[np.floating], title: str, colours: str, limits: tuple[float, float]
) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    palette = colormaps[colours].with_extremes(bad=NODATA_GREY)
    drawn = axes[0].imshow(values, cmap=palette, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes[0].set_title(title)
    axes[0].figure.colorbar(drawn, cax=axes[1], orientation="horizontal", ticks=MaxNLocator(5))


def round_length_km(width_km: float) -> float:
    """The longest 1, 2 or 5 times a power of ten that is at most a third of a map's width.

    >>> round_length_km(10.0), round_length_km(0.9), round_length_km(650.0)
    (2.0, 0.2, 200.0)
    """
    power = 10.0 ** np.floor(np.log10(width_km / 3))
    return float(f"{max(n * power for n in ROUND_KM if n * power <= width_km / 3 * (1 + 1e-9)):.6g}")


def _scale_bar(axis: Any, pixel_km: float, shape: tuple[int, ...]) -> None:
    from matplotlib import patheffects

    height, width = shape
    length_km = round_length_km(width * pixel_km)
    left, bottom = 0.04 * width, 0.95 * height
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    axis.plot([left, left + length_km / pixel_km], [bottom, bottom], color="black", lw=2.5, path_effects=halo)
    axis.text(left, bottom - 0.015 * height, f"{length_km:g} km", va="bottom", fontsize=9, path_effects=halo)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
