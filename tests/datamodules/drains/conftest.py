"""Small YOLO folders that a test fills."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = [
    "Toe drain", "Toe drain- Blocked", "Toe drain- Damaged", "rock toe", "rock toe damaged",
    "slope drain", "slope drain blocked", "slope drain damaged", "vegetation",
]  # fmt: skip
ROWS = [f"{i} {0.1 + 0.1 * i:.3f} {0.1 + 0.09 * i:.3f} 0.15 0.2" for i in range(9)]  # one object of each class


class YoloSet:
    """A folder with ``data.yaml``; pictures and labels are added one by one."""

    def __init__(self, root: Path) -> None:
        self.root, self.rng = root, np.random.default_rng(0)
        self.yaml(train="images")

    def yaml(self, names=NAMES, **keys):
        import yaml

        self.root.mkdir(exist_ok=True)
        (self.root / "data.yaml").write_text(yaml.safe_dump({"names": names, **keys}))

    def add(self, name, rows=(), folder="images", pixels=None, **save):
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = self.rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **save)
        self.label(name, rows, folder)
        return path

    def label(self, name, rows, folder="images"):
        path = self.root / folder.replace("images", "labels") / Path(name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
        return path

    def places(self, per_place=2, places=6, rows=ROWS, fold=None):
        """Pictures with one object of each class at every place; ``locations.csv`` beside them."""
        lines = ["stem,location" + (",fold" if fold else "")]
        for place in range(places):
            for number in range(per_place):
                self.add(f"p{place}_{number}.png", rows)
                lines.append(f"p{place}_{number},place{place}" + (f",{fold(place)}" if fold else ""))
        (self.root / "locations.csv").write_text("\n".join(lines) + "\n")
        return self.root


@pytest.fixture
def yolo(tmp_path):
    return YoloSet(tmp_path / "set")
