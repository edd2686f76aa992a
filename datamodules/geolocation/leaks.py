"""Refuses splits that share a place or a picture: a leak fails the run, it does not warn."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import SplitLeakError
from .geocells import sphere_points
from .geodesy import EARTH_RADIUS_KM
from .photo_table import PhotoTable


def check_places(train: PhotoTable, other: PhotoTable, gap_km: float) -> None:
    """Refuses rows of ``other`` that lie closer than ``gap_km`` to a train row.

    Raises:
        SplitLeakError: names the first pairs and the remedy.
    """
    from scipy.spatial import cKDTree

    if gap_km <= 0:
        return
    chord = 2 * np.sin(gap_km / EARTH_RADIUS_KM / 2)
    tree = cKDTree(sphere_points(other.lat_lon_deg))  # of the small split: bounded memory at 10 million train rows
    pairs = []
    for chunk in np.array_split(np.arange(len(train)), max(1, len(train) // 500_000)):
        distance, row = tree.query(sphere_points(train.lat_lon_deg[chunk]), distance_upper_bound=chord)
        pairs += [(int(chunk[i]), int(row[i])) for i in np.flatnonzero(np.isfinite(distance))]
    if pairs:
        named = ", ".join(f"'{train.id[i]}' / '{other.id[j]}'" for i, j in pairs[:10])
        raise SplitLeakError(
            f"{len(pairs)} rows of '{train.path}' lie within {gap_km} km of a row of '{other.path}': {named}. "
            "Move whole places into one split, or lower datamodule.checks.place_gap_km and say so beside your figures."
        )


def check_pictures(splits: Mapping[str, Sequence[str]]) -> None:
    """Refuses byte-identical pictures in two splits.

    Args:
        splits: paths of the pictures of each split.

    Raises:
        SplitLeakError: names the first pairs and the remedy.
    """
    owner: dict[bytes, tuple[str, str]] = {}
    pairs = []
    for split, paths in splits.items():
        with ThreadPoolExecutor(4) as pool:
            for path, digest in zip(paths, pool.map(_digest, paths)):
                other, first = owner.setdefault(digest, (split, path))
                if other != split:
                    pairs.append(f"'{first}' / '{path}'")
    if pairs:
        raise SplitLeakError(
            f"{len(pairs)} pictures stand in two splits: {', '.join(pairs[:10])}. Keep each picture in one split."
        )


def _digest(path: str) -> bytes:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
