"""The score of an exported map: labelled pixels only, with intervals, baselines and the gap a leak would make."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import PreparedArea
from ..figures import draw_confusion
from .bootstrap import intervals, leads
from .curves import RateCurve, rate_curve
from .evaluation_figures import draw_rates, draw_reliability
from .evaluation_report import as_text, main_figures
from .labelled_pixels import Splits
from .map_evaluation import AreaCount, MapEvaluation
from .scores import notes, scores
from .tally import Tally, join

Metrics = dict[str, float]
_LEAK_PIXELS = 20_000  # of train and as many of the split: the gap is no figure that needs decimals


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Areas' names as parts of metrics' names; of names that come out alike the later ones get a number.

    >>> slugs(["Río Zamora (west)", "río zamora-west"])
    {'Río Zamora (west)': 'río_zamora_west', 'río zamora-west': 'río_zamora_west_2'}
    """
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W+", "_", name.lower()).strip("_")
        numbered = itertools.chain([plain], (f"{plain}_{number}" for number in itertools.count(2)))
        found[name] = next(slug for slug in numbered if slug not in found.values())
    return found


def evaluate_maps(
    maps: Mapping[str, str | Path],
    areas: Mapping[str, PreparedArea],
    splits: Splits,
    schema: Mapping[str, Any],
    folder: str | Path,
    split: str = "test",
    baselines: bool = True,
    block_px: int | None = None,
    train_pixels: int = 50_000,
    trees: int = 200,
    seed: int = 0,
) -> tuple[Metrics, str]:
    """Scores exported maps over the labelled pixels of a split and draws the pictures.

    Args:
        maps: area -> folder with ``probabilities.tif`` (K float bands on the area's grid, NaN is nodata) and
            ``class_map.tif``, whose answers are scored.
        areas: name -> rasters: of the maps, and of the train labels for the baselines.
        splits: that own the assignment.
        schema: of the model: ``classes``, ``channels``, ``tile_px``.
        folder: for the PNGs.
        split: that is scored.
        baselines: fits and scores them, and measures what a leaky split would claim.
        block_px: side of the blocks that are resampled for the intervals; None takes a tile's.
        train_pixels: of the baselines.
        trees: of the random forest.
        seed: of samples, forest and draws.

    Returns:
        ``{split}/name`` -> number for every name of :func:`~.scores.scores`, with ``name/ci_low`` and ``name/ci_high``,
        and the same under ``area/{area}/``, ``baseline/{model}/`` (with ``lead/``, this map minus the baseline) and
        ``leak/``; ``missing``, ``prediction_rate_area``, ``success_rate_area``. And the report.

    Raises:
        StagewiseError: a map is missing or does not fit, or nothing in the split is labelled.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    evaluation = MapEvaluation(maps, areas, splits, schema, block_px)
    try:
        evaluation.require_maps(split)
        counted = evaluation.count(split)
        if not counted or not any(count.tally.blocks for count in counted.values()):
            raise StagewiseError(f"no labelled pixel with a prediction in the split '{split}'; nothing to score.")
        metrics, said = _of_maps(counted, seed)
        train = counted if split == "train" else evaluation.count("train")
        metrics |= _draw(counted, train, Path(folder), split)
        if baselines:
            ours = join([count.tally for count in counted.values()])
            found, more = _of_baselines(evaluation, split, ours, train_pixels, trees, seed)
            metrics, said = metrics | found, said + more
    finally:
        evaluation.close()
    text = as_text(metrics, split, schema["classes"], {slug: name for name, slug in slugs(counted).items()}, said)
    return {f"{split}/{name}": value for name, value in metrics.items()}, text


def _scored(tally: Tally, seed: int) -> tuple[Metrics, list[str]]:
    bounds, undefined = intervals(tally, seed=seed)
    found = scores(tally)
    for name in bounds:
        found |= {f"{name}/ci_low": bounds[name][0], f"{name}/ci_high": bounds[name][1]}
    return found, notes(tally) + undefined


def _of_maps(counted: Mapping[str, AreaCount], seed: int) -> tuple[Metrics, list[str]]:
    metrics, said = _scored(join([count.tally for count in counted.values()]), seed)
    metrics["missing"] = float(sum(count.missing for count in counted.values()))
    if metrics["missing"]:
        where = ", ".join(f"{count.missing} in '{name}'" for name, count in counted.items() if count.missing)
        said.append(f"labelled pixels without a prediction (nodata in the inputs), left out: {where}")
    slug = slugs(counted)
    for name, count in counted.items():
        found, more = _scored(count.tally, seed) if len(counted) > 1 else (dict(metrics), [])
        metrics |= {f"area/{slug[name]}/{key}": value for key, value in found.items()}
        said += [f"area '{name}': {text}" for text in more]
    return metrics, said


def _draw(counted: Mapping[str, AreaCount], train: Mapping[str, AreaCount], folder: Path, split: str) -> Metrics:
    """Pictures of each area and of all together; areas under the rate curves."""
    found: Metrics = {}
    slug = slugs(counted)
    groups = {name: ([counted[name]], [train[name]] if name in train else []) for name in counted}
    if len(counted) > 1:
        groups = {"": (list(counted.values()), list(train.values())), **groups}
    for name, (here, learnt) in groups.items():
        title = f"{split}: {name or 'all areas'}"
        end = f"_{slug[name]}" if name and len(counted) > 1 else ""
        tally = join([count.tally for count in here])
        curves = {f"prediction rate ({split})": _curve(here)} | (
            {"success rate (train)": _curve(learnt)} if learnt else {}
        )
        draw_rates(curves, folder / f"rates{end}.png", f"{title}, {tally.classes[-1]} pixels found")
        draw_reliability(tally, folder / f"reliability{end}.png", title)
        draw_confusion(tally.confusion.sum(0), tally.classes, folder / f"confusion{end}.png", title)
        prefix = f"area/{slug[name]}/" if end else ""
        areas = dict(zip(("prediction_rate_area", "success_rate_area"), (curve.under for curve in curves.values())))
        found |= {f"{prefix}{key}": value for key, value in areas.items()}
    return found


def _curve(counts: list[AreaCount]) -> RateCurve:
    high = np.sum([count.tally.ranked[:, 0, -1].sum(0) for count in counts], axis=0)
    return rate_curve(np.sum([count.ground for count in counts], axis=0), high)


def _of_baselines(
    evaluation: MapEvaluation, split: str, ours: Tally, train_pixels: int, trees: int, seed: int
) -> tuple[Metrics, list[str]]:
    if not evaluation.pixels.counts("train").any():
        return {}, ["no baselines: no area here has train labels"]
    fitted = evaluation.fit_baselines(train_pixels, trees, seed)
    tallies = evaluation.count_baselines(fitted, split)
    bounds, our_scores = leads(ours, tallies, seed=seed), scores(ours)
    found: Metrics = {}
    for model, tally in tallies.items():
        theirs = scores(tally)
        found |= {f"baseline/{model}/{name}": value for name, value in theirs.items()}
        found[f"baseline/{model}/exponent"] = fitted.exponents[model]
        for name in main_figures(ours.classes):
            key, (low, high) = f"baseline/{model}/lead/{name}", bounds[model].get(name, (math.nan, math.nan))
            found |= {key: our_scores[name] - theirs[name], f"{key}/ci_low": low, f"{key}/ci_high": high}
    leak = evaluation.leak(split, min(train_pixels, _LEAK_PIXELS), max(trees // 2, 1), seed)
    found |= {f"leak/{name}": value for name, value in leak.items()}
    missing = [] if "slope_threshold" in fitted.models else ["no slope threshold: no channel 'slope'"]
    return found, missing
