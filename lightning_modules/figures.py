"""Pictures that several families draw, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pyplot() -> Any:
    """matplotlib's, drawing to files: a cluster has no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as found

    return found


def save(figure: Any, path: Path) -> None:
    """Writes a PNG and frees the figure."""
    figure.savefig(path, dpi=110)
    pyplot().close(figure)


def draw_confusion(matrix: NDArray[np.integer], classes: Sequence[str], path: Path, title: str) -> None:
    """Confusion matrix: counts, and their share of the true class as colour and per cent.

    Args:
        matrix: (K, K) truth x answer.
        classes: names.
        path: of the PNG.
        title: of the picture.
    """
    figure, axis = pyplot().subplots(figsize=(1.5 * len(classes) + 2.2, 1.3 * len(classes) + 1.6), layout="constrained")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(matrix.shape):
        colour = "white" if share[i, j] > 0.55 else "black"
        text = f"{matrix[i, j]:,}\n{share[i, j]:.1%}" if matrix[i].any() else "none"
        if matrix[i, j] or not matrix[i].any() or i == j:  # of many classes most cells are empty
            axis.text(j, i, text, ha="center", va="center", color=colour)
    ticks = range(len(classes))
    axis.set(xticks=ticks, yticks=ticks, xticklabels=classes, yticklabels=classes, xlabel="answer", ylabel="truth")
    if max(map(len, classes)) > 12:
        axis.set_xticklabels(classes, rotation=30, ha="right")
    axis.set_title(title)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.85)
    save(figure, path)
