"""What ``peers_fusion.py`` draws and writes for a person: the same pictures and rows as ``experiment=fusion_v5``."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from peers_fusion_data import CLASSES
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, cohen_kappa_score, f1_score

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Array = np.ndarray[Any, Any]
Answers = dict[str, Array]  # modality -> (N, 3)
BINS = 10


def draw_curves(losses: list[float], kappas: list[float], path: Path) -> None:
    """Loss of train and kappa of val over the epochs of a stage."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, values, title in zip(axes, (losses, kappas), ("loss, train", "kappa, val")):
        axis.plot(values, marker=".")
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    finish(figure, path)


def draw_report(folder: Path, answers: Answers, rows: pd.DataFrame, limits: dict[str, Any]) -> None:
    """``rows.csv``, a confusion matrix of each modality, their reliability and their scores side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    label = rows["label"].to_numpy()
    table = rows[["id", "patient_id", "label"]].copy()
    for name, p in answers.items():
        table[[f"{name}_{one}" for one in CLASSES]] = p
        figure, axis = plt.subplots(figsize=(6.7, 5.5), layout="constrained")
        options = {"display_labels": CLASSES, "normalize": "true", "cmap": "Blues", "ax": axis}
        ConfusionMatrixDisplay.from_predictions(label, p.argmax(1), **options)
        axis.set_title(name)
        finish(figure, folder / f"confusion_{name}.png")
    table.to_csv(folder / "rows.csv", index=False)
    draw_reliability(answers, label, folder / "reliability.png")
    draw_scores(answers, label, limits, folder / "modalities.png")


def draw_reliability(answers: Answers, label: Array, path: Path) -> None:
    figure, axes = plt.subplots(1, len(answers), figsize=(3.6 * len(answers) + 0.8, 3.9), layout="constrained")
    for axis, (name, p) in zip(axes, answers.items()):
        stated, right = p.max(1), p.argmax(1) == label
        in_bin = [np.minimum((stated * BINS).astype(int), BINS - 1) == one for one in range(BINS)]
        axis.plot([0, 1], [0, 1], color="0.7")
        axis.scatter(*zip(*[(stated[b].mean(), right[b].mean()) for b in in_bin if b.any()]))
        axis.set(title=name, xlabel="stated probability", xlim=(0, 1), ylim=(0, 1))
    finish(figure, path)


def draw_scores(answers: Answers, label: Array, limits: dict[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(9.8, 4), layout="constrained")
    for i, (name, p) in enumerate(answers.items()):
        said = p.argmax(1)
        quadratic = cohen_kappa_score(label, said, weights="quadratic")
        scores = [limits[name][0], quadratic, accuracy_score(label, said), f1_score(label, said, average="macro")]
        axis.bar(np.arange(4) + 0.27 * (i - 1), scores, 0.27, label=name)
        low, high = limits[name][1:]
        axis.errorbar(0.27 * (i - 1), scores[0], [[scores[0] - low], [high - scores[0]]], color="black", capsize=3)
    axis.set(xticks=range(4), xticklabels=["kappa", "quadratic", "accuracy", "macro F1"])
    axis.legend()
    finish(figure, path)


def finish(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
