"""Frozen encoders in half precision, where that is faster."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def runs_bf16_faster(device: torch.device) -> bool:
    """Whether bf16 matrix products are fast on this device: GPUs, and CPUs with AMX."""
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class FrozenCopy:
    """A half-precision copy of a frozen encoder for fast inference; the float32 original stays in the checkpoint.

    Args:
        encoder: the original.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._copy: Any = None
        self._made_from: Any = None

    def forget(self) -> None:
        """Drops the copy of an encoder that is trained: a fused optimizer does not raise the version counters."""
        self._copy = self._made_from = None

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D) float32, in eval mode and without gradient."""
        self._encoder.eval()  # whoever called .train() on the whole model
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            if not runs_bf16_faster(image.device):
                return self._encoder(image.float()).float()
            # The copy follows in-place changes (a checkpoint loaded, a rollback) through the version counters.
            state = (image.device, sum(p._version for p in self._encoder.state_dict().values()))
            if self._made_from != state:
                self._copy, self._made_from = _half_copy(self._encoder), state
            return self._copy(image.bfloat16()).float()


def _half_copy(encoder: nn.Module) -> Any:
    with torch.inference_mode(False):  # made during a validation, used in training too
        half = copy.deepcopy(encoder).to(torch.bfloat16).eval().requires_grad_(False)
        return half.to(memory_format=torch.channels_last)
