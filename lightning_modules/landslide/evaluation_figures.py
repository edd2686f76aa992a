"""Pictures of an evaluation, as PNG."""

from collections.abc import Mapping
from pathlib import Path

from ..figures import pyplot, save
from .curves import RateCurve, reliability_curve
from .scores import calibration_error
from .tally import Tally, or_higher


def draw_rates(curves: Mapping[str, RateCurve], path: Path, title: str) -> None:
    """Success- and prediction-rate curves in one picture.

    Args:
        curves: name -> curve, such as "success rate (train)".
        path: of the PNG.
        title: of the picture.
    """
    figure, axis = pyplot().subplots(figsize=(6.5, 5.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", ls=":", lw=1.2, label="chance: area 0.500")
    for name, curve in curves.items():
        axis.plot(curve.area, curve.found, lw=2, label=f"{name}: area {curve.under:.3f}")
    axis.set(xlabel="share of the ground, most susceptible first", ylabel="share of the landslide pixels in it")
    axis.set(xlim=(0, 1), ylim=(0, 1.01), title=title)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    save(figure, path)


def draw_reliability(tally: Tally, path: Path, title: str) -> None:
    """Stated against observed shares of each "class k or higher", above the number of pixels in each bin."""
    plt = pyplot()
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
    save(figure, path)
