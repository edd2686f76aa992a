"""The whole list of an evaluation: end to end, the ladder of oracles, baselines, provinces, calibration."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ...datamodules.geolocation.geodesy import haversine_km
from . import scores
from .figures import draw_predictions

if TYPE_CHECKING:
    from .module import GeolocationModule

log = logging.getLogger(__name__)
_HISTOGRAM_BINS = 8


def evaluate(
    module: "GeolocationModule", datamodule: Any, trainer: L.Trainer, split: str, folder: str, histogram: bool = False
) -> dict[str, float]:
    """Evaluates a split and draws its map.

    Args:
        module: loaded from a checkpoint.
        datamodule: its data; adopts the checkpoint's regions and cells.
        trainer: that runs the test loop.
        split: name of the CSV.
        folder: for ``map.png``.
        histogram: adds a random forest on colour histograms, the check that regions are not told by colour alone.

    Returns:
        Logged name -> number, such as ``test/median_km``.
    """
    datamodule.geography, datamodule.test_split, module.eval_prefix = module.geography, split, split
    trainer.test(module, datamodule=datamodule, verbose=False)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    rows = module.evaluated
    metrics |= _named(split, "majority", majority_baseline(module.geography, rows))
    metrics |= _named(split, "nearest", nearest_baseline(module, datamodule, split))
    if histogram:
        metrics |= {f"{split}/baseline_histogram_{k}": v for k, v in histogram_baseline(datamodule, split).items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    draw_predictions(rows, module.geography, module.calibration["rule"], Path(folder) / "map.png", f"{split} split")
    return metrics


def _named(split: str, baseline: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{split}/baseline_{baseline}_{k}": v for k, v in values.items()}


def majority_baseline(geography: dict[str, Any], rows: dict[str, Tensor]) -> dict[str, float]:
    """Answers the centroid of the most frequent train region to everything."""
    majority = max(range(len(geography["count"])), key=geography["count"].__getitem__)
    place = torch.tensor(geography["region_centroid_deg"][majority])
    found = scores.error_scores(haversine_km(place.expand_as(rows["truth_deg"]), rows["truth_deg"]))
    return found | {"province_accuracy": (rows["label"] == majority).double().mean().item()}


@torch.no_grad()
def _features(module: "GeolocationModule", datamodule: Any, loader: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder features, each of unit length, side by side; places; regions."""
    parts = []
    for batch in tqdm(loader, desc="features for the baseline", leave=False):
        batch = datamodule.on_after_batch_transfer({k: v.to(module.device) for k, v in batch.items()}, 0)
        found = module.network.encode(batch)
        joined = torch.cat([F.normalize(found[f"{n}_features"].float(), dim=-1) for n in ("clip", "scene")], -1)
        parts.append((joined.cpu(), batch["lat_lon_deg"].cpu(), batch["label"].cpu()))
    features, place, region = zip(*parts)
    return torch.cat(features), torch.cat(place), torch.cat(region)


def nearest_baseline(module: "GeolocationModule", datamodule: Any, split: str) -> dict[str, float]:
    """Answers the place of the train picture with the most similar encoder features."""
    module.eval()
    train, train_place, train_region = _features(module, datamodule, datamodule.reference_dataloader())
    query, truth, region = _features(module, datamodule, datamodule.split_dataloader(split))
    centre = train.mean(0)
    train, query = F.normalize(train - centre, dim=-1), F.normalize(query - centre, dim=-1)
    nearest = torch.cat([(chunk @ train.T).argmax(-1) for chunk in query.split(1024)])
    found = scores.error_scores(haversine_km(train_place[nearest], truth))
    return found | {"province_accuracy": (train_region[nearest] == region).double().mean().item()}


def _histograms(datamodule: Any, split: str) -> tuple[Tensor, Tensor]:
    """(N, 512) shares of an 8 x 8 x 8 colour histogram, and regions."""
    parts, labels = [], []
    for batch in datamodule.split_dataloader(split):
        code = (batch["image"].long() * _HISTOGRAM_BINS // 256).flatten(2)
        code = (code[:, 0] * _HISTOGRAM_BINS + code[:, 1]) * _HISTOGRAM_BINS + code[:, 2]
        share = torch.full(code.shape, 1 / code.shape[1])
        parts.append(torch.zeros(len(code), _HISTOGRAM_BINS**3).scatter_add_(1, code, share))
        labels.append(batch["label"])
    return torch.cat(parts), torch.cat(labels)


def histogram_baseline(datamodule: Any, split: str) -> dict[str, float]:
    """Region accuracy of a class-balanced random forest on colour histograms."""
    from sklearn.ensemble import RandomForestClassifier

    (x, y), (query, truth) = _histograms(datamodule, "train"), _histograms(datamodule, split)
    forest = RandomForestClassifier(200, class_weight="balanced", random_state=0, n_jobs=-1).fit(x.numpy(), y.numpy())
    found = scores.region_scores(torch.from_numpy(forest.predict(query.numpy())), truth, datamodule.splits.region_names)
    return {k: found[k] for k in ("province_accuracy", "province_macro_accuracy")}


def as_text(metrics: dict[str, float], split: str, names: list[str]) -> str:
    """The report as a person reads it."""
    get = {k.removeprefix(f"{split}/"): v for k, v in metrics.items() if k.startswith(f"{split}/")}

    def line(title: str, key: str, accuracy: float | None) -> str:
        numbers = [f"{get[k]:10.1f}" if (k := f"{key}{m}_km") in get else " " * 10 for m in ("median", "mean", "p90")]
        return f"  {title:34s}" + "".join(numbers) + (f"{accuracy:11.1%}" if accuracy is not None else "")

    lines = [
        f"{split}: {get['rows']:.0f} rows",
        f"  {'error in km':34s}{'median':>10s}{'mean':>10s}{'p90':>10s}{'province':>11s}",
    ]
    lines.append(line("end to end", "", get["province_accuracy"]))
    lines += [line(f"ladder: {rung.replace('_', ' ')}", f"{rung}_", None) for rung in scores.LADDER]
    for name, title in (("majority", "baseline: majority centroid"), ("nearest", "baseline: nearest features")):
        lines.append(line(title, f"baseline_{name}_", get[f"baseline_{name}_province_accuracy"]))
    if "baseline_histogram_province_accuracy" in get:
        lines.append(f"  {'baseline: colour histogram forest':64s}{get['baseline_histogram_province_accuracy']:11.1%}")
    lines.append("  within " + ", ".join(f"{km} km {get[f'within_{km}_km']:.1%}" for km in scores.WITHIN_KM))
    lines.append(
        f"  macro province accuracy {get['province_macro_accuracy']:.1%}, of the region head alone "
        f"{get['head_province_accuracy']:.1%}, "
        f"cell top-1 {get['cell_top1_accuracy']:.1%}, top-5 {get['cell_top5_accuracy']:.1%}"
    )
    lines.append(
        f"  calibration: ECE {get['ece_raw']:.3f} -> {get['ece']:.3f} with the temperature of val; "
        f"the 90 % radius (median {get['radius_90_median_km']:.0f} km) holds {get['radius_90_coverage']:.1%}"
    )
    lines += [
        f"    {name:34s} accuracy {get[f'accuracy/{s}']:6.1%}   median {get[f'median_km/{s}']:8.1f} km"
        for name in names
        if f"accuracy/{(s := scores.slug(name))}" in get
    ]
    return "\n".join(lines)
