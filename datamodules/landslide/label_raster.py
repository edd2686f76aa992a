"""Labels of an area on disk: one raster of classes, whatever they were given as."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetNotFoundError, StagewiseError
from .aligned_raster import AlignedRaster
from .channel_file import read_json, write_json
from .channel_inputs import key_of
from .extras import require
from .label_points import LabelSettings, table_shapes, vector_shapes
from .prepared import LABELS_FILE, NO_LABEL, Window
from .rasters import Grid, bounded_cache

log = logging.getLogger(__name__)
LABEL_FILES = ("labels.tif", "labels.gpkg", "labels.csv")
FACTS, BLOCK_PX, TILE_PX = "labels.json", 1024, 256
Reader = Callable[[Window], NDArray[np.uint8]]


def make_labels(
    folder: str | Path,
    grid: Grid,
    classes: Sequence[str],
    target: str | Path,
    settings: Mapping[str, Any] | None = None,
    file: str | None = None,
) -> dict[str, int]:
    """Writes ``labels.tif`` on the grid: 0 where there is no label, otherwise 1..K from the lowest class.

    Polygons label the pixels whose centre they hold, points their pixel, or a disc. Where places of several classes
    share a pixel, the highest class is taken. Nothing is done where it is there with the same inputs and settings.

    Args:
        folder: with ``labels.tif``, ``labels.gpkg`` or ``labels.csv``, the first that is there.
        grid: of the channels.
        classes: names from the lowest.
        target: folder.
        settings: of ``LabelSettings``.
        file: another name than those three.

    Returns:
        Class -> labelled pixels.

    Raises:
        StagewiseError: no label file, or one without any label; values outside the list; places outside the grid.
    """
    require("rasterio")
    path, target, options = _file(Path(folder), file), Path(target), LabelSettings.of(settings)
    key = key_of({"grid": grid.to_plain(), "classes": list(classes), "settings": asdict(options)}, {"labels": path})
    facts = read_json(target / FACTS)
    if facts.get("key") == key and (target / LABELS_FILE).is_file():
        return facts["pixels"]
    reader = _raster_reader if path.suffix.lower() in (".tif", ".tiff") else _shape_reader
    with bounded_cache():
        pixels = _write(target, grid, reader(path, grid, classes, options), path, classes)
    write_json(target / FACTS, {"key": key, "pixels": pixels})
    log.info("labels of %s: %s", target, pixels)
    return pixels


def _file(folder: Path, name: str | None) -> Path:
    names = (name,) if name else LABEL_FILES
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        looked = ", ".join(names)
        raise DatasetNotFoundError(f"no labels in {folder}; looked for {looked}: add it, or set `labels.file`.")
    if len(found) > 1:
        log.warning("%s holds several label files; %s is taken", folder, found[0].name)
    return found[0]


def _raster_reader(path: Path, grid: Grid, classes: Sequence[str], settings: LabelSettings) -> Reader:
    raster = AlignedRaster(path, [1], grid, classes=True, whole=False)

    def read(window: Window) -> NDArray[np.uint8]:
        values = raster.read(window)[0]
        codes = np.full(values.shape, NO_LABEL, np.uint8)
        unknown = []
        for value in np.unique(values[~np.isnan(values)]):
            code = settings.code(value, classes)
            if code is not None:
                codes[values == value] = code
            elif value != NO_LABEL:
                unknown.append(float(value))
        if unknown:
            raise StagewiseError(
                f"{path} has the values {unknown[:10]}; allowed are 0 (no label) and 1 to {len(classes)} for "
                f"{list(classes)}, or those of the setting `class_values`."
            )
        return codes

    return read


def _shape_reader(path: Path, grid: Grid, classes: Sequence[str], settings: LabelSettings) -> Reader:
    from rasterio import Affine
    from rasterio.features import rasterize
    from shapely import STRtree, box

    shapes = (table_shapes if path.suffix.lower() == ".csv" else vector_shapes)(path, grid, classes, settings)
    tree = STRtree([shape for shape, _ in shapes])
    size = grid.pixel_size_m

    def read(window: Window) -> NDArray[np.uint8]:
        row, column, rows, columns = window
        left, top = grid.transform[2] + column * size, grid.transform[5] - row * size
        here = np.sort(tree.query(box(left, top - rows * size, left + columns * size, top)))
        if not len(here):
            return np.full((rows, columns), NO_LABEL, np.uint8)
        transform = Affine(size, 0, left, 0, -size, top)
        burnt = [shapes[i] for i in here]  # lowest class first: the highest stays
        return rasterize(burnt, (rows, columns), fill=NO_LABEL, transform=transform, dtype="uint8")

    return read


def _write(target: Path, grid: Grid, read: Reader, path: Path, classes: Sequence[str]) -> dict[str, int]:
    import rasterio

    target.mkdir(parents=True, exist_ok=True)
    part, counts = target / f"{LABELS_FILE}.part", np.zeros(len(classes) + 1, np.int64)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "crs": grid.crs, "nodata": NO_LABEL, "tiled": True}
    profile |= {"width": grid.width, "height": grid.height, "transform": rasterio.Affine(*grid.transform)}
    blocks = _blocks(grid)
    try:
        with rasterio.open(part, "w", blockxsize=TILE_PX, blockysize=TILE_PX, BIGTIFF="IF_SAFER", **profile) as raster:
            for row, column, rows, columns in blocks:
                codes = read((row, column, rows, columns))
                counts += np.bincount(codes.ravel(), minlength=len(counts))
                raster.write(codes, 1, window=((row, row + rows), (column, column + columns)))
        if not np.array_equal(_counts(part, blocks, len(counts)), counts):  # GDAL closes on a full disk without a word
            raise OSError("it does not hold what was written")
        if not counts[1:].any():
            raise StagewiseError(f"{path} labels no pixel of the grid; all of it is nodata, 0 or elsewhere.")
        (target / FACTS).unlink(missing_ok=True)  # it tells of the raster that is replaced
        os.replace(part, target / LABELS_FILE)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise StagewiseError(f"{part} cannot be written ({error}); is the disk full?") from None
    finally:
        part.unlink(missing_ok=True)
    return {str(name): int(count) for name, count in zip(classes, counts[1:])}


def _blocks(grid: Grid) -> list[Window]:
    tops, lefts = range(0, grid.height, BLOCK_PX), range(0, grid.width, BLOCK_PX)
    return [(r, c, min(BLOCK_PX, grid.height - r), min(BLOCK_PX, grid.width - c)) for r in tops for c in lefts]


def _counts(path: Path, blocks: Sequence[Window], size: int) -> NDArray[np.int64]:
    """(size,) pixels of each code in a file."""
    import rasterio

    found = np.zeros(size, np.int64)
    with rasterio.open(path) as raster:
        for row, column, rows, columns in blocks:
            codes = raster.read(1, window=((row, row + rows), (column, column + columns)))
            found += np.bincount(codes.ravel(), minlength=size)[:size]
    return found
