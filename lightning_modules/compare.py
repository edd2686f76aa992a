"""Two runs side by side: the metrics of this one and a ``metrics.json`` of another."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..datamodules.errors import StagewiseError


class Row(NamedTuple):
    """A figure of both runs; ``difference`` is this - other."""

    name: str
    this: float
    other: float
    difference: float


def read_metrics(path: str | Path) -> dict[str, float]:
    """The numbers of a ``metrics.json`` (or of a folder with one); null is NaN, what is no number is left out.

    Raises:
        StagewiseError: no such file, no JSON, or no object of numbers.
    """
    file = Path(path) / "metrics.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise StagewiseError(f"no '{file}'; give the metrics.json that evaluate.py wrote for the other run.")
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StagewiseError(f"'{file}' is no JSON ({error}); give the metrics.json that evaluate.py wrote.") from error
    if not isinstance(read, dict):
        raise StagewiseError(f"'{file}' holds no object of name: number; give a metrics.json of evaluate.py.")
    return {
        name: math.nan if value is None else float(value)
        for name, value in read.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def compare(metrics: Mapping[str, float], other: str | Path) -> tuple[list[Row], str]:
    """Shared figures side by side.

    Args:
        metrics: name -> number, of this run.
        other: ``metrics.json`` of the other run, or the folder that has it.

    Returns:
        Rows in the order of ``metrics``, and the text to print: bounds of intervals are not in it, figures that one run
        alone has are counted.

    Raises:
        StagewiseError: the file is missing or no metrics, or no name is shared.
    """
    theirs = read_metrics(other)
    rows = [Row(k, float(v), theirs[k], float(v) - theirs[k]) for k, v in metrics.items() if k in theirs]
    if not rows:
        raise StagewiseError(
            f"'{other}' shares no figure with this run: it has {_some(theirs)}, this run {_some(metrics)}; "
            "compare runs of the same task and the same split."
        )
    shown = [row for row in rows if not row.name.endswith(("/ci_low", "/ci_high"))]
    width = max((len(row.name) for row in shown), default=0)
    lines = [f"  {'':{width}s}  {'this run':>12s}{'other':>12s}{'difference':>12s}"]
    lines += [f"  {r.name:{width}s}  {r.this:12.4f}{r.other:12.4f}{r.difference:+12.4f}" for r in shown]
    alone = len(metrics) - len(rows), len(theirs) - len(rows)
    return rows, "\n".join([f"compared with {other}:", *lines, f"  only here: {alone[0]}, only there: {alone[1]}"])


def _some(metrics: Mapping[str, float]) -> str:
    names = list(metrics)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
