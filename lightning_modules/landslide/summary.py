"""Several runs in one table: folds of a cross-validation, parts of a recipe switched off."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...datamodules.errors import StagewiseError
from ..compare import read_metrics
from .evaluation_report import number, table

Run = Mapping[str, float] | str | Path
"""Metrics, their ``metrics.json``, or the folder that has it."""


class Summary(NamedTuple):
    """Mean and standard deviation of each figure over the runs that define it, and the table."""

    mean: dict[str, float]
    sd: dict[str, float]
    text: str


def _metrics(run: Run) -> dict[str, float]:
    return dict(run) if isinstance(run, Mapping) else read_metrics(run)


def _check(names: Sequence[str], runs: Mapping[str, Mapping[str, float]]) -> None:
    for title, metrics in runs.items():
        missing = [name for name in names if name not in metrics]
        if missing:
            raise StagewiseError(f"run '{title}' has no figure {missing}; it has {list(metrics)[:5]}, ….")


def summarise_folds(folds: Sequence[Run], names: Sequence[str]) -> Summary:
    """Folds as rows, with mean and standard deviation (n - 1) below.

    Args:
        folds: of a cross-validation.
        names: figures for the table, as they are called in the metrics, such as ``test/quadratic_kappa``.

    Raises:
        StagewiseError: no fold, or one that lacks a figure.

    >>> found = summarise_folds([{"test/kappa": 0.4}, {"test/kappa": 0.6}], ["test/kappa"])
    >>> round(found.mean["test/kappa"], 3), round(found.sd["test/kappa"], 3)
    (0.5, 0.141)
    """
    if not folds:
        raise StagewiseError("no folds to summarise; give the run folders of datamodule.fold=0,1,….")
    runs = {f"fold {i}": _metrics(fold) for i, fold in enumerate(folds)}
    _check(names, runs)
    shared = [name for name in runs["fold 0"] if all(name in run for run in runs.values())]
    defined = {name: [run[name] for run in runs.values() if not math.isnan(run[name])] for name in shared}
    mean = {name: statistics.fmean(values) if values else math.nan for name, values in defined.items()}
    sd = {name: statistics.stdev(values) if len(values) > 1 else math.nan for name, values in defined.items()}
    rows = [[title, *(number(run[name]) for name in names)] for title, run in runs.items()]
    rows += [[title, *(number(of[name]) for name in names)] for title, of in (("mean", mean), ("sd", sd))]
    short = [f"{name}: {len(defined[name])} of {len(runs)} folds" for name in names if len(defined[name]) < len(runs)]
    lines = table(["", *names], rows) + ([f"  undefined in some folds: {', '.join(short)}"] if short else [])
    return Summary(mean, sd, "\n".join(lines))


def ablation_table(runs: Mapping[str, Run], names: Sequence[str], full: str = "full") -> str:
    """Markdown: a row for each part that was switched off, each figure with its difference to the full recipe.

    Args:
        runs: what is off -> run; under ``full`` the whole recipe.
        names: figures.
        full: title of the whole recipe.

    Raises:
        StagewiseError: no full run, or one that lacks a figure.

    >>> print(ablation_table({"full": {"test/kappa": 0.5}, "no CRF": {"test/kappa": 0.48}}, ["test/kappa"]))
    | run | test/kappa |
    |---|---|
    | full | 0.500 |
    | no CRF | 0.480 (-0.020) |
    """
    if full not in runs:
        raise StagewiseError(f"no run '{full}' to compare with, there are {list(runs)}; run the whole recipe as well.")
    read = {title: _metrics(run) for title, run in runs.items()}
    _check(names, read)
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for title in [full, *(title for title in read if title != full)]:
        cells = [number(read[title][name]) for name in names]
        if title != full:
            differences = [read[title][name] - read[full][name] for name in names]
            cells = [f"{cell} ({d:+.3f})" if not math.isnan(d) else cell for cell, d in zip(cells, differences)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)
