"""The two image encoders, with the weights that they are published with."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...datamodules.errors import CheckpointError

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scene_encoder(name: str = "resnet50", weights: str | None = None, load: bool = True, **options: Any) -> nn.Module:
    """A timm network without its classifier, with Places365 weights from a file.

    Args:
        name: timm's name; ``resnet50`` has the layout of the Places365 file.
        weights: path of a Places365 file (``state_dict`` key, ``module.`` prefixes, a classifier that is dropped) or of
            a plain state dict; None starts from random weights and says so.
        load: False builds the architecture only, for weights that come from a checkpoint.
        options: for ``timm.create_model``.

    Returns:
        A module (B, 3, H, W) -> (B, ``num_features``).
    """
    import timm

    model = timm.create_model(name, num_classes=0, **options)
    if load and weights:
        load_places365(model, weights)
    elif load:
        log.warning("encoder scene (%s): random weights, because weights=null", name)
    return model


def load_places365(model: nn.Module, path: str) -> None:
    """Loads a Places365 file into a network without classifier; every other tensor must match.

    Raises:
        CheckpointError: no such file, not a checkpoint, or tensors that are missing, superfluous or of another shape.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"encoder scene: no file '{path}'; pass lightning_module.network.scene.weights=FILE.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common base: pickle, zip and runtime errors all mean unreadable
        raise CheckpointError(f"encoder scene: '{path}' is no readable checkpoint: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"encoder scene: '{path}' holds no state dict but a {type(content).__name__}.")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    own = model.state_dict()
    # Files written before PyTorch 0.4 lack the counters of BatchNorm; nothing reads them with a fixed momentum.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k, value in state.items() if k not in own or getattr(value, "shape", None) != own[k].shape]
    if missing or wrong:
        raise CheckpointError(f"encoder scene: '{path}' does not fit: missing {missing[:5]}, not fitting {wrong[:5]}.")
    model.load_state_dict(state, strict=False)
