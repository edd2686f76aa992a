"""A small clinic that a test fills and breaks."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ["low", "mid", "high"]
COLUMNS = {"id": "id", "group": "patient_id", "label": "label", "image": "image", "drop": [], "categories": []}
FILES = {"table": "metadata.csv", "boxes": None}


class Clinic:
    """Rows of 18 patients, two each, of all classes; every picture is 24 x 16."""

    def __init__(self, root: Path) -> None:
        self.root, rng = root, np.random.default_rng(0)
        (root / "images").mkdir(parents=True)
        self.rows = []
        for number in range(36):
            self.picture(f"images/{number}.png", rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
            cells = {"id": f"r{number}", "patient_id": f"p{number // 2}", "image": f"images/{number}.png"}
            seen = {"age": 40 + number % 7, "kind": ["a", "b", ""][number % 3]}
            self.rows.append(cells | seen | {"label": CLASSES[number // 2 % 3]})

    def picture(self, name, pixels, **save):
        Image.fromarray(pixels).save(self.root / name, **save)
        return self.root / name

    def write(self, header=None):
        self.table("metadata.csv", self.rows, header)
        return self.root

    def boxes(self, *rows):
        names = ("filename", "xmin", "ymin", "xmax", "ymax")
        self.table("boxes.csv", [dict(zip(names, row)) for row in rows], names)
        return FILES | {"boxes": "boxes.csv"}

    def table(self, name, rows, header=None):
        with (self.root / name).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, header or list(rows[0]), extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)


@pytest.fixture
def clinic(tmp_path):
    return Clinic(tmp_path / "clinic")
