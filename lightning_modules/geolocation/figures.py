"""Maps of predictions, as PNG."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...datamodules.geolocation.geodesy import haversine_km
from .decoding import combine

_FAR_KM = (25, 100, 300)  # colours of an error: up to the first, …, beyond the last
_COLOURS = ("#1a9641", "#a6d96a", "#fdae61", "#d7191c")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _map_axes(axis: Any, geography: dict[str, Any], colour_regions: bool = True) -> None:
    """Cell centres as the ground: they show where the train pictures are, without a map that may not be shipped."""
    cells = geography["cells"]
    lat, lon = np.array(cells["centre_deg"]).T
    region = np.array(cells["region"])
    for r, name in enumerate(geography["region_names"]):
        colour = f"C{r % 10}" if colour_regions else "0.7"
        axis.scatter(lon[region == r], lat[region == r], s=70, color=colour, alpha=0.22, linewidths=0, label=name)
    stretch = 1 / max(0.2, math.cos(math.radians(float(np.clip(lat.mean(), -75, 75)))))
    axis.set(xlabel="longitude (°E)", ylabel="latitude (°N)", aspect=stretch)
    axis.grid(alpha=0.25)


def draw_predictions(
    rows: dict[str, Tensor], geography: dict[str, Any], rule: str, path: Path, title: str, most: int = 400
) -> None:
    """True places, each joined to its prediction and coloured by the error.

    Args:
        rows: of an evaluation.
        geography: of the module.
        rule: that makes one point of the hypotheses.
        path: of the PNG.
        title: of the picture.
        most: rows drawn, evenly chosen.
    """
    from matplotlib.lines import Line2D

    plt = _pyplot()
    step = max(1, len(rows["truth_deg"]) // most)
    truth = rows["truth_deg"][::step]
    place = combine(rows, rule)[::step]
    colour = [_COLOURS[int(np.searchsorted(_FAR_KM, e))] for e in haversine_km(place, truth).tolist()]
    figure, axis = plt.subplots(figsize=(11, 8), layout="constrained")
    _map_axes(axis, geography)
    for (a, b), (c, d), paint in zip(truth.tolist(), place.tolist(), colour):
        if abs(b - d) < 180:  # a line across the date line would cross the whole map
            axis.plot([b, d], [a, c], color=paint, lw=0.6, alpha=0.6)
    axis.scatter(truth[:, 1], truth[:, 0], s=14, c=colour, zorder=3)
    labels = [
        f"within {_FAR_KM[0]} km",
        *(f"{a}-{b} km" for a, b in pairwise(_FAR_KM)),
        f"over {_FAR_KM[-1]} km",
    ]
    errors = [Line2D([], [], marker="o", lw=1, color=c, label=text) for c, text in zip(_COLOURS, labels)]
    axis.add_artist(axis.legend(handles=errors, title="error of the prediction", loc="lower right", fontsize=8))
    axis.legend(title="geocells of", loc="upper left", fontsize=8)
    axis.set_title(f"{title}: true places (dots) joined to predictions, {len(truth)} of {len(rows['truth_deg'])} rows")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_photo(image: Tensor, answer: dict[str, Any], geography: dict[str, Any], path: Path) -> None:
    """A picture beside a map of its hypotheses and the radius that should hold the truth 90 % of the time.

    Args:
        image: uint8 (3, H, W).
        answer: of ``predict_images``.
        geography: of the module.
        path: of the PNG.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), width_ratios=(1, 1.5), layout="constrained")
    left.imshow(image.permute(1, 2, 0).numpy())
    left.set_axis_off()
    left.set_title(Path(answer["image"]).name, fontsize=10)
    _map_axes(right, geography, colour_regions=False)
    for guess in answer["hypotheses"]:
        right.scatter(
            guess["longitude"], guess["latitude"], s=20 + 300 * guess["probability"], color="C0", alpha=0.6, zorder=3
        )
    lat, lon, radius = answer["latitude"], answer["longitude"], answer["radius_90_km"]
    angle = np.linspace(0, 2 * np.pi, 120)
    d_lat = radius / 111.0 * np.sin(angle)
    right.plot(
        lon + radius / 111.0 * np.cos(angle) / max(0.05, math.cos(math.radians(lat))),
        np.clip(lat + d_lat, -90, 90),
        "C3--",
        lw=1.2,
    )
    right.scatter(lon, lat, marker="*", s=220, color="C3", zorder=4)
    text = f"{answer['province']} ({answer['province_probability']:.0%}): {lat:.3f}° N, {lon:.3f}° E"
    right.set_title(f"{text}\nthe circle of {radius:.0f} km should hold the truth 90 % of the time", fontsize=10)
    figure.savefig(path, dpi=90)
    plt.close(figure)
