"""The U-Net's encoder and decoder, with the weights that they are published with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...datamodules.errors import CheckpointError, StagewiseError

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
RGB = 3


def encoder_and_decoder(
    name: str, channels: int, weights: str | None, decoder_channels: tuple[int, ...]
) -> tuple[nn.Module, nn.Module]:
    """Both halves of ``segmentation_models_pytorch.Unet``.

    Args:
        name: smp's name, or timm's with ``tu-`` before it.
        channels: of the input; the first convolution's pretrained kernels are repeated and scaled to them.
        weights: None is random; a name of smp's (``imagenet``) is fetched from the hub, for ``tu-`` encoders those of
            timm's tag whatever the name; a file is read from disk.
        decoder_channels: one number a level, 3 to 5 levels.

    Raises:
        StagewiseError: an encoder that smp does not have, or not for this depth.
        CheckpointError: the hub cannot be reached, or a file that is missing, unreadable or of another encoder.
    """
    import segmentation_models_pytorch as smp

    from_file = weights is not None and (Path(weights).suffix in FILES or Path(weights).exists())
    state = read_state(str(weights)) if from_file else None
    timm_own = name.startswith("tu-")
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": state}} if timm_own and state else {}
    later = state is not None and not timm_own  # smp loads no files: build for RGB, load, then widen
    try:
        unet: Any = smp.Unet(
            name,
            encoder_depth=len(decoder_channels),
            encoder_weights=None if later or weights is None else timm_own or weights,  # timm wants True
            decoder_channels=decoder_channels,
            in_channels=RGB if later else channels,
            **options,
        )
        if later:
            unet.encoder.load_state_dict(state)
            unet.encoder.set_in_channels(channels, pretrained=True)
    except Exception as error:  # the hub's, timm's and torch's own have no common base
        raise _explained(error, name, weights, from_file) from error
    _drop_idle_layers(unet.encoder)
    return unet.encoder, unet.decoder


def read_state(path: str) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file; ``state_dict`` inside it is unpacked.

    Raises:
        CheckpointError: no such file, or one that is no state dict.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"encoder: no file '{path}'; network.weights is a file, a name such as imagenet, or null."
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors' own and runtime errors all mean unreadable
        raise CheckpointError(f"encoder: '{path}' is no readable file of weights: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"encoder: '{path}' holds no state dict but a {type(content).__name__}.")
    return dict(state)


def _explained(error: Exception, name: str, weights: str | None, from_file: bool) -> StagewiseError:
    reason = str(error).strip().split("\n")[0][:300].rstrip(".") or type(error).__name__
    if weights is None:
        return StagewiseError(f"network.encoder='{name}': {reason}")
    if from_file:
        return CheckpointError(f"network.weights='{weights}' does not fit the encoder {name}: {error}")
    return CheckpointError(
        f"network.weights='{weights}' of the encoder {name} cannot be had: {reason}. Without the hub pass "
        "network.weights=FILE (.safetensors or .pth of this encoder), or null for random weights."
    )


def _drop_idle_layers(encoder: nn.Module) -> None:
    """Takes away what smp's EfficientNet keeps for files' sake and never runs: 0.8 M parameters without a gradient."""
    for name in ("_conv_head", "_bn1", "_dropout"):
        if hasattr(encoder, name):
            setattr(encoder, name, nn.Identity())
