"""From logits to a place: hypotheses, their probabilities, and one point."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...datamodules.geolocation.geodesy import geometric_median, haversine_km, spherical_mean
from .heads import NO_CELL_LOGIT
from .network import GeolocationNetwork
from .retrieval import ReferenceBank

RULES = ("best", "geometric_median", "mean")


def hypotheses(
    network: GeolocationNetwork, out: dict[str, Tensor], regions: int = 2, cells: int = 5
) -> dict[str, Tensor]:
    """The likeliest cells of the likeliest regions, each with its place.

    Args:
        network: that made ``out``.
        out: of its forward.
        regions: how many regions to follow.
        cells: how many cells of each; fewer where a region has fewer.

    Returns:
        ``cell`` (B, K), ``log_p`` (B, K) = log P(region) P(cell | region), ``place_deg`` (B, K, 2), best first.
        K = regions * cells; padding has ``log_p`` near -1e4. The listed cells of a region share all of its probability:
        otherwise a region of 450 cells would lose against one of 13 by the cells that are not listed.
    """
    n_regions = out["region_logits"].shape[1]
    log_region, region = out["region_logits"].log_softmax(-1).topk(min(regions, n_regions))
    per_cell = out["cell_logits"].log_softmax(-1)
    own = per_cell.gather(1, region.unsqueeze(-1).expand(-1, -1, per_cell.shape[-1]))
    log_cell, slot = own.topk(min(cells, own.shape[-1]), -1)
    cell = network.cell_at[region.unsqueeze(-1), slot].flatten(1)
    log_cell = log_cell.log_softmax(-1)
    log_p = (log_region.unsqueeze(-1) + log_cell).flatten(1).masked_fill(cell < 0, NO_CELL_LOGIT)
    log_p, order = log_p.sort(-1, descending=True)
    cell = cell.gather(1, order)
    cell = torch.where(cell < 0, cell[:, :1], cell)  # padding repeats the likeliest cell, at no probability
    place = network.locate(out["embedding"].unsqueeze(1).expand(-1, cell.shape[1], -1), cell)
    return {"cell": cell, "log_p": log_p, "place_deg": place}


def answer_of(log_p: Tensor, region: Tensor) -> Tensor:
    """The likeliest hypothesis of the likeliest region.

    Args:
        log_p: (B, K).
        region: (B, K) of each hypothesis.

    Returns:
        (B,) positions among the K.

    >>> two_against_one = torch.tensor([[0.4, 0.35, 0.25]]).log()
    >>> answer_of(two_against_one, torch.tensor([[0, 1, 1]])).item()
    1
    """
    same = region.unsqueeze(1) == region.unsqueeze(2)
    mass = log_p.unsqueeze(1).masked_fill(~same, -torch.inf).logsumexp(-1)
    likeliest = region.gather(1, mass.argmax(-1, keepdim=True))
    return log_p.masked_fill(region != likeliest, -torch.inf).argmax(-1)


def combine(rows: Mapping[str, Tensor], rule: str) -> Tensor:
    """One point from hypotheses.

    Args:
        rows: ``place_deg`` (B, K, 2), ``log_p`` and ``hypothesis_region`` (B, K).
        rule: ``best`` (:func:`answer_of`), ``mean`` (lies in neither of two cities) or ``geometric_median``.

    Returns:
        (B, 2) degrees.
    """
    place_deg, log_p = rows["place_deg"], rows["log_p"]
    if rule == "best":
        best = answer_of(log_p, rows["hypothesis_region"])
        return place_deg[torch.arange(len(best), device=best.device), best]
    weights = log_p.softmax(-1)
    return spherical_mean(place_deg, weights) if rule == "mean" else geometric_median(place_deg, weights)


def expected_spread_km(place_deg: Tensor, log_p: Tensor, centre_deg: Tensor) -> Tensor:
    """(B,) mean distance of the hypotheses from the chosen point, weighted by probability."""
    return (haversine_km(place_deg, centre_deg.unsqueeze(1)) * log_p.softmax(-1)).sum(-1)


def prediction_rows(
    network: GeolocationNetwork,
    out: dict[str, Tensor],
    bank: ReferenceBank | None,
    regions: int = 2,
    cells: int = 5,
    retrieval: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """What an evaluation or a prediction keeps of a forward pass, without the truth.

    Args:
        network: that made ``out``.
        out: of its forward.
        bank: train pictures to refine with; None leaves the hypotheses as they are.
        regions: of :func:`hypotheses`.
        cells: of :func:`hypotheses`.
        retrieval: arguments of :meth:`ReferenceBank.refine`.
    """
    found = hypotheses(network, out, regions, cells)
    centre = network.cell_centre_deg[found["cell"][:, 0]]
    if bank is not None:
        found = bank.refine(out["embedding"], found, network.cell_radius_km[found["cell"]], **(retrieval or {}))
    return {
        "region_logits": out["region_logits"].float(),
        "log_p": found["log_p"].float(),
        "place_deg": found["place_deg"].float(),
        "hypothesis_cell": found["cell"],
        "hypothesis_region": network.cell_region[found["cell"]],
        "centre_only": centre,
        "aux": out["aux_deg"].float(),
    }


def truth_rows(network: GeolocationNetwork, batch: dict[str, Tensor], out: dict[str, Tensor]) -> dict[str, Tensor]:
    """The truth, and the rungs of the ladder that are told a part of it."""
    region, cell = batch["label"], batch["cell"]
    rows = torch.arange(len(cell), device=cell.device)
    in_region = out["cell_logits"][rows, region].argmax(-1)
    joint = out["region_logits"].log_softmax(-1).unsqueeze(-1) + out["cell_logits"].log_softmax(-1)
    own = joint[rows, region, network.cell_slot[cell]]
    return {
        "truth_deg": batch["lat_lon_deg"],
        "label": region,
        "cell_rank": (joint.flatten(1) > own.unsqueeze(1)).sum(1),
        "oracle_cell": network.locate(out["embedding"], cell).float(),
        "oracle_province": network.locate(out["embedding"], network.cell_at[region, in_region]).float(),
    }
