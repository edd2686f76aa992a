"""The four losses. Pure functions; degrees and kilometres in, one number out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...datamodules.errors import StagewiseError
from ...datamodules.geolocation.geocells import N_NEIGHBOURS, CellTable, sphere_points
from ...datamodules.geolocation.geodesy import EARTH_RADIUS_KM, haversine_km

LOSSES = ("province", "cell", "offset", "aux")


def effective_number_weights(counts: list[int], beta: float = 0.9995) -> Tensor:
    """Class weights ``(1 - b) / (1 - b^n)`` divided by their mean (Cui et al., CVPR 2019).

    Args:
        counts: train rows of each class; a class without rows gets the weight of one row.
        beta: closer to 1 weighs rare classes more.

    Returns:
        (K,) with mean 1.

    >>> w = effective_number_weights([10_000, 100])
    >>> bool(w[1] > w[0]), round(w.mean().item(), 4)
    (True, 1.0)
    """
    n = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    weight = (1 - beta) / (1 - beta**n)
    return (weight / weight.mean()).float()


def _centre_distances_km(cells: CellTable) -> NDArray[np.float64]:
    points = sphere_points(cells.centre_deg)
    chord = np.sqrt(np.maximum(2 - 2 * points @ points.T, 0))
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chord / 2, 0, 1))


def soft_label_table(cells: CellTable, tau_km: str | float, region_tau_km: list[float | None]) -> Tensor:
    """Distance-aware labels: ``q_i ~ exp(-d(true, i) / tau)`` over the true cell and its 8 nearest of the region.

    Args:
        cells: C cells.
        tau_km: ``"auto"`` takes half the distance from the true cell to its nearest neighbour, so that the true cell
            keeps most of the mass; ``"region"`` takes ``region_tau_km``; a number holds for all.
        region_tau_km: of each region, kilometres.

    Returns:
        (C, C_max) float32; row c over the cells of c's region in table order; rows sum to 1.

    Raises:
        StagewiseError: an unknown word, a tau that is not positive, or no tau for a region.
    """
    if isinstance(tau_km, str) and tau_km not in ("auto", "region"):
        raise StagewiseError(f"losses.tau_km must be 'auto', 'region' or kilometres, got '{tau_km}'.")
    distance = _centre_distances_km(cells)
    most = int(np.bincount(cells.region).max())
    table = np.zeros((len(cells), most))
    for c, region in enumerate(cells.region):
        members = np.flatnonzero(cells.region == region)
        near = members[np.argsort(distance[c, members], kind="stable")[: N_NEIGHBOURS + 1]]
        tau = tau_km if not isinstance(tau_km, str) else region_tau_km[region]
        if tau_km == "auto":
            tau = max(0.5 * distance[c, near[1]], 1e-3) if len(near) > 1 else 1.0
        if tau is None or float(tau) <= 0:
            raise StagewiseError(f"losses.tau_km: region {region} needs a positive tau_km, got {tau}.")
        mass = np.exp(-distance[c, near] / float(tau))
        table[c, near - members[0]] = mass / mass.sum()
    return torch.from_numpy(table).float()


def cell_loss(cell_logits: Tensor, region: Tensor, cell: Tensor, soft_labels: Tensor) -> Tensor:
    """KL(q || p) of the true region's cells, mean over the batch.

    Args:
        cell_logits: (B, R, C_max).
        region: (B,).
        cell: (B,) positions in the cell table.
        soft_labels: (C, C_max) of :func:`soft_label_table`.
    """
    own = cell_logits[torch.arange(len(region), device=region.device), region]
    return F.kl_div(own.log_softmax(-1), soft_labels[cell], reduction="batchmean")


def scaled_km(distance_km: Tensor, shape: str = "log1p", scale_km: float = 25.0) -> Tensor:
    """Brings kilometres to the size of the other losses.

    Args:
        distance_km: any shape.
        shape: ``linear`` (d / s), ``huber`` (quadratic below s) or ``log1p`` (far misses count little more).
        scale_km: the characteristic length s.

    >>> scaled_km(torch.tensor([0.0, 25.0]), "linear").tolist()
    [0.0, 1.0]
    """
    x = distance_km / scale_km
    if shape == "linear":
        return x
    if shape == "huber":
        return F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none")
    if shape == "log1p":
        return torch.log1p(x)
    raise StagewiseError(f"losses.km.shape must be linear, huber or log1p, got '{shape}'.")


def place_loss(places_deg: Tensor, truth_deg: Tensor, weight: Tensor | None = None, **km: Any) -> Tensor:
    """Scaled great-circle distance, weighted mean over the batch.

    Args:
        places_deg: (B, 2).
        truth_deg: (B, 2).
        weight: (B,) or None.
        km: of :func:`scaled_km`.
    """
    loss = scaled_km(haversine_km(places_deg, truth_deg), **km)
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum()
