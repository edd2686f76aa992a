"""The figures of an evaluation as PNG: confusion matrices, reliability diagrams, the modalities side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..figures import draw_confusion, pyplot, save
from .comparison import Answers
from .scores import tally

_COLOURS = {"metadata": "tab:blue", "image": "tab:orange", "image_opened": "tab:brown", "fusion": "tab:green"}
SHOWN = ("kappa", "kappa_quadratic", "accuracy", "macro_f1")


def draw_all(
    folder: Path,
    answers: Answers,
    label: NDArray[np.int64],
    classes: Sequence[str],
    metrics: Mapping[str, float],
    title: str,
) -> None:
    """Writes ``confusion_MODALITY.png``, ``reliability.png`` and ``modalities.png``.

    Args:
        folder: for them.
        answers: modality -> (N, K).
        label: (N,).
        classes: names.
        metrics: of :func:`~.comparison.compare_modalities`.
        title: of the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    everyone = np.full(len(label), "all")
    for name, p in answers.items():
        matrix = tally(p, label, everyone).confusion.sum(0).astype(np.int64)
        draw_confusion(matrix, classes, folder / f"confusion_{name}.png", f"{title}: {_words(name)}")
    _draw_reliability(folder / "reliability.png", answers, label, title)
    _draw_modalities(folder / "modalities.png", list(answers), metrics, title)


def _draw_reliability(path: Path, answers: Answers, label: NDArray[np.int64], title: str) -> None:
    figure, axes = pyplot().subplots(
        1, len(answers), figsize=(3.6 * len(answers) + 0.8, 3.9), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (name, p) in zip(axes[0], answers.items()):
        bins = tally(p, label, np.full(len(label), "all")).reliability.sum(0)
        used = bins[bins[:, 0] > 0]
        stated, right = used[:, 1] / used[:, 0], used[:, 2] / used[:, 0]
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.scatter(stated, right, s=12 + 160 * used[:, 0] / len(label), color=_COLOURS[name], alpha=0.8, zorder=3)
        axis.set(
            xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel="stated probability", title=_words(name)
        )
    axes[0][0].set_ylabel("share of right answers")
    figure.suptitle(f"{title}: reliability, the area of a point is its rows")
    save(figure, path)


def _draw_modalities(path: Path, names: Sequence[str], metrics: Mapping[str, float], title: str) -> None:
    figure, axis = pyplot().subplots(figsize=(2.2 * len(SHOWN) + 1, 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        value, low, high = (
            np.array([metrics[f"{name}/{key}{end}"] for key in SHOWN]) for end in ("", "/ci_low", "/ci_high")
        )
        place = np.arange(len(SHOWN)) + (i - (len(names) - 1) / 2) * width
        axis.bar(place, np.nan_to_num(value), width, label=_words(name), color=_COLOURS[name])
        reach = np.nan_to_num(np.stack([value - low, high - value])).clip(0)
        axis.errorbar(place, np.nan_to_num(value), reach, fmt="none", color="black", capsize=3, linewidth=1)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xticks=range(len(SHOWN)), xticklabels=[_words(key) for key in SHOWN], ylabel="higher is better")
    axis.set_title(f"{title}: the same rows, 95 % intervals over patients")
    figure.legend(loc="outside right upper", fontsize=9)  # beside the bars: in their frame it would lie on some
    save(figure, path)


def _words(name: str) -> str:
    return name.replace("_", " ")
