"""Pictures of an evaluation, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .curves import RateCurve, reliability_curve
from .scores import calibration_error
from .tally import Tally, or_higher


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)


def draw_rates(curves: Mapping[str, RateCurve], path: Path, title: str) -> None:
    """Success- and prediction-rate curves in one picture.

    Args:
        curves: name -> curve, such as "success rate (train)".
        path: of the PNG.
        title: of the picture.
    """
    figure, axis = _pyplot().subplots(figsize=(6.5, 5.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", ls=":", lw=1.2, label="chance: area 0.500")
    for name, curve in curves.items():
        axis.plot(curve.area, curve.found, lw=2, label=f"{name}: area {curve.under:.3f}")
    axis.set(xlabel="share of the ground, most susceptible first", ylabel="share of the landslide pixels in it")
    axis.set(xlim=(0, 1), ylim=(0, 1.01), title=title)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    _save(figure, path)


def draw_reliability(tally: Tally, path: Path, title: str) -> None:
    """Stated against observed shares of each "class k or higher", above the number of pixels in each bin."""
    plt = _pyplot()
    count = len(tally.classes)
    figure, axes = plt.subplots(
        2, count - 1, figsize=(4.6 * (count - 1) + 0.4, 5.8), height_ratios=(3, 1), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for k in range(count - 1, 0, -1):
        upper, lower = axes[:, count - 1 - k]
        table = tally.reliability[:, k].sum(0)
        stated, observed, pixels = reliability_curve(table)
        upper.plot([0, 1], [0, 1], color="0.6", ls=":", lw=1.2)
        upper.plot(stated, observed, "o-", ms=5)
        upper.set(xlim=(0, 1), ylim=(0, 1), title=f"P({or_higher(tally.classes, k).replace('_', ' ')})")
        upper.text(0.04, 0.93, f"ECE {calibration_error(table):.3f}", transform=upper.transAxes, va="top")
        lower.bar(stated, pixels, width=0.045, color="0.5")
        lower.set(yscale="log", xlabel="stated probability")
        lower.set_ylim(bottom=0.8)
        upper.grid(alpha=0.3)
    axes[0, 0].set_ylabel("observed share")
    axes[1, 0].set_ylabel("pixels")
    figure.suptitle(title)
    _save(figure, path)


def draw_confusion(matrix: NDArray[np.integer], classes: Sequence[str], path: Path, title: str) -> None:
    """Confusion matrix: pixels, and their share of the true class as colour and per cent.

    Args:
        matrix: (K, K) truth x answer.
        classes: names.
        path: of the PNG.
        title: of the picture.
    """
    figure, axis = _pyplot().subplots(
        figsize=(1.5 * len(classes) + 2.2, 1.3 * len(classes) + 1.6), layout="constrained"
    )
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(matrix.shape):
        colour = "white" if share[i, j] > 0.55 else "black"
        text = f"{matrix[i, j]:,}\n{share[i, j]:.1%}" if matrix[i].any() else "no pixel"
        axis.text(j, i, text, ha="center", va="center", color=colour)
    ticks = range(len(classes))
    axis.set(xticks=ticks, yticks=ticks, xticklabels=classes, yticklabels=classes, xlabel="answer", ylabel="truth")
    axis.set_title(title)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.85)
    _save(figure, path)
