"""Builds geocells from train points: density clusters, then splits and merges until every cell is useful."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .geocells import N_NEIGHBOURS, CellTable, sphere_points
from .geodesy import EARTH_RADIUS_KM

Points = NDArray[np.float64]
_MIN_RADIUS_KM = 0.25  # a cell of identical points still needs room for the offset head
_RADIUS_QUANTILE = 0.95
_REACH = 3  # points beyond the limit and beyond this many median distances are outliers, not part of a cell's radius
_ORIGIN = np.array([90.0, 180.0])
_PEELS = 5  # far handfuls that a split leaves out before it gives up


def build_cells(
    lat_lon_deg: NDArray[Any],
    region: NDArray[Any],
    *,
    max_radius_km: float | dict[int, float] = 50.0,
    min_cluster_size: int = 40,
    min_samples: int = 10,
    min_size: int = 40,
    max_fit_rows: int = 100_000,
    progress: bool = True,
) -> CellTable:
    """Fits geocells on train points, region by region; deterministic and independent of the order of rows.

    HDBSCAN (Campello et al. 2013) finds the dense places, noise joins the nearest centre, cells wider than
    ``max_radius_km`` are split in two while both halves keep ``min_size`` points, smaller cells join a neighbour.
    A region without density clusters starts as one cell and is only split.

    Args:
        lat_lon_deg: (N, 2) train coordinates in degrees.
        region: (N,) region index of each row.
        max_radius_km: the widest cell, for all regions or per region index (others: 50).
        min_cluster_size: HDBSCAN's smallest cluster.
        min_samples: HDBSCAN's neighbourhood.
        min_size: points that a cell must hold.
        max_fit_rows: a larger region is fitted on an even subsample of this many points.
        progress: shows a bar over the regions.

    Returns:
        The cells, numbered from 0 in the order of the regions.

    >>> points = np.random.default_rng(0).normal([30, 70], 0.5, (500, 2))
    >>> cells = build_cells(points, np.zeros(500, int), max_radius_km=30, min_size=20, progress=False)
    >>> bool((np.bincount(cells.assign(points, np.zeros(500, int))) >= 20).all())
    True
    """
    limits = max_radius_km if isinstance(max_radius_km, dict) else {int(r): max_radius_km for r in np.unique(region)}
    centres: list[Points] = []
    radii: list[Points] = []
    owners: list[int] = []
    for r in tqdm(np.unique(region), desc="geocells", disable=not progress, leave=False):
        fitted = _even_sample(np.asarray(lat_lon_deg, np.float64)[region == r], max_fit_rows)
        clusters = _density_clusters(fitted, min_cluster_size, min_samples)
        limit = limits.get(int(r), 50.0)
        clusters = [part for c in clusters for part in _split(c, limit, min_size)]
        centre = _merge(np.stack([_centre(c) for c in clusters]), fitted, min_size)
        centres.append(centre)
        radii.append(_radii(centre, fitted, limit))
        owners += [int(r)] * len(centre)
    return _table(np.concatenate(centres), np.concatenate(radii), np.array(owners))


def _even_sample(points: Points, most: int) -> Points:
    """Points in an order that does not depend on that of the rows; of many every n-th, to 1e-7 degrees (1 cm)."""
    if len(points) <= most:
        return points[np.lexsort(points.T)]
    key = np.concatenate([_sort_key(chunk) for chunk in np.array_split(points, -(-len(points) // 65_536))])
    key.sort()
    key = key[:: -(-len(key) // most)]
    return np.stack([key & (1 << 31) - 1, key >> 31], 1) / 1e7 - _ORIGIN


def _sort_key(points: Points) -> NDArray[np.int64]:
    """One number a point: ten times as fast to sort as two."""
    lat, lon = np.rint((points + _ORIGIN) * 1e7).astype(np.int64).T
    return lon << 31 | lat


def _density_clusters(points: Points, min_cluster_size: int, min_samples: int) -> list[Points]:
    """HDBSCAN's clusters with the noise joined to the nearest; one cluster of everything where it finds none."""
    if len(points) <= min_cluster_size:
        return [points]
    from hdbscan import HDBSCAN  # compiled and slow to import: only who builds cells pays for it

    # One job: it would start worker processes, which takes longer than the work.
    fit = HDBSCAN(min_cluster_size=min_cluster_size, min_samples=min_samples, core_dist_n_jobs=1)
    labels = fit.fit_predict(_project(points))
    if labels.max() < 0:
        return [points]
    centres = np.stack([_centre(points[labels == k]) for k in range(labels.max() + 1)])
    nearest = _nearest(points, centres)
    labels = np.where(labels < 0, nearest, labels)
    return [points[labels == k] for k in range(len(centres))]


def _project(points: Points) -> Points:
    """Azimuthal equidistant projection around the middle of the points, in km (Snyder 1987, p. 191)."""
    vectors = sphere_points(points)
    middle = vectors.mean(0) / max(float(np.linalg.norm(vectors.mean(0))), 1e-12)
    east = np.cross([0.0, 0.0, 1.0], middle)
    east = east / np.linalg.norm(east) if np.linalg.norm(east) > 1e-9 else np.array([1.0, 0.0, 0.0])
    plane = vectors @ np.stack([east, np.cross(middle, east)], 1)
    angle = np.arccos(np.clip(vectors @ middle, -1, 1))
    scale = EARTH_RADIUS_KM * angle / np.maximum(np.linalg.norm(plane, axis=1), 1e-12)
    return plane * scale[:, None]


def _centre(points: Points) -> Points:
    """Componentwise median in the projection's frame: robust, and always among the points' latitudes."""
    vectors = sphere_points(points)
    centre = np.median(vectors, 0)
    if np.linalg.norm(centre) < 1e-9:
        centre = vectors[0]
    centre = centre / np.linalg.norm(centre)
    return np.degrees(np.array([np.arcsin(np.clip(centre[2], -1, 1)), np.arctan2(centre[1], centre[0])]))


def _distance_km(points: Points, centre: Points) -> Points:
    chord = np.linalg.norm(sphere_points(points) - sphere_points(centre[None]), axis=1)
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chord / 2, 0, 1))


def _radius(distance_km: Points) -> float:
    """The 95 % quantile; "lower", because interpolation would let the farthest of fewer than 20 points in."""
    return max(_MIN_RADIUS_KM, float(np.quantile(distance_km, _RADIUS_QUANTILE, method="lower")))


def _split(points: Points, max_radius_km: float, min_size: int) -> list[Points]:
    """Halves a cluster until it is narrow enough or a half would be too small."""
    if len(points) < 2 * min_size or _radius(_distance_km(points, _centre(points))) <= max_radius_km:
        return [points]
    from sklearn.cluster import KMeans

    plane = core = _project(points)
    for _ in range(_PEELS):
        means = KMeans(2, n_init=4, random_state=0).fit(core)
        label = means.predict(plane)
        if np.bincount(label, minlength=2).min() >= min_size:
            return [part for k in (0, 1) for part in _split(points[label == k], max_radius_km, min_size)]
        core = core[means.labels_ == np.bincount(means.labels_).argmax()]  # without the far handful that took a half
        if len(core) < 2 * min_size:
            break
    return [points]


def _nearest(points: Points, centres: Points) -> NDArray[np.int64]:
    from scipy.spatial import cKDTree

    return cKDTree(sphere_points(centres)).query(sphere_points(points))[1]


def _merge(centres: Points, points: Points, min_size: int) -> Points:
    """Drops the emptiest cell until all hold ``min_size`` points under nearest-centre assignment."""
    while len(centres) > 1:
        counts = np.bincount(_nearest(points, centres), minlength=len(centres))
        if counts.min() >= min_size:
            break
        centres = np.delete(centres, counts.argmin(), 0)
    return centres


def _radii(centres: Points, points: Points, max_radius_km: float) -> Points:
    """Radius of each cell without its outliers: a handful of far points cannot inflate it."""
    nearest = _nearest(points, centres)
    radii = []
    for k, centre in enumerate(centres):
        distance_km = _distance_km(points[nearest == k], centre)
        radii.append(_radius(distance_km[distance_km <= max(max_radius_km, _REACH * np.median(distance_km))]))
    return np.array(radii)


def _table(centres: Points, radii: Points, owner: NDArray[np.int64]) -> CellTable:
    neighbours: list[list[int]] = []
    for i, centre in enumerate(centres):
        same = np.flatnonzero((owner == owner[i]) & (np.arange(len(owner)) != i))
        order = np.argsort(_distance_km(centres[same], centre), kind="stable")[:N_NEIGHBOURS]
        neighbours.append(same[order].tolist())
    return CellTable(np.arange(len(centres)), owner, centres, radii, neighbours)
