"""The curves of a run as PNG."""

from pathlib import Path
from typing import Any

_LOG_FROM = 10.0  # a span that a linear axis could not show
STYLES = {"train": "--", "val": "-"}


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel for each column that shares a unit, train dashed and val solid.

    Args:
        rows: ``epoch``, ``split`` and numbers: columns of losses (``loss``, at either end of the name), of errors
            (``…_km``), of accuracies (``…_acc``); all others are scores.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = panels_of([c for c in dict.fromkeys(k for row in rows for k in row) if c not in ("epoch", "split")])
    figure, axes = plt.subplots(
        1, len(panels) or 1, figsize=(6 * max(1, len(panels)), 4.5), squeeze=False, layout="constrained"
    )
    for axis, (title, names) in zip(axes[0], panels.items()):
        _draw(axis, title, names, rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def panels_of(columns: list[str]) -> dict[str, list[str]]:
    """Title -> its columns.

    >>> panels_of(["loss_total", "kappa", "median_km", "log_loss"])
    {'loss': ['loss_total', 'log_loss'], 'error (km)': ['median_km'], 'score': ['kappa']}
    """
    panels: dict[str, list[str]] = {"loss": [], "error (km)": [], "accuracy": [], "score": []}
    for name in columns:
        of = {"error (km)": name.endswith("_km"), "accuracy": name.endswith("_acc")}
        of["loss"] = name.startswith("loss") or name.endswith("loss")
        panels[next((title for title, belongs in of.items() if belongs), "score")].append(name)
    return {title: names for title, names in panels.items() if names}


def _draw(axis: Any, title: str, names: list[str], rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    seen: list[float] = []
    for i, name in enumerate(names):
        label: str | None = name.removesuffix("_acc").removesuffix("_error_km")
        for split, style in reversed(STYLES.items()):
            points = [(r["epoch"], r[name]) for r in rows if r["split"] == split and name in r]
            if points:
                axis.plot(*zip(*points), style, color=f"C{i % 10}", marker=".", label=label)
                seen, label = [*seen, *(value for _, value in points)], None
    axis.set(title=f"{title}: val solid, train dashed", xlabel="epoch", ylabel=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if title in ("loss", "error (km)") and 0 < _LOG_FROM * min(seen) < max(seen):
        axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)  # hides no line
