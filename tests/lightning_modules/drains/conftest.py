"""A CLIP of the real layout, small enough to build in a moment."""

import pytest
import torch

from stagewise.datamodules.drains.boxes import FEATURES
from stagewise.datamodules.drains.vocabulary import CLASS_NAMES, TYPE_OF_CLASS
from stagewise.lightning_modules.drains.network import DrainNetwork

CLIP = {
    "name": "ViT-B-32",
    "pretrained": None,
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 1, "context_length": 32},
}
SCHEMA = {
    "classes": list(CLASS_NAMES),
    "features": list(FEATURES),
    "feature_mean": [0.0] * len(FEATURES),
    "feature_std": [1.0] * len(FEATURES),
    "class_count": [5, 8, 8, 15, 37, 26, 10, 15, 24],
    "corrections": [],
    "image": {"px": 32, "input": "crop", "margin": 0.1, "pad": "mean", "view": False},
    "splits": {},
}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return DrainNetwork(SCHEMA, CLIP, **options).eval()


def objects(seed=0):
    """One object of every class."""
    g = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(9, 3, 32, 32, generator=g),
        "label": torch.arange(9),
        "box_type": torch.as_tensor(TYPE_OF_CLASS),
        "position": torch.arange(9) % 3,
        "context": torch.arange(9),
        "metadata": torch.randn(9, len(FEATURES), generator=g),
    }


@pytest.fixture
def batch():
    return objects()


@pytest.fixture
def schema():
    return SCHEMA


@pytest.fixture
def make():
    return build


@pytest.fixture
def clip():
    return CLIP
