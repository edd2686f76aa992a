"""What ``peers_fusion.py`` trains on: the table, the pictures in memory, and the splits by patient."""

import difflib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

CLASSES = ["inflammatory", "proliferative", "remodeling"]
ROLES = ["id", "patient_id", "image", "label"]
PX, MARGIN = 48, 0.1
Array = np.ndarray[Any, Any]


def read_table(root: Path) -> pd.DataFrame:
    """Metadata with one spelling for each category, and of each row the list of its pictures."""
    table = pd.read_csv(root / "metadata.csv", keep_default_na=False, na_values=[""])
    for name in table.select_dtypes(exclude="number").columns.drop(ROLES):
        words = table[name].fillna("missing").str.strip().str.lower()
        known = [word for word, count in words.value_counts().items() if count >= 20]
        near = {word: difflib.get_close_matches(word, known, 1, 0.82) for word in words.unique()}
        table[name] = [near[word][0] if near[word] else word for word in words]
    table["label"] = table["label"].map(CLASSES.index)
    table["image"] = table["image"].fillna("").map(lambda cell: cell.split(";") if cell else [])
    return table


def read_pictures(root: Path, table: pd.DataFrame) -> dict[str, Tensor]:
    """Name -> (1, PX, PX) uint8: colours turned back to a scalar, cut to the box, padded to a square."""
    colours = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(int) @ (65536, 256, 1)
    order = np.argsort(colours)
    boxes = pd.read_csv(root / "boxes.csv").set_index("filename")
    found = {}
    for name in table["image"].explode().dropna():
        packed = np.asarray(Image.open(root / name).convert("RGB")).astype(int) @ (65536, 256, 1)
        scalar = order[np.searchsorted(colours[order], packed)].astype(np.uint8)
        found[name] = torch.from_numpy(cut(scalar, boxes.loc[name]))[None]
    return found


def cut(scalar: Array, box: Any) -> Array:
    """(H, W) -> (PX, PX): the box with its margin in the middle of a black square."""
    around = MARGIN * max(box.xmax - box.xmin, box.ymax - box.ymin)
    left, top = (max(0, int(np.floor(low - around))) for low in (box.xmin, box.ymin))
    part = scalar[top : int(np.ceil(box.ymax + around)), left : int(np.ceil(box.xmax + around))]
    height, width = (round(side * PX / max(part.shape)) for side in part.shape)
    square = Image.new("L", (PX, PX))
    square.paste(Image.fromarray(part).resize((width, height)), ((PX - width) // 2, (PX - height) // 2))
    return np.array(square)


def folds_of(table: pd.DataFrame, folds: int, seed: int) -> list[tuple[Array, Array]]:
    """Of each fold the rows outside and inside, whole patients, classes evenly."""
    cutter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(cutter.split(table, table["label"], table["patient_id"]))


def splits_of(table: pd.DataFrame, fold: int) -> dict[str, pd.DataFrame]:
    """Train, val and test; val is the inner fold whose classes are nearest to a fifth of each."""
    others, test = folds_of(table, 3, 0)[fold]
    rest = table.iloc[others]
    total = np.bincount(rest["label"])
    inner = folds_of(rest, 5, 0)
    train, val = min(inner, key=lambda one: abs(np.bincount(rest["label"].iloc[one[1]]) / total - 0.2).sum())
    parts = {"train": rest.iloc[train], "val": rest.iloc[val], "test": table.iloc[test]}
    return {name: part.reset_index(drop=True) for name, part in parts.items()}
