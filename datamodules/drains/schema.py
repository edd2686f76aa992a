"""What a model must know of its data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .boxes import FEATURES
from .splits import locations_of
from .table import DrainTable
from .vocabulary import CLASS_NAMES

SEEN = ("px", "input", "margin", "pad", "view")  # what a network's input depends on
_CONSTANT = 1e-6  # a deviation that is only rounding


def describe(splits: Mapping[str, DrainTable], options: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """Classes, features, splits and settings as plain values; everything fitted is of train only.

    Args:
        splits: of :func:`make_splits`.
        options: they were made with.
        image: settings, of which those of ``SEEN`` are kept.
    """
    train = splits["train"]
    features = train.features().astype(np.float64)
    deviation = features.std(0)
    by_folder = options["method"] == "folder"
    return {
        "classes": list(CLASS_NAMES),
        "class_count": train.class_count.tolist(),
        "features": list(FEATURES),
        "feature_mean": features.mean(0).tolist(),
        "feature_std": np.where(deviation > _CONSTANT, deviation, 1.0).tolist(),
        "image": {key: image[key] for key in SEEN},
        "splits": {"options": dict(options), "locations": locations_of(splits)},
        "fold": None if by_folder else int(options["fold"]),
        "leaky": by_folder and bool(options["leaky"]),
    }
