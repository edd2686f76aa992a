"""Tests of the generated country: format, determinism, split hygiene and atomic writing."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagewise.datamodules.geolocation import generated
from stagewise.datamodules.geolocation.generated import province_rows, write_generated_country

ROWS = {"train": 140, "val": 70, "test": 70}
PROVINCES = {
    0: "Sindh",
    1: "Punjab",
    2: "Khyber Pakhtunkhwa",
    3: "Islamabad Capital Territory",
    4: "Gilgit-Baltistan",
    5: "Balochistan",
    6: "Azad Kashmir",
}


def _table(root: Path, split: str) -> list[dict[str, str]]:
    """Read the table of one split."""
    with (root / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _coordinates(root: Path, split: str) -> np.ndarray:
    """Return latitude and longitude in degrees, shape (rows, 2)."""
    return np.array([[float(row["latitude"]), float(row["longitude"])] for row in _table(root, split)])


def _digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `root`, by relative path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _nearest_km(first: np.ndarray, second: np.ndarray) -> float:
    """Return the smallest great-circle distance between two sets of (latitude, longitude) rows in degrees."""
    (lat_a, lon_a), (lat_b, lon_b) = np.radians(first).T[:, :, None], np.radians(second).T[:, None, :]
    half = np.sin((lat_a - lat_b) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_a - lon_b) / 2) ** 2
    return float((2 * 6371.0 * np.arcsin(np.sqrt(half))).min())


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one small country for the tests that only read."""
    root = tmp_path_factory.mktemp("country") / "data"
    write_generated_country(root, rows=ROWS)
    return root


def test_columns_ids_and_pictures(country: Path) -> None:
    for split, rows in ROWS.items():
        table = _table(country, split)
        assert list(table[0]) == ["id", "image", "latitude", "longitude", "province", "province_id"]
        assert [row["id"] for row in table] == [str(number) for number in range(rows)]
        assert [row["image"] for row in table] == [f"images/{split}/{number:05d}.jpg" for number in range(rows)]
        assert all(PROVINCES[int(row["province_id"])] == row["province"] for row in table)
        with Image.open(country / table[-1]["image"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (72, 72))
        assert len(list((country / "images" / split).iterdir())) == rows
    assert [path.name for path in country.parent.iterdir()] == ["data"]


def test_every_province_in_every_split(country: Path) -> None:
    for split in ROWS:
        assert {int(row["province_id"]) for row in _table(country, split)} == set(range(7))


def test_default_row_counts_keep_the_skew_and_the_floors() -> None:
    train, test = province_rows(4500, "train"), province_rows(900, "test")
    assert train.sum() == 4500
    assert test.sum() == 900
    assert train.min() >= 60
    assert test.min() >= 40
    assert train.argmax() == 0
    assert train.argmin() == 6
    assert train[0] > 0.65 * train.sum()


def test_coordinates_lie_in_the_country(country: Path) -> None:
    for split in ROWS:
        lat, lon = _coordinates(country, split).T
        assert 23.6 < lat.min() <= lat.max() < 37.1
        assert 60.8 < lon.min() <= lon.max() < 77.9
        inside = [row["province_id"] == "3" for row in _table(country, split)]
        assert 33.5 < lat[inside].min() <= lat[inside].max() < 33.8
        assert 72.8 < lon[inside].min() <= lon[inside].max() < 73.35


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hamlets_of_different_splits_are_apart(seed: int) -> None:
    hamlets = generated.draw_hamlets(seed)
    flat = {split: np.array([hamlet for group in groups for hamlet in group]) for split, groups in hamlets.items()}
    assert all(group for groups in hamlets.values() for group in groups)
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert _nearest_km(flat[first], flat[second]) >= 0.99


def test_no_place_is_shared_between_splits(country: Path) -> None:
    points = {split: _coordinates(country, split) for split in ROWS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert _nearest_km(points[first], points[second]) >= 0.59


def test_same_arguments_give_the_same_bytes(country: Path, tmp_path: Path) -> None:
    write_generated_country(tmp_path / "again", rows=dict(reversed(ROWS.items())))
    assert _digests(tmp_path / "again") == _digests(country)


def test_another_seed_differs(country: Path, tmp_path: Path) -> None:
    write_generated_country(tmp_path / "other", rows=ROWS, seed=1)
    other, first = _digests(tmp_path / "other"), _digests(country)
    assert other.keys() == first.keys()
    assert not set(other.values()) & set(first.values())


def test_pictures_depend_on_the_place(country: Path) -> None:
    def view(place: tuple[float, float]) -> np.ndarray:
        return generated.paint(place, np.random.default_rng(0), 48)

    karachi, nearby, skardu = view((24.93, 67.08)), view((24.9301, 67.0801)), view((35.3, 75.63))
    assert karachi.shape == (48, 48, 3)
    assert karachi.dtype == np.uint8
    gap = np.abs(karachi.astype(int) - skardu).mean()
    assert gap > 10 * np.abs(karachi.astype(int) - nearby).mean()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []

    def stop(*arguments: object) -> np.ndarray:
        painted.append(arguments)
        if len(painted) > 5:
            raise KeyboardInterrupt
        return np.zeros((72, 72, 3), np.uint8)

    monkeypatch.setattr(generated, "paint", stop)
    with pytest.raises(KeyboardInterrupt):
        write_generated_country(tmp_path / "data", rows=ROWS)
    assert len(painted) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_generated_country(tmp_path, rows=ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("rows", [{"train": 140}, {**ROWS, "extra": 50}, {**ROWS, "val": 3}])
def test_bad_rows_are_refused(tmp_path: Path, rows: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 7 rows"):
        write_generated_country(tmp_path / "data", rows=rows)
    assert not (tmp_path / "data").exists()
