"""End-to-end figures of geolocation, from a table of predictions."""

import re
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from ...datamodules.geolocation.geodesy import haversine_km
from .decoding import RULES, answer_of, combine, expected_spread_km

WITHIN_KM = (1, 5, 25, 50, 100, 200, 750)
LADDER = ("oracle_cell", "oracle_province", "centre_only", "aux")
CALIBRATION_BINS = 15


def slug(name: str) -> str:
    """A region's name as part of a metric's name.

    >>> slug("Khyber Pakhtunkhwa")
    'khyber_pakhtunkhwa'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def error_scores(error_km: Tensor) -> dict[str, float]:
    """Median, mean and 90th percentile of errors in km."""
    median, p90 = torch.quantile(error_km.double(), torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
    return {"median_km": median, "mean_km": error_km.double().mean().item(), "p90_km": p90}


def region_scores(predicted: Tensor, truth: Tensor, names: list[str]) -> dict[str, float]:
    """Top-1, macro and per-region accuracy; a region without rows has no entry."""
    right = (predicted == truth).double()
    per = {name: right[truth == r].mean().item() for r, name in enumerate(names) if (truth == r).any()}
    scores = {"province_accuracy": right.mean().item(), "province_macro_accuracy": sum(per.values()) / len(per)}
    return scores | {f"accuracy/{slug(name)}": value for name, value in per.items()}


def end_to_end_scores(rows: dict[str, Tensor], names: list[str], calibration: dict[str, Any]) -> dict[str, float]:
    """Everything that an evaluation reports.

    Args:
        rows: of the evaluation: ``truth_deg`` (N, 2), ``label``, ``region_logits`` (N, R), ``log_p`` (N, K),
            ``place_deg`` (N, K, 2), ``hypothesis_region`` (N, K), ``cell_rank`` (N,), a place for each of ``LADDER``.
        names: of the regions.
        calibration: ``rule``, ``temperature``, ``radius_factor``, ``radius_base_km``.

    Returns:
        Name without the split's prefix -> number.
    """
    truth, label = rows["truth_deg"], rows["label"]
    place = combine(rows, calibration["rule"])
    error = haversine_km(place, truth)
    scores = error_scores(error) | {f"within_{km}_km": (error <= km).double().mean().item() for km in WITHIN_KM}
    answer = answer_of(rows["log_p"], rows["hypothesis_region"]).unsqueeze(1)
    scores |= region_scores(rows["hypothesis_region"].gather(1, answer).squeeze(1), label, names)
    scores["head_province_accuracy"] = (rows["region_logits"].argmax(-1) == label).double().mean().item()
    scores |= {f"cell_top{k}_accuracy": (rows["cell_rank"] < k).double().mean().item() for k in (1, 5)}
    for rung in LADDER:
        found = error_scores(haversine_km(rows[rung], truth))
        scores |= {f"{rung}_{key}": found[key] for key in ("median_km", "mean_km")}
    for rule in RULES:
        scores[f"{rule}_median_km"] = error_scores(haversine_km(combine(rows, rule), truth))["median_km"]
    for r, name in enumerate(names):
        if (label == r).any():
            scores[f"median_km/{slug(name)}"] = error_scores(error[label == r])["median_km"]
    scores |= calibration_scores(rows, place, error, calibration)
    return scores | {"rows": float(len(truth))}


def calibration_scores(
    rows: dict[str, Tensor], place: Tensor, error: Tensor, calibration: dict[str, Any]
) -> dict[str, float]:
    """ECE of the region probabilities before and after the temperature; coverage of the 90 % radius."""
    scores = {}
    for name, temperature in (("ece_raw", 1.0), ("ece", calibration["temperature"])):
        p = (rows["region_logits"].float() / temperature).softmax(-1)
        scores[name] = multiclass_calibration_error(p, rows["label"], p.shape[1], n_bins=CALIBRATION_BINS).item()
    radius = radius_km(rows, place, calibration)
    scores["radius_90_coverage"] = (error <= radius).double().mean().item()
    scores["radius_90_median_km"] = radius.median().item()
    return scores


def radius_km(rows: dict[str, Tensor], place: Tensor, calibration: dict[str, Any]) -> Tensor:
    """(N,) radius meant to hold the truth 90 % of the time (split conformal, scaled by the hypotheses' spread)."""
    spread = expected_spread_km(rows["place_deg"], rows["log_p"], place)
    return calibration["radius_factor"] * (spread + calibration["radius_base_km"])


NO_CALIBRATION = {"rule": "best", "temperature": 1.0, "radius_factor": 1.0, "radius_base_km": 1.0}


def calibrate(rows: dict[str, Tensor], rule: str) -> dict[str, Any]:
    """Fits on val what only val may decide: the decoding rule, the temperature, the radius.

    Args:
        rows: of a validation.
        rule: a rule, or ``auto`` for the one with the lowest median.

    Returns:
        ``rule``, ``temperature``, ``radius_factor``, ``radius_base_km``.
    """
    places = {r: combine(rows, r) for r in (RULES if rule == "auto" else (rule,))}
    errors = {r: haversine_km(p, rows["truth_deg"]) for r, p in places.items()}
    best = min(errors, key=lambda r: error_scores(errors[r])["median_km"])
    base = max(error_scores(errors[best])["median_km"], 0.1)
    ratio = errors[best] / (expected_spread_km(rows["place_deg"], rows["log_p"], places[best]) + base)
    level = min(1.0, 0.9 * (1 + 1 / len(ratio)))  # the finite-sample correction of split conformal prediction
    factor = torch.quantile(ratio.double(), level).item()
    return {
        "rule": best,
        "temperature": fit_temperature(rows["region_logits"], rows["label"]),
        "radius_factor": factor,
        "radius_base_km": base,
    }


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., ICML 2017).

    >>> logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    >>> fit_temperature(logits, torch.tensor([0, 0, 1, 1])) > 2
    True
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / torch.tensor(log_temperature).exp(), label))

    return float(torch.tensor(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x).exp())
