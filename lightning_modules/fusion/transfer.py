"""Carries a trained picture branch over, head included: every tensor matches, or nothing is loaded."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...datamodules.errors import CheckpointError
from ..start import read_checkpoint

log = logging.getLogger(__name__)
_PLACE = "network.picture."
_SAME = {  # what must not differ, and how a person says it
    "classes": "classes",
    "image": "image settings",
    "splits": "splits",
    "fold": "fold",
    "key": "data",
    "permuted": "labels",
}
_REMEDY = "remove its folder to train it anew, or pass one of modality=image with the same datamodule options"


def read_branch(path: str, schema: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the branch of a run on pictures alone.

    Args:
        path: of its checkpoint.
        schema: of the data that they are to be used with.

    Raises:
        CheckpointError: no such checkpoint, of another task or modality, or of other data.
    """
    checkpoint = read_checkpoint(path)
    own = checkpoint.get("fusion")
    if own is None or own["modality"] != "image":
        kind = "not one of FusionModule" if own is None else f"of modality={own['modality']}"
        raise CheckpointError(f"image_from='{path}' is {kind}; pass the best checkpoint of a run with modality=image.")
    if differs := [said for name, said in _SAME.items() if own["schema"].get(name) != schema.get(name)]:
        raise CheckpointError(f"image_from='{path}' has other {', '.join(differs)} than this run; {_REMEDY}.")
    return {
        name.removeprefix(_PLACE): value for name, value in checkpoint["state_dict"].items() if name.startswith(_PLACE)
    }


def load_branch(branch: nn.Module, tensors: Mapping[str, Tensor], path: str) -> None:
    """Loads all of them.

    Args:
        branch: gets the tensors.
        tensors: name -> value.
        path: where they come from, for the message.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; names them, and nothing is loaded.
    """
    own = {name: tuple(value.shape) for name, value in branch.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    faults = [f"{name} is missing" for name in own if name not in theirs]
    faults += [f"{name} is not in this branch" for name in theirs if name not in own]
    faults += [f"{name} is {theirs[name]}, not {own[name]}" for name in own if theirs.get(name, own[name]) != own[name]]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"image_from='{path}' does not match the picture branch: {'; '.join(faults[:5])}{more}. Nothing was "
            "loaded; set lightning_module.branch as it was in that run."
        )
    branch.load_state_dict(dict(tensors))
    log.info("picture branch: all %d tensors of %s, head included", len(own), path)
