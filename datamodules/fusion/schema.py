"""What a model must know of its data."""

from collections.abc import Mapping
from typing import Any

from .folds import ids_of
from .table import FusionTable

SEEN = ("px", "channels", "colormap", "margin", "bits")  # what a network's input depends on


def describe(splits: Mapping[str, FusionTable], table: FusionTable, options: Mapping[str, Any]) -> dict[str, Any]:
    """Classes, columns, splits and settings as plain values; the class counts are of train only.

    Args:
        splits: of :func:`~.folds.make_splits`.
        table: all of them together.
        options: ``{files, columns, image, splits, fold, permuted, seed}`` they were made with.
    """
    return {
        "classes": list(table.classes),
        "class_count": splits["train"].class_count.tolist(),
        "number_names": list(table.number_names),
        "category_names": list(table.category_names),
        "files": dict(options["files"]),
        "columns": dict(options["columns"]),
        "image": {key: options["image"][key] for key in SEEN},
        "splits": {"options": dict(options["splits"]), "ids": ids_of(splits)},
        "fold": int(options["fold"]),
        "key": table.content_key(),
        "leaky": options["splits"]["by"] == "row",
        "permuted": bool(options["permuted"]),
        "seed": int(options["seed"]),
    }
