"""Channels of a raster -> logits of each pixel's class."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ...datamodules.errors import StagewiseError
from .attention import CBAM
from .encoders import encoder_and_decoder
from .heads import ClassHead

_LARGEST = torch.finfo(torch.float32).max


class LandslideNetwork(nn.Module):
    """U-Net (smp) with CBAM on the deepest features, dropout and an ordinal head.

    Args:
        channels: C, any number.
        classes: K, low to high.
        statistics: ``mean``, ``std``, ``low`` and ``high`` of each channel over valid train pixels, physical units; a
            missing one is 0, 1, no bound. Values beyond the bounds are held to them: ground higher than any seen is
            seen as the highest, and a class of land cover that train lacked stays unseen.
        encoder: smp's name, or timm's with ``tu-`` before it.
        weights: of the encoder: None (random), a name of smp's such as ``imagenet``, or a file.
        attention: CBAM on the deepest features.
        dropout: share of the features' channels dropped before the head.
        head: ``softmax``, ``coral`` or ``corn``, see :class:`ClassHead`.
        decoder_channels: one number a level, 3 to 5 levels.
        pixel_path: adds scores that are linear in the pixel's own channels (wide and deep: Cheng et al. 2016,
            https://arxiv.org/abs/1606.07792). smp's U-Net halves the picture before its first skip and blurs what one
            pixel holds. The U-Net's own scores start at 0: before it has learned, the answer is a logistic regression.

    Raises:
        StagewiseError: statistics that do not fit ``channels`` or hold no number, an unknown encoder or head.
        CheckpointError: ``weights`` that cannot be had.

    >>> network = LandslideNetwork(4, 3, encoder="resnet18", decoder_channels=(16, 8, 4)).eval()
    >>> network(torch.randn(1, 4, 20, 30))["logits"].shape
    torch.Size([1, 3, 20, 30])
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        statistics: Mapping[str, Sequence[float]] | None = None,
        encoder: str = "efficientnet-b4",
        weights: str | None = None,
        attention: bool = True,
        dropout: float = 0.4,
        head: str = "softmax",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        pixel_path: bool = False,
    ) -> None:
        super().__init__()
        for name, default in {"mean": 0.0, "std": 1.0, "low": -_LARGEST, "high": _LARGEST}.items():
            self.register_buffer(name, _statistic(name, (statistics or {}).get(name), default, channels))
        if not bool((self.std > 0).all()):
            at = (self.std.flatten() <= 0).nonzero().flatten().tolist()
            raise StagewiseError(f"`std` must be positive, and is not in channel(s) {at}; a constant channel gets 1.")
        self.head = ClassHead(decoder_channels[-1], classes, head, dropout)
        self.pixel = self._beside_the_head(channels) if pixel_path else None
        self.stride_px = 2 ** len(decoder_channels)
        self.encoder, self.decoder = encoder_and_decoder(encoder, channels, weights, tuple(decoder_channels))
        deepest: int = self.encoder.out_channels[-1]  # type: ignore[index, assignment]
        self.attention = CBAM(deepest) if attention else nn.Identity()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of each pixel; the border is repeated up to a multiple of the encoder's stride.

        Args:
            image: (B, C, H, W) in physical units, NaN where there is no data.

        Returns:
            Of :meth:`ClassHead.forward`: ``logits`` (B, K, H, W), and ``levels`` or ``conditionals``.
        """
        height, width = image.shape[-2:]
        held = torch.minimum(torch.maximum(image, self.low), self.high)  # NaN stays NaN
        x = torch.nan_to_num((held - self.mean) / self.std, nan=0.0)  # the mean
        x = F.pad(x, (0, -width % self.stride_px, 0, -height % self.stride_px), mode="replicate")
        features = list(self.encoder(x))
        features[-1] = self.attention(features[-1])
        out: dict[str, Tensor] = self.head(self.decoder(features), None if self.pixel is None else self.pixel(x))
        return {name: value[..., :height, :width] for name, value in out.items()}

    def _beside_the_head(self, channels: int) -> nn.Conv2d:
        score = self.head.score
        pixel = nn.Conv2d(channels, score.out_channels, 1)
        for start in (*pixel.parameters(), score.weight):
            nn.init.zeros_(start)
        return pixel

    @contextmanager
    def mc_dropout(self, on: bool = True) -> Iterator[None]:
        """Monte-Carlo dropout (Gal and Ghahramani 2016, https://arxiv.org/abs/1506.02142) in eval mode.

        Dropout layers alone are turned on; batch normalisation keeps its running statistics.

        Args:
            on: False changes nothing.

        Raises:
            StagewiseError: the network was built without dropout, so that all its answers would be the same.
        """
        if on and not self.head.dropout.p:
            raise StagewiseError("mc_dropout needs dropout, and the network has 0.0; train with network.dropout=0.4.")
        layers = [layer for layer in self.modules() if isinstance(layer, _DropoutNd) and on]
        before = [layer.training for layer in layers]
        try:
            for layer in layers:
                layer.train()
            yield
        finally:
            for layer, training in zip(layers, before):
                layer.train(training)


def _statistic(name: str, values: Sequence[float] | None, default: float, channels: int) -> Tensor:
    numbers = torch.tensor([default] * channels if values is None else list(values), dtype=torch.float32)
    if len(numbers) != channels:
        raise StagewiseError(f"`{name}` has {len(numbers)} numbers, there are {channels} channels.")
    if not bool(numbers.isfinite().all()):
        at = (~numbers.isfinite()).nonzero().flatten().tolist()
        raise StagewiseError(
            f"`{name}` must be numbers, and is not in channel(s) {at}; a channel without data gets 0, 1."
        )
    return numbers.view(-1, 1, 1)
