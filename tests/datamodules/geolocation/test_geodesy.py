import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from stagewise.datamodules.geolocation.geodesy import (
    EARTH_RADIUS_KM,
    from_vector,
    geometric_median,
    haversine_km,
    spherical_mean,
    unit_vector,
    wrap_longitude,
)

KARACHI, LONDON, NEW_YORK = (24.86, 67.01), (51.5074, -0.1278), (40.7128, -74.0060)


def random_places(n, seed=0):
    """Even over the sphere, float64."""
    rng = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    return torch.from_numpy(np.stack([lat, rng.uniform(-180, 180, n)], 1))


def dot_product_km(a, b):
    """Independent reference in float64: the angle between unit vectors by atan2, exact for near and far."""
    (lat_a, lon_a), (lat_b, lon_b) = np.radians(a.double().numpy()).T, np.radians(b.double().numpy()).T
    u = np.stack([np.cos(lat_a) * np.cos(lon_a), np.cos(lat_a) * np.sin(lon_a), np.sin(lat_a)], 1)
    v = np.stack([np.cos(lat_b) * np.cos(lon_b), np.cos(lat_b) * np.sin(lon_b), np.sin(lat_b)], 1)
    return EARTH_RADIUS_KM * np.arctan2(np.linalg.norm(np.cross(u, v), axis=1), (u * v).sum(1))


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        (LONDON, NEW_YORK, 5570.2),
        (KARACHI, (33.68, 73.05), 1142.0),
        ((0, 0), (0, 90), math.pi / 2 * EARTH_RADIUS_KM),
        ((90, 0), (-90, 77), math.pi * EARTH_RADIUS_KM),
        ((0, 179.5), (0, -179.5), math.radians(1) * EARTH_RADIUS_KM),
        ((90, 10), (90, -120), 0.0),
    ],
)
def test_known_distances(a, b, km):
    pair = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert haversine_km(*pair).item() == pytest.approx(km, rel=5e-4, abs=1e-3)


def test_haversine_agrees_with_vectors_on_random_pairs():
    a, b = random_places(5000), random_places(5000, 1)
    expected = dot_product_km(a, b)
    assert np.allclose(haversine_km(a, b).numpy(), expected, rtol=1e-9)
    single = haversine_km(a.float(), b.float()).numpy()
    far = expected < 19_900  # near the antipodes float32 resolves a few km only
    assert np.abs(single - expected)[far].max() < 0.5
    assert np.abs(single - expected).max() < 10


def test_haversine_resolves_metres_in_float32():
    a = random_places(2000).clamp(-89, 89).float()
    b = a + torch.from_numpy(np.random.default_rng(2).uniform(-0.01, 0.01, (2000, 2))).float()
    assert np.abs(haversine_km(a, b).numpy() - dot_product_km(a, b)).max() < 1e-3


def test_haversine_is_a_metric():
    a, b, c = (random_places(500, seed) for seed in range(3))
    assert torch.allclose(haversine_km(a, b), haversine_km(b, a))
    assert (haversine_km(a, c) <= haversine_km(a, b) + haversine_km(b, c) + 1e-6).all()
    assert torch.equal(haversine_km(a, a), torch.zeros(500, dtype=torch.float64))


def test_haversine_broadcasts():
    a, b = random_places(4), random_places(7)
    table = haversine_km(a[:, None], b[None])
    assert table.shape == (4, 7)
    assert torch.allclose(table[2, 5], haversine_km(a[2], b[5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_zero_at_distance_zero(dtype):
    places = random_places(200).to(dtype).requires_grad_()
    haversine_km(places, places.detach()).sum().backward()
    assert torch.equal(places.grad, torch.zeros_like(places))


def test_value_and_gradient_are_finite_where_the_formula_is_not():
    here = random_places(4000).float()
    antipode = torch.stack([-here[:, 0], here[:, 1] + 180], 1)
    over_the_pole = torch.stack([180 - here[:, 0], here[:, 1] + 180], 1)  # the same place written beyond 90 degrees
    tiny = here + 1e-5 * torch.randn(here.shape, generator=torch.Generator().manual_seed(0))
    poles = torch.tensor([[90.0, 0.0], [-90.0, 0.0]]).repeat(2000, 1)
    for there in (antipode, antipode + 1e-4, over_the_pole, over_the_pole + 1e-5, tiny, poles, here.flip(0)):
        moving = here.clone().requires_grad_()
        distance = haversine_km(moving, there)
        distance.sum().backward()
        assert distance.isfinite().all() and moving.grad.isfinite().all()
        assert distance.min() >= 0 and distance.max() <= math.pi * EARTH_RADIUS_KM + 1e-2


def test_gradient_points_away_at_the_speed_of_a_degree():
    here = torch.tensor([30.0, 70.0], requires_grad=True)
    haversine_km(here, torch.tensor([29.0, 70.0])).backward()
    assert here.grad[0].item() == pytest.approx(math.radians(1) * EARTH_RADIUS_KM, rel=1e-4)
    assert here.grad[1].item() == pytest.approx(0, abs=1e-3)


def test_vectors_round_trip_at_any_length():
    places = random_places(1000)
    assert torch.allclose(unit_vector(places).norm(dim=-1), torch.ones(1000, dtype=torch.float64))
    assert haversine_km(from_vector(3.7 * unit_vector(places)), places).max() < 1e-6


def test_wrap_longitude_gives_the_same_place_within_bounds():
    places = random_places(2000)
    turns = torch.from_numpy(np.random.default_rng(3).integers(-2, 3, 2000))
    moved = torch.stack([places[:, 0], places[:, 1] + 360 * turns], 1)
    assert haversine_km(wrap_longitude(moved), places).max() < 1e-6
    edge = torch.tensor([-180.000015, -180.0, 180.0, 540.0, 179.99998, -1e-6, -179.99998])
    wrapped = wrap_longitude(torch.stack([torch.linspace(-95, 95, 7), edge], 1))
    assert (wrapped[:, 1] >= -180).all() and (wrapped[:, 1] < 180).all()
    assert wrapped[:, 0].abs().max() == 90


def test_spherical_mean_crosses_the_date_line_and_the_pole():
    def mean(*points):
        return spherical_mean(torch.tensor(points), torch.ones(len(points)))

    fiji = mean([-17.0, 178.0], [-17.0, -178.0])
    assert haversine_km(fiji, torch.tensor([-17.0, 180.0])) < 5
    assert mean([80.0, 0.0], [80.0, 180.0])[0].item() == pytest.approx(90, abs=1e-3)


def test_spherical_mean_follows_the_weights_and_not_their_scale():
    points = random_places(5)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    assert torch.allclose(spherical_mean(points, weights), spherical_mean(points, 9 * weights))
    repeated = points[[0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]]
    expected = spherical_mean(repeated, torch.ones(15, dtype=torch.float64))
    assert torch.allclose(spherical_mean(points, weights), expected)


@pytest.mark.parametrize("seed", range(4))
def test_geometric_median_minimises_the_weighted_distance(seed):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.normal([30, 70], [2, 3], (7, 2)))
    weights = torch.from_numpy(rng.uniform(0.5, 1.5, 7))

    def cost(place):
        return float((weights * haversine_km(points, torch.as_tensor(place))).sum())

    best = min((minimize(cost, start, method="Nelder-Mead") for start in points.numpy()), key=lambda r: r.fun)
    assert cost(geometric_median(points, weights, 100)) <= best.fun * (1 + 1e-4)
    assert cost(geometric_median(points, weights)) <= best.fun * (1 + 2e-3)


def test_geometric_median_ignores_one_far_point_and_obeys_a_dominant_weight():
    points = torch.tensor([[30.0, 179.9], [30.1, -179.9], [30.0, 180.0], [-40.0, 20.0]])
    assert haversine_km(geometric_median(points, torch.ones(4)), points[2]) < 30
    dominant = geometric_median(points, torch.tensor([0.1, 0.1, 0.1, 5.0]))
    assert haversine_km(dominant, points[3]) < 1


def test_geometric_median_is_batched():
    points, weights = random_places(12).reshape(3, 4, 2), torch.ones(3, 4, dtype=torch.float64)
    together = geometric_median(points, weights)
    assert together.shape == (3, 2)
    assert torch.allclose(together[1], geometric_median(points[1], weights[1]))
