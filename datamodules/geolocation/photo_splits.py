"""The splits of a data set: read, checked against each other, and described for the network."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from ..errors import StagewiseError
from ..images import unreadable_images
from .cell_builder import build_cells
from .geocells import CellTable, sphere_points
from .geodesy import from_vector
from .leaks import check_pictures, check_places
from .photo_table import Faults, PhotoTable, read_photo_table

log = logging.getLogger(__name__)


class PhotoSplits:
    """Tables by split name, and the geography that is fitted on train.

    Args:
        root: folder with the CSVs.
        regions: name -> settings in the order of the ids; empty reads the names from ``train.csv``.
        cells: ``{path}`` of a cell table or the arguments of :func:`build_cells`; a ``cell_metadata.csv`` in ``root``
            is used unless a path says otherwise.
        image_root: folder of the pictures; None is ``root``.
        on_bad_rows: ``raise`` or ``drop``.
        checks: ``{images, place_gap_km}``.
        cache_dir: keeps the built cells.
    """

    def __init__(
        self,
        root: Path,
        regions: dict[str, dict[str, Any]],
        cells: dict[str, Any],
        image_root: str | None,
        on_bad_rows: str,
        checks: dict[str, Any],
        cache_dir: Path,
    ) -> None:
        self.root, self.regions, self.image_root, self.cache_dir = root, regions, image_root, cache_dir
        self.on_bad_rows, self.checks = on_bad_rows, checks
        self.build_options = dict(cells)
        self.cells_path = self.build_options.pop("path", None)
        self.geography: dict[str, Any] | None = None
        self.tables: dict[str, PhotoTable] = {}

    @property
    def region_names(self) -> list[str]:
        """Names in the order of their ids."""
        if self.geography is None:
            raise StagewiseError("the regions are not known before train.csv is read; call setup('fit') first.")
        return list(self.geography["region_names"])

    @property
    def cell_table(self) -> CellTable:
        """The geocells of the geography."""
        return CellTable.from_dict((self.geography or {})["cells"])

    def read_train(self) -> None:
        """Reads train; describes it unless a geography was adopted from a checkpoint."""
        known = self.region_names if self.geography else list(self.regions) or None
        train, names, faults = read_photo_table(self.root / "train.csv", known, self.image_root)
        cells = self.cell_table if self.geography else self._read_cells(names)
        train = self._clean(train, faults, names, cells)
        if self.geography is None:
            self.geography = self._describe(train, names, cells)
        self.tables["train"] = train

    def get(self, name: str) -> PhotoTable:
        """One split, read when first asked for.

        Raises:
            SplitLeakError: it shares places or pictures with a split read before.
        """
        if "train" not in self.tables:
            self.read_train()
        if name not in self.tables:
            names = self.region_names
            table, _, faults = read_photo_table(self.root / f"{name}.csv", names, self.image_root)
            table = self._clean(table, faults, names, self.cell_table)
            for before in self.tables.values():
                check_places(before, table, float(self.checks["place_gap_km"]))
            if self.checks["images"]:
                check_pictures({k: t.image_paths() for k, t in {**self.tables, name: table}.items()})
            self.tables[name] = table  # only now: a split that leaks is refused each time it is asked for
        return self.tables[name]

    def cell_of(self, name: str) -> NDArray[np.int64]:
        """(N,) position of each row's cell: its ``cell_id``, or the nearest cell of its region."""
        table, cells = self.get(name), self.cell_table
        nearest = cells.assign(table.lat_lon_deg, table.region)
        if table.cell_id is None or not self._has_cell_file():
            return nearest
        return np.where(table.cell_id >= 0, cells.position_of(table.cell_id), nearest)

    def _has_cell_file(self) -> bool:
        return bool(self.cells_path) or (self.root / "cell_metadata.csv").is_file()

    def _clean(self, table: PhotoTable, faults: Faults, names: list[str], cells: CellTable | None) -> PhotoTable:
        """Drops or refuses every bad row, whatever is wrong with it, in one message."""
        faults = self._cell_faults(table, names, cells) | faults
        if self.checks["images"]:
            good = np.array([i for i in range(len(table)) if i not in faults], np.int64)
            paths = table.image_paths()
            bad = unreadable_images([paths[i] for i in good])
            faults = faults | {int(good[i]): f"image '{paths[good[i]]}': {why}" for i, why in bad.items()}
        return table.without(faults, self.on_bad_rows, log.warning)

    def _cell_faults(self, table: PhotoTable, names: list[str], cells: CellTable | None) -> Faults:
        """A ``cell_id`` of the CSV must be in the cell file and belong to the row's region."""
        if table.cell_id is None or cells is None or not self._has_cell_file():
            return {}
        given = np.flatnonzero((table.cell_id >= 0) & (table.region >= 0))
        position = cells.position_of(table.cell_id[given])
        faults: Faults = {}
        for row, at in zip(given.tolist(), position.tolist()):
            if at < 0:
                faults[row] = f"cell_id {table.cell_id[row]} is not in the cell table"
            elif cells.region[at] != table.region[row]:
                own, other = names[table.region[row]], names[cells.region[at]]
                faults[row] = f"cell_id {table.cell_id[row]} belongs to '{other}', the row to '{own}'"
        return faults

    def _describe(self, train: PhotoTable, names: list[str], cells: CellTable | None) -> dict[str, Any]:
        """All that a network must know of the data; fitted on train only; plain numbers and lists."""
        settings = [self.regions.get(name, {}) for name in names]
        counts = np.bincount(train.region, minlength=len(names))
        return {
            "region_names": names,
            "train_csv_hash": _file_hash(train.path),
            "count": counts.tolist(),
            "tau_km": [s.get("tau_km") for s in settings],
            "offset_scale": [float(s.get("offset_scale", 1.0)) for s in settings],
            "centroid_deg": _centroid(train.lat_lon_deg),
            "region_centroid_deg": [_centroid(train.lat_lon_deg[train.region == r]) for r in range(len(names))],
            "cells": (cells or self._build_cells(train, names)).as_dict(),
        }

    def _read_cells(self, names: list[str]) -> CellTable | None:
        path = self.cell_file()
        return CellTable.read_csv(path, names) if path else None

    def cell_file(self) -> Path | None:
        """The cell table that was given, if there is one."""
        return Path(self.cells_path or self.root / "cell_metadata.csv") if self._has_cell_file() else None

    def write_cells(self, path: Path) -> None:
        """Builds the geocells of train and writes them as ``cell_metadata.csv``."""
        train, names, faults = read_photo_table(self.root / "train.csv", list(self.regions) or None, self.image_root)
        self._fit_cells(train.without(faults, self.on_bad_rows, log.warning), names).write_csv(path, names)

    def _build_cells(self, train: PhotoTable, names: list[str]) -> CellTable:
        """Builds the cells once: they are kept under a key of the points and the settings."""
        digest = hashlib.blake2b(json.dumps([self.regions, self.build_options, names]).encode(), digest_size=12)
        digest.update(np.ascontiguousarray(train.lat_lon_deg).data)
        digest.update(np.ascontiguousarray(train.region).data)
        path = self.cache_dir / "cells" / digest.hexdigest() / "cell_metadata.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # of two runs at once one makes them, the other waits
            if not path.is_file():
                part = path.with_suffix(".part")
                self._fit_cells(train, names).write_csv(part, names)
                os.replace(part, path)
        log.info("geocells: %s", path)
        return CellTable.read_csv(path, names)

    def _fit_cells(self, train: PhotoTable, names: list[str]) -> CellTable:
        options = dict(self.build_options)
        default = float(options.pop("max_radius_km", 50.0))
        radii = {i: float(self.regions.get(n, {}).get("max_radius_km", default)) for i, n in enumerate(names)}
        built = build_cells(train.lat_lon_deg, train.region, max_radius_km=radii, **options)
        log.info("built %d geocells from %d train rows", len(built), len(train))
        return built


def _centroid(lat_lon_deg: NDArray[np.float64]) -> list[float]:
    chunks = np.array_split(lat_lon_deg, max(1, len(lat_lon_deg) // 65_536))
    total = np.sum([sphere_points(chunk).sum(0) for chunk in chunks], 0)
    return [float(x) for x in from_vector(torch.from_numpy(total))]


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:24]
