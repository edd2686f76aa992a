"""A tiny data set in the true on-disk format: CSVs, JPEGs and, where a test wants one, a cell table."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLUMNS = ["id", "image", "latitude", "longitude", "province", "province_id"]
REGIONS = ("Hills", "Coast", "Desert")
ROWS = {"train": (36, 15, 9), "val": (12, 5, 3), "test": (12, 5, 3)}
CELL_OPTIONS = {"max_radius_km": 60, "min_cluster_size": 5, "min_samples": 2, "min_size": 4, "progress": False}


@dataclass
class Country:
    """Rows that a test may change before ``write()`` puts them on disk; the pictures are there already."""

    root: Path
    rows: dict[str, list[dict[str, Any]]]
    columns: list[str]

    def write(self) -> Path:
        for split, rows in self.rows.items():
            with (self.root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        return self.root

    def picture(self, split: str, row: int) -> Path:
        return self.root / self.rows[split][row]["image"]

    def write_cells(self, cells: list[tuple[int, int, float, float]]) -> Path:
        """Writes ``cell_metadata.csv`` from (cell id, region, latitude, longitude)."""
        path = self.root / "cell_metadata.csv"
        lines = ["cell_id,province,province_id,center_lat,center_lon,radius_km,neighbor_cell_ids"]
        lines += [f"{i},{REGIONS[r]},{r},{lat},{lon},20.0," for i, r, lat, lon in cells]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def _rows(split: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    east = {"train": 0.0, "val": 0.6, "test": 1.2}[split]  # towns of different splits lie more than 20 km apart
    regions = rng.permutation(np.repeat([0, 1, 2], ROWS[split]))
    return [
        {
            "id": f"{split}-{i:03d}",
            "image": f"images/{split}/{i:03d}.jpg",
            "latitude": round(float(30 + 2 * r + rng.uniform(0, 0.3)), 6),
            "longitude": round(float(70 + east + rng.uniform(0, 0.3)), 6),
            "province": REGIONS[r],
            "province_id": r,
        }
        for i, r in enumerate(regions.tolist())
    ]


@pytest.fixture
def country(tmp_path: Path) -> Country:
    rng, root = np.random.default_rng(0), tmp_path / "country"
    rows = {split: _rows(split, rng) for split in ROWS}
    for split, table in rows.items():
        (root / "images" / split).mkdir(parents=True)
        for row in table:
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / row["image"], quality=85)
    return Country(root, rows, list(COLUMNS))


@pytest.fixture
def cell_options() -> dict[str, Any]:
    """Arguments of ``build_cells`` that suit so few rows."""
    return dict(CELL_OPTIONS)
