"""Figures as a person reads them: numbers, intervals, tables of plain text."""

import math
from collections.abc import Mapping, Sequence

Metrics = Mapping[str, float]


def number(value: float, digits: int = 3) -> str:
    """A figure, or a dash where it is undefined.

    >>> number(0.12345), number(float("nan"))
    ('0.123', '-')
    """
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def with_interval(metrics: Metrics, name: str) -> str:
    """A figure and its interval.

    >>> with_interval({"kappa": 0.5, "kappa/ci_low": 0.4, "kappa/ci_high": 0.61}, "kappa")
    '0.500 [0.400, 0.610]'
    """
    low, high = (metrics.get(f"{name}/ci_{side}", math.nan) for side in ("low", "high"))
    text = number(metrics.get(name, math.nan))
    return text if math.isnan(low) else f"{text} [{number(low)}, {number(high)}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right.

    >>> table(["", "kappa"], [["map", "0.5"]])
    ['       kappa', '  map    0.5']
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in [header, *rows]
    ]
