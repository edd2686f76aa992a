"""Labelled places from a table or a vector file, on a grid."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadRowsError, StagewiseError
from .extras import require
from .rasters import Grid

log = logging.getLogger(__name__)
MAX_NAMED = 10


@dataclass(frozen=True)
class LabelSettings:
    """How labels are read.

    Attributes:
        class_column: of the table, or attribute of the vector file.
        class_values: value -> class, where the values are neither class names nor 1..K; ``{"0": "no", "1": "yes"}``.
        buffer_m: radius of the disc that a point labels; 0 labels its pixel.
        on_outside: ``error`` or ``drop`` for places outside the grid.
        crs: of the table's coordinates; the grid's by default.

    >>> LabelSettings.of({"class_column": "landslide"}).buffer_m
    0.0
    """

    class_column: str = "class"
    class_values: Mapping[str, str] | None = None
    buffer_m: float = 0.0
    on_outside: str = "error"
    crs: str | None = None

    def __post_init__(self) -> None:
        if self.on_outside not in ("error", "drop"):
            raise StagewiseError(f"`on_outside` must be 'error' or 'drop', got {self.on_outside!r}.")
        if self.buffer_m < 0:
            raise StagewiseError(f"`buffer_m` must not be negative, got {self.buffer_m}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> "LabelSettings":
        """From plain values.

        Raises:
            StagewiseError: a setting that does not exist.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings or {}) - set(known))
        if unknown:
            raise StagewiseError(f"no label setting {unknown}; there are {known}.")
        return cls(**dict(settings or {}))

    def code(self, value: Any, classes: Sequence[str]) -> int | None:
        """1..K of a value; None where it is no class.

        >>> LabelSettings(class_values={"0": "no"}).code(0, ["no", "yes"]), LabelSettings().code("2.0", ["no", "yes"])
        (1, 2)
        """
        text = str(value).strip()
        try:
            number = float(text)
            text = str(int(number)) if number.is_integer() else text
        except ValueError:
            pass
        if self.class_values is not None:
            named = {str(raw): name for raw, name in self.class_values.items()}
            text = named.get(text, "")
        if text in classes:
            return list(classes).index(text) + 1
        known = self.class_values is None and text in {str(code) for code in range(1, len(classes) + 1)}
        return int(text) if known else None


def table_shapes(path: Path, grid: Grid, classes: Sequence[str], settings: LabelSettings) -> list[tuple[Any, int]]:
    """Points of a CSV with the columns x, y and the class's; an optional column ``crs`` names each row's.

    Returns:
        Shape on the grid's CRS and class from 1, lowest class first.

    Raises:
        BadRowsError: names rows (the header is row 1) and values that cannot be used.
    """
    require("geopandas")
    import geopandas

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = {"x", "y", settings.class_column} - set(rows[0] if rows else ())
    if missing:
        raise StagewiseError(f"{path} has no column {sorted(missing)}; its columns: {list(rows[0]) if rows else []}.")
    bad, x, y = [], np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    codes = [settings.code(row[settings.class_column], classes) for row in rows]
    for i, row in enumerate(rows):
        try:
            x[i], y[i] = float(row["x"]), float(row["y"])
        except (TypeError, ValueError):
            pass
        if codes[i] is None or not np.isfinite([x[i], y[i]]).all():
            bad.append(f"row {i + 2}: x={row['x']}, y={row['y']}, {settings.class_column}={row[settings.class_column]}")
    _refuse(path, bad, f"x and y must be numbers, the class one of {_allowed(classes, settings)}")
    crs = [row.get("crs") or settings.crs or grid.crs for row in rows]
    points = np.empty(len(rows), object)
    for one in sorted(set(crs)):
        there = np.array([other == one for other in crs])
        points[there] = geopandas.GeoSeries.from_xy(x[there], y[there], crs=one).to_crs(grid.crs).values
    return _on_grid(path, list(points), [int(code or 0) for code in codes], grid, settings, first_row=2)


def vector_shapes(path: Path, grid: Grid, classes: Sequence[str], settings: LabelSettings) -> list[tuple[Any, int]]:
    """Points and polygons of a vector file with a class attribute; as ``table_shapes``."""
    require("geopandas")
    import geopandas

    frame = geopandas.read_file(path)
    if frame.crs is None:
        raise StagewiseError(f"{path} has no CRS; write it with one.")
    if settings.class_column not in frame:
        raise StagewiseError(f"{path} has no attribute '{settings.class_column}'; its attributes: {list(frame)}.")
    values = frame[settings.class_column].tolist()
    codes = [settings.code(value, classes) for value in values]
    empty = [shape is None or shape.is_empty for shape in frame.geometry]
    bad = [
        f"row {i + 1}: {values[i]!r}{', no shape' * empty[i]}" for i in range(len(codes)) if not codes[i] or empty[i]
    ]
    _refuse(path, bad, f"`{settings.class_column}` must be one of {_allowed(classes, settings)}, with a shape")
    shapes = frame.to_crs(grid.crs).geometry.tolist()
    return _on_grid(path, shapes, [int(code or 0) for code in codes], grid, settings, first_row=1)


def _allowed(classes: Sequence[str], settings: LabelSettings) -> list[str]:
    if settings.class_values is not None:
        return [str(value) for value in settings.class_values]
    return [*classes, *(str(code) for code in range(1, len(classes) + 1))]


def _refuse(path: Path, bad: list[str], rule: str) -> None:
    if bad:
        more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        raise BadRowsError(f"{path}: {rule}; {'; '.join(bad[:MAX_NAMED])}{more}.")


def _on_grid(
    path: Path, shapes: list[Any], codes: list[int], grid: Grid, settings: LabelSettings, first_row: int
) -> list[tuple[Any, int]]:
    from shapely import box

    left, bottom, right, top = grid.bounds
    outline = box(left, np.nextafter(bottom, top), np.nextafter(right, left), top)  # the last edges are no pixel's
    outside = [i for i, shape in enumerate(shapes) if not shape.intersects(outline)]
    rows = [f"row {i + first_row}: {shapes[i].representative_point().wkt}" for i in outside]
    if outside and settings.on_outside == "error":
        _refuse(
            path, rows, f"places outside the grid, whose bounds are {grid.bounds}: mend them, or set on_outside=drop"
        )
    if outside:
        log.warning("%s: %d of %d places lie outside the grid and are left out", path, len(outside), len(shapes))
    dropped = set(outside)
    kept = [(shape, code) for i, (shape, code) in enumerate(zip(shapes, codes)) if i not in dropped]
    _log_conflicts(path, kept, grid)
    discs = [(_disc(shape, settings.buffer_m), code) for shape, code in kept]
    return sorted(discs, key=lambda pair: pair[1])


def _disc(shape: Any, radius_m: float) -> Any:
    return shape.buffer(radius_m) if radius_m and "Point" in shape.geom_type else shape


def _log_conflicts(path: Path, shapes: list[tuple[Any, int]], grid: Grid) -> None:
    points = [(shape.x, shape.y, code) for shape, code in shapes if shape.geom_type == "Point"]
    if not points:
        return
    x, y, code = (np.array(values) for values in zip(*points))
    row, column = grid.pixels_of(x, y)
    pixel = row * grid.width + column
    distinct = np.unique(np.stack([pixel, code]), axis=1)[0]
    shared = len(distinct) - len(np.unique(distinct))
    if shared:
        log.warning("%s: %d pixels hold points of several classes; the highest class is taken", path, shared)
