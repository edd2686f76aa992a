"""A sweep as a picture: the monitored value against each key that was swept."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .figures import pyplot, save

Row = Mapping[str, Any]

_BLUE, _ORANGE, _GREY, _RED = "#2f6db3", "#d9822b", "#8a8f98", "#b3261e"
_LEGEND = ("run", "pruned", "failed", "best", "median")
_COLUMNS = 4  # panels side by side
_MANY_TIMES = 8.0  # numbers that lie this many times apart are drawn on a log scale


def draw_sweep(rows: Sequence[Row], keys: Sequence[str], path: str) -> None:
    """One panel for each key: every run as a point, the best one marked, failed runs at the lower edge.

    The line joins the medians where several runs have the same value. A rate is drawn on a log scale, as all numbers
    that lie far apart; anything else than numbers stands side by side.

    Args:
        rows: of ``sweep.csv``: ``status``, ``monitor``, ``mode``, ``score`` (``None`` of a failed run) and the keys as
            text. At least one has a score.
        keys: to draw.
        path: of the PNG.
    """
    across = min(len(keys), _COLUMNS)
    down = math.ceil(len(keys) / _COLUMNS)
    size = (max(4.2 * across, 6.0), 3.9 * down + 0.5)
    figure, axes = pyplot().subplots(down, across, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, key in zip(axes.flat, keys):
        _draw_panel(axis, rows, key)
    for axis in list(axes.flat)[len(keys) :]:
        axis.remove()
    for line in axes:
        line[0].set_ylabel(rows[0]["monitor"])
    if _is_wide([row["score"] for row in rows if row["score"] is not None]):
        axes[0][0].set_yscale("log")
    drawn = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    names = [name for name in _LEGEND if name in drawn]
    handles = [drawn[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(_title(rows), fontsize=11)
    save(figure, Path(path))


def _title(rows: Sequence[Row]) -> str:
    best = _best(rows)
    ended = {name: sum(str(row["status"]).startswith(name) for row in rows) for name in ("failed", "pruned")}
    counts = [f"{len(rows)} runs", *(f"{number} {name}" for name, number in ended.items() if number)]
    aim = "lower is better" if best["mode"] == "min" else "higher is better"
    return f"{', '.join(counts)}; {aim}; best {best['score']:.4g} (run {best['job']})"


def _best(rows: Sequence[Row]) -> Row:
    scored = [row for row in rows if row["score"] is not None]
    return (min if rows[0]["mode"] == "min" else max)(scored, key=lambda row: row["score"])


def _draw_panel(axis: Any, rows: Sequence[Row], key: str) -> None:
    place, is_number = _places([str(row.get(key, "")) for row in rows], axis)
    points: dict[str, list[tuple[float, float]]] = {"run": [], "pruned": [], "failed": [], "best": []}
    for row in rows:
        kind = "failed" if row["score"] is None else "pruned" if str(row["status"]).startswith("pruned") else "run"
        points["best" if row is _best(rows) else kind].append((place[str(row.get(key, ""))], row["score"]))
    looks = {
        "run": {"s": 36, "facecolor": _BLUE, "edgecolor": "white", "linewidth": 0.6},
        "pruned": {"s": 34, "facecolor": "white", "edgecolor": _BLUE, "linewidth": 1.2},
        "failed": {"s": 40, "marker": "x", "color": _RED, "transform": axis.get_xaxis_transform()},  # at the lower edge
        "best": {"s": 210, "marker": "*", "color": _ORANGE, "edgecolor": "white", "linewidth": 0.8},
    }
    for kind, own in points.items():
        if own:
            heights = [0.03 if kind == "failed" else score for _, score in own]
            axis.scatter([at for at, _ in own], heights, label=kind, zorder=4 if kind == "best" else 3, **looks[kind])
    # points at the edge do not widen the axis by themselves
    axis.scatter(list(place.values()), [_best(rows)["score"]] * len(place), alpha=0)
    _draw_medians(axis, points["run"] + points["best"])
    axis.set_xlabel(key if len(key) < 38 else f"…{key[-36:]}")
    axis.grid(True, axis="both" if is_number else "y", alpha=0.25, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.08 if is_number else 0.15, y=0.14)


def _draw_medians(axis: Any, points: Sequence[tuple[float, float]]) -> None:
    groups: dict[float, list[float]] = {}
    for place, score in points:
        groups.setdefault(place, []).append(score)
    if 1 < len(groups) < len(points):
        line = sorted((place, median(scores)) for place, scores in groups.items())
        axis.plot(*zip(*line), color=_GREY, linewidth=1.4, alpha=0.8, label="median", zorder=2)


def _places(values: Sequence[str], axis: Any) -> tuple[dict[str, float], bool]:
    """Where each value stands on the axis, whose scale and ticks are set; whether the values are numbers."""
    distinct = list(dict.fromkeys(values))
    numbers = {value: number for value in distinct if (number := _number(value)) is not None}
    if len(numbers) < len(distinct):
        names = [one if len(one) <= 18 else f"{one[:17]}…" for one in distinct]
        axis.set_xticks(range(len(distinct)), names, rotation=20 if max(map(len, names)) > 10 else 0)
        return {value: float(place) for place, value in enumerate(distinct)}, False
    if _is_wide(numbers.values()):
        axis.set_xscale("log")
    if len(numbers) <= 6:
        axis.set_xticks(list(numbers.values()), [_written(one) for one in numbers.values()])
        axis.minorticks_off()
    return numbers, True


def _is_wide(numbers: Collection[float]) -> bool:
    """Whether a log scale shows them better."""
    return min(numbers) > 0 and max(numbers) / min(numbers) >= _MANY_TIMES


def _written(number: float) -> str:
    """A short form.

    >>> _written(1.5e-05), _written(0.25), _written(64)
    ('1.5e-5', '0.25', '64')
    """
    if number == 0 or abs(number) >= 0.01:
        return f"{number:.6g}"
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
