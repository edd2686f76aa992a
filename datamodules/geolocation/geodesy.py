"""Distances and means on the sphere. Degrees in, kilometres out; float32 is enough for all of it."""

import torch
from torch import Tensor

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG
KM_PER_DEGREE = 111.0  # the recipe's figure for a degree of latitude


def haversine_km(a_deg: Tensor, b_deg: Tensor) -> Tensor:
    """Great-circle distance by the haversine formula (R. W. Sinnott, Sky and Telescope 68, 1984).

    Args:
        a_deg: (..., 2) latitude, longitude in degrees.
        b_deg: broadcastable to ``a_deg``.

    Returns:
        (...) distance in kilometres. Its gradient is finite everywhere and 0 at distance 0.

    >>> round(haversine_km(torch.tensor([24.86, 67.01]), torch.tensor([33.68, 73.05])).item())
    1142
    """
    half = torch.deg2rad(b_deg - a_deg) / 2
    cosines = torch.cos(torch.deg2rad(a_deg[..., 0])) * torch.cos(torch.deg2rad(b_deg[..., 0]))
    h = torch.sin(half[..., 0]) ** 2 + cosines * torch.sin(half[..., 1]) ** 2
    # sqrt and asin have infinite slopes at 0 and 1: the branch not taken must be finite too, or NaN leaks back.
    # A predicted latitude beyond a pole has a negative cosine, and rounding then leaves h just below 0.
    same = h <= 0
    root = torch.where(same, torch.ones_like(h), h).sqrt().clamp(max=1 - 1e-7)
    return torch.where(same, torch.zeros_like(h), 2 * EARTH_RADIUS_KM * torch.asin(root))


def unit_vector(lat_lon_deg: Tensor) -> Tensor:
    """(..., 2) degrees -> (..., 3) points on the unit sphere."""
    lat, lon = torch.deg2rad(lat_lon_deg).unbind(-1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)


def from_vector(vector: Tensor) -> Tensor:
    """(..., 3) vectors of any length -> (..., 2) latitude, longitude in degrees.

    >>> [round(x, 3) for x in from_vector(2 * unit_vector(torch.tensor([30.0, 70.0]))).tolist()]
    [30.0, 70.0]
    """
    lat = torch.atan2(vector[..., 2], vector[..., :2].norm(dim=-1))
    return torch.rad2deg(torch.stack([lat, torch.atan2(vector[..., 1], vector[..., 0])], -1))


def wrap_longitude(lat_lon_deg: Tensor) -> Tensor:
    """Brings latitudes into [-90, 90] and longitudes into [-180, 180)."""
    lat, lon = lat_lon_deg.unbind(-1)
    turned = torch.remainder(lon + 180, 360)  # rounds up to 360 just below a full turn
    return torch.stack([lat.clamp(-90, 90), torch.where(turned < 360, turned, 0) - 180], -1)


def spherical_mean(points_deg: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean on the sphere, safe across the date line.

    Args:
        points_deg: (..., K, 2) degrees.
        weights: (..., K), any positive scale.

    Returns:
        (..., 2) degrees.

    >>> spherical_mean(torch.tensor([[0.0, 179.0], [0.0, -179.0]]), torch.ones(2)).abs().round().tolist()
    [0.0, 180.0]
    """
    return from_vector((weights.unsqueeze(-1) * unit_vector(points_deg)).sum(-2))


def geometric_median(points_deg: Tensor, weights: Tensor, iterations: int = 30) -> Tensor:
    """Weighted geometric median by Weiszfeld's iteration (1937), started at the spherical mean.

    Args:
        points_deg: (..., K, 2) degrees.
        weights: (..., K).
        iterations: fixed number of steps, so that the result is deterministic.

    Returns:
        (..., 2) degrees. With one dominant weight this is that point; it never lies far between two clusters.
    """
    median = spherical_mean(points_deg, weights)
    for _ in range(iterations):
        distance_km = haversine_km(points_deg, median.unsqueeze(-2)).clamp(min=1e-3)
        median = spherical_mean(points_deg, weights / distance_km)
    return median
