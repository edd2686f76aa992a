import numpy as np
import pytest

from stagewise.datamodules.geolocation.cell_builder import build_cells

OPTIONS = {"max_radius_km": 50.0, "min_cluster_size": 20, "min_samples": 5, "min_size": 20, "progress": False}
TOWNS = np.array([[30.0, 70.0], [30.0, 71.5], [31.5, 70.5]])


def towns(n=60, spread_deg=0.05, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(town, spread_deg, (n, 2)) for town in TOWNS])


def evenly(n=400, seed=0):
    """Over some 400 x 400 km: no density cluster."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(28, 32, n), rng.uniform(68, 72, n)], 1)


def build(points, region=None, **options):
    region = np.zeros(len(points), np.int64) if region is None else region
    return build_cells(points, region, **(OPTIONS | options))


def held(cells, points, region=None):
    region = np.zeros(len(points), np.int64) if region is None else region
    return np.bincount(cells.assign(points, region), minlength=len(cells))


def distance_km(a, b):
    (lat_a, lon_a), (lat_b, lon_b) = np.radians(a).T, np.radians(b).T
    h = np.sin((lat_a - lat_b) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_a - lon_b) / 2) ** 2
    return 2 * 6371.0088 * np.arcsin(np.sqrt(h))


def test_density_clusters_become_cells():
    cells = build(towns())
    assert len(cells) == 3
    assert sorted(distance_km(c[None], TOWNS).min() < 3 for c in cells.centre_deg) == [True] * 3
    assert len({int(distance_km(c[None], TOWNS).argmin()) for c in cells.centre_deg}) == 3
    assert cells.radius_km.max() < 20


@pytest.mark.parametrize("points", [towns(), evenly()], ids=["towns", "evenly"])
def test_the_result_is_deterministic_and_independent_of_the_order_of_rows(points):
    first = build(points).as_dict()
    assert build(points).as_dict() == first
    order = np.random.default_rng(1).permutation(len(points))
    assert build(points[order]).as_dict() == first


def test_every_cell_holds_min_size_whatever_the_points():
    rng = np.random.default_rng(2)
    for seed in range(2):
        noise = rng.uniform([26, 66], [34, 76], (60, 2))
        points = np.concatenate([towns(int(rng.integers(25, 80)), seed=seed), noise])
        cells = build(points, max_radius_km=float(rng.uniform(20, 100)))
        assert len(cells) > 1
        assert held(cells, points).min() >= OPTIONS["min_size"]


def test_data_without_density_clusters_are_split_down_to_the_limit():
    points = evenly(1000)
    cells = build(points, max_radius_km=100.0)
    assert 8 < len(cells) < 50
    assert held(cells, points).min() >= 20
    assert cells.radius_km.max() < 110  # merging may widen a cell a little
    assert len(build(points, max_radius_km=1000.0)) < len(cells)


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("base", [towns(), evenly(300)], ids=["towns", "evenly"])
def test_far_points_inflate_no_radius_and_stop_no_split(base, many):
    far = np.array([[44.0, 70.0]]) + np.random.default_rng(0).normal(0, 0.01, (many, 2))
    assert distance_km(far[:1], base).min() > 1300
    cells, plain = build(np.concatenate([base, far]), max_radius_km=110.0), build(base, max_radius_km=110.0)
    assert cells.radius_km.max() < 115
    assert abs(len(cells) - len(plain)) <= 2
    assert distance_km(cells.centre_deg, np.repeat(far[:1], len(cells), 0)).min() > 1000  # no centre is drawn away


def test_one_far_point_inflates_no_radius_of_a_very_small_cell():
    rng = np.random.default_rng(0)
    for n in (3, 5, 10, 15, 19):
        points = np.concatenate([rng.normal([30, 70], 0.05, (n, 2)), [[44.0, 70.0]]])
        assert build(points).radius_km.max() < 30


def test_regions_are_built_apart_and_a_region_with_one_row_is_one_cell():
    points = np.concatenate([towns(), [[10.0, 10.0]], towns(seed=1) + np.array([5, 0])])
    region = np.repeat([0, 1, 2], [180, 1, 180])
    cells = build(points, region)
    assert np.bincount(cells.region).tolist() == [3, 1, 3]
    lonely = np.flatnonzero(cells.region == 1)[0]
    assert cells.centre_deg[lonely] == pytest.approx([10.0, 10.0])
    assert 0 < cells.radius_km[lonely] < 1
    assert np.array_equal(cells.cell_id, np.arange(7)) and (np.diff(cells.region) >= 0).all()
    alone = build(points[:180])
    assert np.array_equal(cells.centre_deg[:3], alone.centre_deg)


def test_each_region_has_its_own_limit():
    points = np.concatenate([evenly(), evenly()])
    region = np.repeat([0, 1], 400)
    cells = build(points, region, max_radius_km={0: 80.0, 1: 1000.0})
    narrow, wide = (cells.radius_km[cells.region == r] for r in (0, 1))
    assert narrow.max() < 90 < wide.max()
    assert len(wide) < len(narrow) / 2


def test_identical_points_make_a_cell_with_room_for_an_offset():
    cells = build(np.tile([[30.0, 70.0]], (200, 1)))
    assert len(cells) == 1 and cells.radius_km[0] > 0
    assert cells.centre_deg[0] == pytest.approx([30.0, 70.0])


def test_a_town_on_the_date_line_is_one_cell():
    points = towns()
    points[:, 1] = (points[:, 1] - 70 + 180 + 180) % 360 - 180  # the first town lies on the line
    assert points[:60, 1].min() < -179 and points[:60, 1].max() > 179
    cells = build(points)
    assert len(cells) == 3 and cells.radius_km.max() < 20
    assert distance_km(cells.centre_deg, np.tile([[30.0, 180.0]], (3, 1))).min() < 3


def test_neighbours_are_the_nearest_cells_of_the_region():
    points = np.concatenate([evenly(1000), evenly(300) + np.array([8, 0])])
    region = np.repeat([0, 1], [1000, 300])
    cells = build(points, region, max_radius_km=70.0)
    assert np.bincount(cells.region).min() > 2
    for i, near in enumerate(cells.neighbours):
        same = np.flatnonzero((cells.region == cells.region[i]) & (np.arange(len(cells)) != i))
        gap = distance_km(np.repeat(cells.centre_deg[i : i + 1], len(same), 0), cells.centre_deg[same])
        assert near == same[np.argsort(gap)][:8].tolist()


def test_a_large_region_is_fitted_on_a_subsample():
    points = towns(200)
    cells = build(points, max_fit_rows=200)
    assert len(cells) == 3
    assert held(cells, points).min() >= 60
