"""Attention on the deepest features: which channels count, then where."""

import torch
from torch import Tensor, nn


class CBAM(nn.Module):
    """Channel attention, then spatial attention (Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521).

    The channel's weight comes from its global average and maximum through one shared MLP; the place's weight from the
    mean and the maximum over the channels through one convolution.

    Args:
        channels: C of the features.
        reduction: the MLP's hidden layer has ``C / reduction`` units, at least one.
        kernel_px: side of the convolution's window, odd.

    >>> CBAM(32)(torch.ones(2, 32, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_px: int = 7) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.place = nn.Conv2d(2, 1, kernel_px, padding=kernel_px // 2, bias=False)

    def channel_weights(self, features: Tensor) -> Tensor:
        """Weights in (0, 1), (B, C, 1, 1)."""
        pooled = torch.stack([features.mean((2, 3)), features.amax((2, 3))])  # (2, B, C)
        return torch.sigmoid(self.mlp(pooled).sum(0))[:, :, None, None]

    def place_weights(self, features: Tensor) -> Tensor:
        """Weights in (0, 1), (B, 1, H, W)."""
        pooled = torch.stack([features.mean(1), features.amax(1)], 1)  # (B, 2, H, W)
        return torch.sigmoid(self.place(pooled))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        features = features * self.channel_weights(features)
        return features * self.place_weights(features)
