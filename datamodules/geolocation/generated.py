"""A generated country in the on-disk format of GeoPak, to run the geolocation task without the real pictures.

``write_generated_country`` writes ``train.csv``, ``val.csv`` and ``test.csv`` and JPEG pictures of places around real
towns of Pakistan. The columns are ``id,image,latitude,longitude,province,province_id``; ``id`` is the row number and
``image`` is relative to the folder of the CSV (``images/train/00000.jpg``). The pictures are drawn, not photographed:
the set shows that a pipeline works and compares settings; it says nothing about accuracy on real pictures.

Depends on the place, through fields that are functions of latitude and longitude alone and run on across borders:
height and ruggedness of the skyline, snow line, aridity of the ground, mix of trees, mix of building styles (mud brick,
brick, pitched timber, concrete towers in the large cities), sun height in the shadow length, and wave cues of 140 to
800 km: angle and period of the wall ornament, window shape, roof trim, wall tint, arms and arm angle of the utility
pole, the two hues and the emblem turn of the signboard, kerb marks, furrows of the fields.

Nuisance, drawn afresh for each picture: sky and hour, white balance, exposure, contrast, saturation, noise, yaw, zoom,
horizon, side of the house, clouds, haze, season, part of the wall, roof and ornament colours, which of the locally
common trees and styles shows, a missing pole or sign, cars, people, a passing obstacle, and an error on every wave cue.

Splits are by place: each town has hamlets, each hamlet belongs to one split, hamlets of different splits lie at
least 1 km apart, and pictures lie within 200 m of their hamlet.
"""

import csv
import math
import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from .generated_pictures import paint

SPLITS = ("train", "val", "test")
DEFAULT_ROWS = {"train": 4500, "val": 900, "test": 900}
COLUMNS = ("id", "image", "latitude", "longitude", "province", "province_id")

_REAL_TRAIN_COUNTS = {
    "Sindh": 58697, "Punjab": 7611, "Khyber Pakhtunkhwa": 4810, "Islamabad Capital Territory": 3971,
    "Gilgit-Baltistan": 2141, "Balochistan": 3265, "Azad Kashmir": 967,
}  # fmt: skip
Hamlets = list[list[tuple[float, float]]]  # by province id: (latitude, longitude) in degrees
PROVINCES = tuple(_REAL_TRAIN_COUNTS)

_TOWNS: dict[str, dict[str, tuple[float, float, float]]] = {
    # province: towns as latitude and longitude in degrees, reach of their hamlets in km (short near a border)
    "Sindh": {
        "Karachi": (24.93, 67.08, 14), "Hyderabad": (25.39, 68.37, 20), "Sukkur": (27.70, 68.86, 20),
        "Larkana": (27.56, 68.21, 18), "Nawabshah": (26.24, 68.41, 25), "Mirpur Khas": (25.53, 69.01, 25),
        "Thatta": (24.75, 67.92, 18), "Badin": (24.66, 68.84, 20), "Dadu": (26.73, 67.78, 20),
        "Umerkot": (25.36, 69.74, 20), "Mithi": (24.74, 69.80, 20), "Jacobabad": (28.28, 68.44, 6),
        "Sanghar": (26.05, 68.95, 25), "Ghotki": (28.00, 69.32, 15),
    },
    "Punjab": {
        "Lahore": (31.50, 74.30, 12), "Faisalabad": (31.42, 73.09, 25), "Multan": (30.20, 71.47, 20),
        "Bahawalpur": (29.39, 71.68, 20), "Sargodha": (32.08, 72.67, 20), "Gujranwala": (32.16, 74.19, 20),
        "Sialkot": (32.49, 74.53, 5), "Jhelum": (32.93, 73.70, 5), "Chakwal": (32.93, 72.86, 20),
        "Attock": (33.77, 72.36, 6), "Mianwali": (32.58, 71.54, 10), "Dera Ghazi Khan": (30.05, 70.64, 15),
        "Rahim Yar Khan": (28.42, 70.30, 15), "Sahiwal": (30.67, 73.11, 20),
    },
    "Khyber Pakhtunkhwa": {
        "Peshawar": (34.01, 71.57, 10), "Mardan": (34.20, 72.05, 15), "Mingora": (34.77, 72.36, 12),
        "Abbottabad": (34.15, 73.21, 8), "Mansehra": (34.33, 73.20, 8), "Kohat": (33.59, 71.44, 12),
        "Bannu": (32.99, 70.60, 12), "Dera Ismail Khan": (31.83, 70.90, 10), "Chitral": (35.85, 71.79, 12),
        "Dir": (35.20, 71.88, 10), "Haripur": (33.99, 72.93, 7), "Besham": (34.93, 72.88, 8),
    },
    "Islamabad Capital Territory": {
        "F-7": (33.721, 73.057, 1.8), "G-9": (33.690, 73.030, 1.8), "I-10": (33.650, 73.035, 1.2),
        "E-11": (33.700, 72.980, 1.8), "G-13": (33.652, 72.965, 1.5), "Tarnol": (33.655, 72.905, 1.5),
        "Bari Imam": (33.745, 73.113, 1.8), "Bhara Kahu": (33.740, 73.180, 2.0), "Bani Gala": (33.715, 73.155, 2.0),
        "Chak Shahzad": (33.665, 73.145, 2.0), "Tarlai": (33.640, 73.155, 1.5), "Nilore": (33.652, 73.262, 2.0),
        "Sihala": (33.558, 73.205, 1.5),
    },
    "Gilgit-Baltistan": {
        "Gilgit": (35.92, 74.31, 15), "Skardu": (35.30, 75.63, 15), "Karimabad": (36.32, 74.66, 10),
        "Chilas": (35.42, 74.10, 10), "Astore": (35.37, 74.86, 10), "Khaplu": (35.16, 76.33, 8),
        "Gahkuch": (36.17, 73.76, 12), "Shigar": (35.42, 75.74, 10), "Sost": (36.69, 74.82, 8),
        "Gupis": (36.23, 73.44, 10),
    },
    "Balochistan": {
        "Quetta": (30.18, 67.00, 20), "Khuzdar": (27.81, 66.61, 25), "Turbat": (26.00, 63.05, 20),
        "Gwadar": (25.25, 62.30, 4), "Panjgur": (26.97, 64.09, 20), "Zhob": (31.34, 69.45, 20),
        "Loralai": (30.37, 68.60, 20), "Sibi": (29.54, 67.88, 20), "Kalat": (29.03, 66.59, 20),
        "Dalbandin": (28.89, 64.41, 20), "Nushki": (29.55, 66.02, 12), "Bela": (26.23, 66.31, 15),
        "Dera Bugti": (29.03, 69.16, 15),
    },
    "Azad Kashmir": {
        "Muzaffarabad": (34.37, 73.47, 4), "Mirpur": (33.15, 73.75, 5), "Kotli": (33.52, 73.90, 8),
        "Bagh": (33.98, 73.78, 8), "Rawalakot": (33.86, 73.76, 8), "Bhimber": (32.98, 74.07, 4),
        "Pallandri": (33.72, 73.69, 4), "Athmuqam": (34.57, 73.90, 2), "Hattian Bala": (34.17, 73.74, 4),
        "Sharda": (34.79, 74.19, 4), "Kel": (34.83, 74.36, 3),
    },
}  # fmt: skip
_HAMLETS_PER_TOWN = 8
_APART_KM, _PICTURE_REACH_KM, _KM_PER_DEG = 1.0, 0.2, 111.2
_RARE_SHARE = 1 / 75  # the rarest province gets at least this part of the train rows: 60 of 4500
_EVAL_FLOOR = 40  # rows a province gets at least in val and test, as far as a twentieth of the rows allows


def province_rows(rows: int, split: str) -> NDArray[np.int64]:
    """Shares out the rows of a split among the provinces.

    Shares follow the real train counts raised to the largest power (in steps of 0.01, at most 1) that leaves the rarest
    province 1/75 of the rows. In val and test a province gets at least min(40, rows // 20) rows, taken from the rest.

    Args:
        rows: Rows of the split, at least 7.
        split: Name of the split.

    Returns:
        Rows by province id, int, shape (7,), summing to ``rows``.
    """
    real = np.array(list(_REAL_TRAIN_COUNTS.values()), float)
    powers = (real ** (step / 100) for step in range(100, -1, -1))
    share = next(part / part.sum() for part in powers if part.min() / part.sum() >= _RARE_SHARE)
    floor = 1 if split == "train" else max(1, min(_EVAL_FLOOR, rows // 20))
    counts: NDArray[np.int64] = np.maximum(np.floor(share * rows).astype(int), floor)
    counts[0] += rows - counts.sum()
    return counts


def _stream(seed: int, *key: int) -> np.random.Generator:
    """Returns the random stream of one thing; keys that differ only in trailing zeros name the same stream."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *key))))


def _around(lat_deg: float, lon_deg: float, reach_km: float, rng: np.random.Generator) -> tuple[float, float]:
    """Draws a point evenly from the disc of ``reach_km`` around a point; returns latitude and longitude in degrees."""
    distance_km, bearing = reach_km * math.sqrt(rng.uniform()), rng.uniform(0.0, 2.0 * math.pi)
    lat = lat_deg + distance_km * math.cos(bearing) / _KM_PER_DEG
    lon = lon_deg + distance_km * math.sin(bearing) / (_KM_PER_DEG * math.cos(math.radians(lat_deg)))
    return lat, lon


def _distance_km(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Returns the distance of two nearby points given as latitude and longitude in degrees."""
    east = (second[1] - first[1]) * math.cos(math.radians(first[0]))
    return _KM_PER_DEG * math.hypot(second[0] - first[0], east)


def draw_hamlets(seed: int) -> dict[str, Hamlets]:
    """Draws the hamlets of the country; those of different splits lie at least 1 km apart.

    About 70, 15 and 15 percent of a province's hamlets go to train, val and test. One without free ground is left out.

    Args:
        seed: Seed of the data set.

    Returns:
        For each split, a list by province id of hamlets as (latitude, longitude) in degrees.
    """
    rng = _stream(seed, len(SPLITS))
    drawn: dict[str, Hamlets] = {split: [[] for _ in PROVINCES] for split in SPLITS}
    for number, province in enumerate(PROVINCES):
        centres = [town for town in _TOWNS[province].values() for _ in range(_HAMLETS_PER_TOWN)]
        part = round(0.15 * len(centres))
        labels = rng.permutation(np.repeat((0, 1, 2), (len(centres) - 2 * part, part, part)))
        for centre, label in zip(centres, labels, strict=True):
            foreign = [h for split in SPLITS if split != SPLITS[label] for group in drawn[split] for h in group]
            for _ in range(50):
                hamlet = _around(*centre, rng)
                if all(_distance_km(hamlet, other) >= _APART_KM for other in foreign):
                    drawn[SPLITS[label]][number].append(hamlet)
                    break
    return drawn


def _write_split(folder: Path, split: str, rows: int, hamlets: Hamlets, image_px: int, seed: int, bar: tqdm) -> None:
    """Writes the table and the pictures of one split."""
    (folder / "images" / split).mkdir(parents=True)
    key = SPLITS.index(split)
    order = _stream(seed, key)
    provinces = order.permutation(np.repeat(np.arange(len(PROVINCES)), province_rows(rows, split)))
    with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row, number in enumerate(provinces.tolist()):
            rng = _stream(seed, key, row + 1)
            home = hamlets[number][int(rng.integers(len(hamlets[number])))]
            lat, lon = (round(part, 6) for part in _around(home[0], home[1], _PICTURE_REACH_KM, rng))
            name = f"images/{split}/{row:05d}.jpg"
            Image.fromarray(paint((lat, lon), rng, image_px)).save(folder / name, quality=88)
            table.writerow((row, name, lat, lon, PROVINCES[number], number))
            bar.update()


def write_generated_country(
    root: str | Path, *, rows: dict[str, int] | None = None, image_px: int = 72, seed: int = 0
) -> None:
    """Writes a generated data set in the format of GeoPak; the same arguments give the same bytes.

    All files are written to a temporary sibling folder that takes the name ``root`` at the end.

    Args:
        root: Folder to make; it must not exist or be empty.
        rows: Rows of "train", "val" and "test", each at least 7; None for 4500, 900 and 900.
        image_px: Side of the square pictures in pixels.
        seed: Seed of hamlets and pictures; the fields of the country do not depend on it.

    Raises:
        FileExistsError: If ``root`` exists and is not an empty folder.
        ValueError: If ``rows`` does not name the three splits, or a split has fewer than 7 rows.
    """
    target, rows = Path(root).absolute(), dict(DEFAULT_ROWS if rows is None else rows)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder.")
    if set(rows) != set(SPLITS) or min(rows.values()) < len(PROVINCES):
        raise ValueError(f"rows must give at least {len(PROVINCES)} rows for each of {SPLITS}, got {rows}.")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    hamlets = draw_hamlets(seed)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tqdm(total=sum(rows.values()), desc="generated country", unit="picture") as bar:
            for split in SPLITS:
                _write_split(partial, split, rows[split], hamlets[split], image_px, seed, bar)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
