"""The layers of a susceptibility map, and Cloud-Optimised GeoTIFFs that are whole or not there."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import Window
from ...datamodules.landslide.rasters import Grid, opened
from .stage import PART, REMEDY

NO_CLASS = 255
TILE_PX, INTERMEDIATE_PX = 512, 256
KEY_TAG = "stagewise_key"
_RAMP = np.array([(26, 150, 65), (255, 217, 47), (215, 25, 28)], float)
Colour = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layer:
    """One file of a map.

    Attributes:
        name: of the file, without ``.tif``.
        bands: their descriptions.
        tags: what a reader must know of it.
        dtype: ``float32`` or ``uint8``.
        nodata: NaN, or a number that is no value; None where every number is one.
        colours: of the values of a ``uint8`` layer.
    """

    name: str
    bands: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    nodata: float | None = float("nan")
    colours: Mapping[int, Colour] = field(default_factory=dict)


def class_colours(classes: int) -> list[Colour]:
    """Green for the lowest class over yellow to red for the highest.

    >>> class_colours(3)
    [(26, 150, 65, 255), (255, 217, 47, 255), (215, 25, 28, 255)]
    """
    place = np.linspace(0, len(_RAMP) - 1, classes)
    mixed = np.stack([np.interp(place, range(len(_RAMP)), band) for band in _RAMP.T], 1)
    return [(round(r), round(g), round(b), 255) for r, g, b in mixed.tolist()]


def map_layers(classes: Sequence[str], uncertainty: str, class_weights: Sequence[float] | None = None) -> list[Layer]:
    """The layers of a map.

    Args:
        classes: names, low to high.
        uncertainty: its kind.
        class_weights: of :func:`layer_values`, for the tags.

    >>> [layer.name for layer in map_layers(["low", "high"], "predictive entropy")]
    ['class_map', 'probabilities', 'score', 'p_high', 'uncertainty', 'novelty', 'valid']
    """
    names = {f"class_{i}": name for i, name in enumerate(classes)}
    weights = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(classes, class_weights or [1] * len(classes)))
    names |= {"rule": f"the class with the largest weight x probability; weights: {weights}"}
    colours = dict(enumerate(class_colours(len(classes)))) | {NO_CLASS: (0, 0, 0, 0)}
    spread = {"kind": uncertainty, "unit": "nats", "of": "the network's answers, before CRF and calibration"}
    unlike = {"kind": "Mahalanobis distance / threshold", "unit": "1", "meaning": "above 1: unlike the training data"}
    return [
        Layer("class_map", ["class"], names, "uint8", NO_CLASS, colours),
        Layer("probabilities", [f"P({name})" for name in classes], {"unit": "1"}),
        Layer("score", ["susceptibility score"], {"kind": f"expected class / {len(classes) - 1}", "unit": "1"}),
        Layer("p_high", [f"P({classes[-1]})"], {"unit": "1"}),
        Layer("uncertainty", [uncertainty], spread),
        Layer("novelty", ["novelty"], unlike),
        Layer(
            "valid", ["valid"], {"meaning": "1: all channels have data, 0: no value in the other layers"}, "uint8", None
        ),
    ]


def layer_values(
    probability: NDArray[np.float32],
    uncertainty: NDArray[np.float32],
    novelty: NDArray[np.float32],
    class_weights: Sequence[float] | None = None,
) -> dict[str, NDArray[Any]]:
    """Values of all layers in a window.

    Args:
        probability: (K, H, W), NaN in every class where there is no value.
        uncertainty: (H, W).
        novelty: (H, W).
        class_weights: (K,) the class is that of the largest ``weight * probability``; None is 1 for all.

    Returns:
        Name -> (bands, H, W).

    >>> p = np.array([0.25, 0.25, 0.5], np.float32).reshape(3, 1, 1)
    >>> values = layer_values(p, p[0], p[0])
    >>> int(values["class_map"].item()), values["score"].item()
    (2, 0.625)
    """
    valid = np.logical_and.reduce(np.isfinite(probability))
    rank = np.linspace(0, 1, len(probability), dtype=np.float32)
    nothing = np.float32(np.nan)
    weight = np.ones(len(probability)) if class_weights is None else np.array(class_weights)
    return {
        "class_map": np.where(valid, (probability * weight[:, None, None]).argmax(0), NO_CLASS)[None].astype(np.uint8),
        "probabilities": np.where(valid, probability, nothing),
        "score": np.where(valid, np.tensordot(rank, probability, 1), nothing)[None],
        "p_high": np.where(valid, probability[-1], nothing)[None],
        "uncertainty": np.where(valid, uncertainty, nothing)[None],
        "novelty": np.where(valid, novelty, nothing)[None],
        "valid": np.uint8(1) * valid[None],
    }


class LayerFiles:
    """Uncompressed layers that are written window by window, named when all of them are whole.

    Args:
        folder: of the files.
        grid: of the map.
        layers: to write.
        tags: of every layer.
    """

    def __init__(self, folder: Path, grid: Grid, layers: Sequence[Layer], tags: Mapping[str, str]) -> None:
        self.folder, self.grid, self.layers, self.tags = folder, grid, list(layers), dict(tags)
        self._files: dict[str, Any] = {}

    @contextmanager
    def writing(self) -> Iterator["LayerFiles"]:
        """Opens all; names them ``NAME.tif`` at the end.

        Raises:
            OSError: the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = [self.folder / f"{layer.name}.tif{PART}" for layer in self.layers]
        try:
            yield from self._written(parts)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    def _written(self, parts: Sequence[Path]) -> Iterator["LayerFiles"]:
        with ExitStack() as stack:
            self._files = {layer.name: stack.enter_context(self._create(layer)) for layer in self.layers}
            yield self
        for part in parts:
            with disk_errors(self.folder), opened(part):  # GDAL closes a file on a full disk without a word
                pass
        for part in parts:
            os.replace(part, part.with_suffix(""))

    def write(self, window: Window, values: Mapping[str, NDArray[Any]]) -> None:
        """Writes a window of each."""
        row, column, rows, columns = window
        with disk_errors(self.folder):
            for name, file in self._files.items():
                file.write(values[name], window=((row, row + rows), (column, column + columns)))

    def _create(self, layer: Layer) -> Any:
        import rasterio

        layout = {"tiled": True, "blockxsize": INTERMEDIATE_PX, "blockysize": INTERMEDIATE_PX, "BIGTIFF": "IF_SAFER"}
        size = {"width": self.grid.width, "height": self.grid.height, "count": len(layer.bands), "dtype": layer.dtype}
        place = {"crs": self.grid.crs, "transform": rasterio.Affine(*self.grid.transform), "nodata": layer.nodata}
        path = self.folder / f"{layer.name}.tif{PART}"
        file = rasterio.open(path, "w", driver="GTiff", **size, **place, **layout)
        file.descriptions = tuple(layer.bands)
        file.update_tags(**self.tags, **layer.tags)
        if layer.colours:
            file.write_colormap(1, dict(layer.colours))
        return file


def make_cog(source: Path, target: Path, layer: Layer) -> None:
    """Copies a layer to a Cloud-Optimised GeoTIFF, compressed and with overviews.

    Raises:
        OSError: the disk is full. There is nothing under the final name then that was not there before.
    """
    import rasterio.shutil

    part = target.with_name(target.name + PART)
    options = {
        "COMPRESS": "DEFLATE",  # every reader has it; level 1 makes files under 1 % larger than 6 in 3/4 of the time
        "LEVEL": "1",
        "PREDICTOR": "YES",
        "BLOCKSIZE": str(TILE_PX),
        "BIGTIFF": "IF_SAFER",
        "OVERVIEW_RESAMPLING": "AVERAGE" if layer.dtype == "float32" else "NEAREST",
    }
    try:
        with disk_errors(target.parent):
            rasterio.shutil.copy(str(source), str(part), driver="COG", **options)
            with opened(part):
                pass
        os.replace(part, target)
    finally:
        for leftover in target.parent.glob(f"{part.name}*"):
            leftover.unlink()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Says of a library's failed write what it means."""
    from rasterio._err import CPLE_BaseError  # what rasterio.shutil lets through; no public name
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, CPLE_BaseError, StagewiseError) as error:
        raise OSError(f"a map could not be written in '{folder}' ({error}); {REMEDY}.") from error


def has_key(path: Path, key: str) -> bool:
    """Whether a finished layer was made by a run with this key."""
    if not path.is_file():
        return False
    with opened(path) as raster:
        return raster.tags().get(KEY_TAG) == key
