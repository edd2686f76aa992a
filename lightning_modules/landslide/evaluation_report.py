"""The report of an evaluation as a person reads it."""

import math
from collections.abc import Mapping, Sequence

from ..text_tables import number, table, with_interval
from .baselines import TITLES
from .scores import PER_CLASS
from .tally import or_higher

Metrics = Mapping[str, float]


def main_figures(classes: Sequence[str]) -> list[str]:
    """The figures that stand for a run, in tables with one row a run.

    >>> main_figures(["low", "high"])
    ['kappa', 'quadratic_kappa', 'macro_f1', 'spearman', 'auroc/high', 'average_precision/high', 'ece']
    """
    between = [f"average_precision/{name}" for name in classes[1:-1]]
    high = classes[-1]
    ranked = ["spearman", f"auroc/{high}", f"average_precision/{high}", *between]
    return ["kappa", "quadratic_kappa", "macro_f1", *ranked, "ece"]


def as_text(
    metrics: Metrics, split: str, classes: Sequence[str], areas: Mapping[str, str], notes: Sequence[str]
) -> str:
    """The report.

    Args:
        metrics: name without the split -> number.
        split: that was scored.
        classes: names, low to high.
        areas: part of a metric's name -> the area's name.
        notes: sentences.
    """
    lines = [
        f"{split}: {metrics['pixels']:,.0f} labelled pixels in {metrics['blocks']:,.0f} blocks, "
        f"{metrics['missing']:,.0f} more without a prediction; intervals of 95 % over blocks in brackets"
    ]
    lines += ["", *_classes(metrics, classes), "", *_figures(metrics, classes)]
    if len(areas) > 1:
        rows = [[title, *_row({k: metrics.get(f"area/{a}/{k}", math.nan) for k in main_figures(classes)})]
                for a, title in areas.items()]  # fmt: skip
        lines += ["", *table(["area", *main_figures(classes)], rows)]
    lines += _baselines(metrics, classes)
    if "leak/leaky/quadratic_kappa" in metrics:
        lines += _leak(metrics, classes)
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def _row(values: Metrics) -> list[str]:
    return [number(value) for value in values.values()]


def _classes(metrics: Metrics, classes: Sequence[str]) -> list[str]:
    rows = []
    for name in classes:
        cells = [with_interval(metrics, f"{figure}/{name}") for figure in PER_CLASS]
        rows.append([name, f"{metrics[f'pixels/{name}']:,.0f}", number(metrics[f"prevalence/{name}"], 4), *cells[1:]])
    return table(["class", "pixels", *PER_CLASS], rows)


def _figures(metrics: Metrics, classes: Sequence[str]) -> list[str]:
    above = [or_higher(classes, k) for k in range(1, len(classes))]
    names = [name for name in main_figures(classes) if "/" not in name]
    names += [f"{figure}/{name}" for name in above for figure in ("auroc", "average_precision")]
    names += [f"average_precision/{name}" for name in classes[1:-1]]
    rows = []
    for name in names:
        base = f"prevalence {number(metrics[p], 4)}" if (p := f"prevalence/{name.split('/')[-1]}") in metrics else ""
        rows.append([name, with_interval(metrics, name), base])
    rates = {"success_rate_area": "of train landslides", "prediction_rate_area": f"of {classes[-1]} pixels"}
    rows += [[name, number(metrics[name]), text] for name, text in rates.items() if name in metrics]
    return table(["figure", "", ""], rows)


def _baselines(metrics: Metrics, classes: Sequence[str]) -> list[str]:
    names = main_figures(classes)
    there = [model for model in TITLES if f"baseline/{model}/kappa" in metrics]
    if not there:
        return []
    rows = [["this map", *_row({name: metrics[name] for name in names})]]
    rows += [[TITLES[m], *_row({name: metrics[f"baseline/{m}/{name}"] for name in names})] for m in there]
    lines = ["", "  the same pixels, baselines fitted on train:", *table(["", *names], rows)]
    wanted = ["quadratic_kappa", *(f"average_precision/{name}" for name in classes[1:-1] or classes[-1:])]
    leads = [[TITLES[m], *(with_interval(metrics, f"baseline/{m}/lead/{name}") for name in wanted)] for m in there]
    return [*lines, "", "  lead of this map over each, on the same draws of blocks:", *table(["", *wanted], leads)]


def _leak(metrics: Metrics, classes: Sequence[str]) -> list[str]:
    names = ["quadratic_kappa", f"auroc/{classes[-1]}", f"average_precision/{classes[-1]}"]
    titles = {"leaky": "random tiles, overlapped by half", "buffered": "this split", "gap": "gap"}
    rows = [[title, *_row({n: metrics[f"leak/{kind}/{n}"] for n in names})] for kind, title in titles.items()]
    shared = metrics["leak/test_pixels_in_train"]
    lines = [
        "",
        f"  what a leaky split would claim of the random forest ({shared:.0%} of its test pixels are in train):",
    ]
    return [*lines, *table(["split", *names], rows)]
