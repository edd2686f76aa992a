"""The cell table: a partition of the train points into geocells, region by region."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadRowsError, DatasetNotFoundError

COLUMNS = ("cell_id", "province", "province_id", "center_lat", "center_lon", "radius_km", "neighbor_cell_ids")
N_NEIGHBOURS = 8
_ASSIGN_CHUNK = 65_536  # rows looked up at once: bounds memory at 10 million rows


def sphere_points(lat_lon_deg: NDArray[Any]) -> NDArray[np.float64]:
    """(N, 2) degrees -> (N, 3) unit vectors in float64."""
    lat, lon = np.radians(np.asarray(lat_lon_deg, np.float64)).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)


@dataclass(frozen=True)
class CellTable:
    """Geocells in the order of the network's outputs: sorted by region, then by id.

    Args:
        cell_id: (C,) ids as in the CSV.
        region: (C,) region index of each cell.
        centre_deg: (C, 2) latitude, longitude.
        radius_km: (C,) robust radius.
        neighbours: for each cell the ids of its nearest cells of the region.
    """

    cell_id: NDArray[np.int64]
    region: NDArray[np.int64]
    centre_deg: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    neighbours: list[list[int]]

    def __len__(self) -> int:
        return len(self.cell_id)

    def assign(self, lat_lon_deg: NDArray[Any], region: NDArray[Any]) -> NDArray[np.int64]:
        """Nearest centre on the sphere among the cells of each point's region.

        Args:
            lat_lon_deg: (N, 2) degrees.
            region: (N,) region indices.

        Returns:
            (N,) positions in this table (not ids).

        Raises:
            BadRowsError: a region has no cell.
        """
        from scipy.spatial import cKDTree

        result = np.empty(len(region), np.int64)
        for r in np.unique(region):
            rows, cells = np.flatnonzero(region == r), np.flatnonzero(self.region == r)
            if not len(cells):
                raise BadRowsError(
                    f"region {r} has rows but no cell in the cell table; rebuild the cells on train.csv."
                )
            centres = cKDTree(sphere_points(self.centre_deg[cells]))
            for chunk in np.array_split(rows, max(1, len(rows) // _ASSIGN_CHUNK)):
                result[chunk] = cells[centres.query(sphere_points(lat_lon_deg[chunk]))[1]]
        return result

    def position_of(self, cell_ids: NDArray[Any]) -> NDArray[np.int64]:
        """(N,) ids -> (N,) positions in this table, -1 where an id is unknown."""
        order = np.argsort(self.cell_id)
        slot = np.searchsorted(self.cell_id, cell_ids, sorter=order).clip(max=len(self) - 1)
        position = order[slot]
        return np.where(self.cell_id[position] == cell_ids, position, -1)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for a checkpoint that loads with ``weights_only=True``."""
        return {
            "cell_id": self.cell_id.tolist(),
            "region": self.region.tolist(),
            "centre_deg": self.centre_deg.tolist(),
            "radius_km": self.radius_km.tolist(),
            "neighbours": self.neighbours,
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "CellTable":
        """The inverse of :meth:`as_dict`; sorts the rows by region and id."""
        cell_id, region = np.asarray(table["cell_id"], np.int64), np.asarray(table["region"], np.int64)
        order = np.lexsort((cell_id, region))
        return cls(
            cell_id[order],
            region[order],
            np.asarray(table["centre_deg"], np.float64).reshape(-1, 2)[order],
            np.asarray(table["radius_km"], np.float64)[order],
            [list(map(int, table["neighbours"][i])) for i in order],
        )

    def write_csv(self, path: str | Path, region_names: Sequence[str]) -> None:
        """Writes ``cell_metadata.csv``."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for i in range(len(self)):
                r, (lat, lon) = int(self.region[i]), self.centre_deg[i]
                near = " ".join(map(str, self.neighbours[i]))
                row = [
                    self.cell_id[i],
                    region_names[r],
                    r,
                    f"{lat:.6f}",
                    f"{lon:.6f}",
                    f"{self.radius_km[i]:.3f}",
                    near,
                ]
                writer.writerow(row)

    @classmethod
    def read_csv(cls, path: str | Path, region_names: Sequence[str]) -> "CellTable":
        """Reads ``cell_metadata.csv``.

        Raises:
            DatasetNotFoundError: no such file.
            BadRowsError: a column is missing, a row does not parse, an id stands twice, a region is unknown.
        """
        if not Path(path).is_file():
            raise DatasetNotFoundError(
                f"no cell table at '{path}'; pass datamodule.cells=null to build one from train.csv."
            )
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
            if missing:
                raise BadRowsError(f"'{path}' lacks the column(s) {', '.join(missing)}; it needs {', '.join(COLUMNS)}.")
            rows = [(reader.line_num, row) for row in reader]
        table: dict[str, list[Any]] = {"cell_id": [], "region": [], "centre_deg": [], "radius_km": [], "neighbours": []}
        for number, row in rows:
            _append_row(table, row, f"'{path}' line {number}", list(region_names))
        first: dict[int, int] = {}
        twice = [
            f"cell_id {cell} on lines {first[cell]} and {number}"
            for (number, _), cell in zip(rows, table["cell_id"])
            if first.setdefault(cell, number) != number
        ]
        if twice or not rows:
            raise BadRowsError(f"'{path}': {', '.join(twice[:10]) or 'no cell'}; each cell needs exactly one row.")
        return cls.from_dict(table)


def _append_row(table: dict[str, list[Any]], row: dict[str, str], where: str, names: list[str]) -> None:
    if any(row[column] is None for column in COLUMNS):
        raise BadRowsError(f"{where}: fewer values than the header has columns; it needs {', '.join(COLUMNS)}.")
    if row["province"] not in names:
        raise BadRowsError(f"{where}: unknown province '{row['province']}'; known: {', '.join(names)}.")
    try:
        centre, radius_km = [float(row["center_lat"]), float(row["center_lon"])], float(row["radius_km"])
        cell_id, region = int(row["cell_id"]), int(row["province_id"])
        neighbours = [int(i) for i in row["neighbor_cell_ids"].replace(";", " ").replace(",", " ").strip("[] ").split()]
    except ValueError as error:
        raise BadRowsError(f"{where}: {error}; ids are whole numbers, centre and radius decimal numbers.") from error
    if region != names.index(row["province"]):
        raise BadRowsError(f"{where}: province_id {region} is not the id of '{row['province']}'.")
    if not (abs(centre[0]) <= 90 and abs(centre[1]) <= 180 and 0 < radius_km < 20_000):
        raise BadRowsError(f"{where}: centre {centre} or radius {radius_km} km is out of range.")
    values = {
        "cell_id": cell_id,
        "region": region,
        "centre_deg": centre,
        "radius_km": radius_km,
        "neighbours": neighbours,
    }
    for key, value in values.items():
        table[key].append(value)
