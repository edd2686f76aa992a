"""The picture branch: a network of timm and a head, as one piece that is trained, kept and carried over whole."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...datamodules.errors import CheckpointError, StagewiseError
from ..landslide.ordinal import coral_log_probabilities

log = logging.getLogger(__name__)
HEADS = ("softmax", "coral")


class CoralHead(nn.Module):
    """Log odds of ``y > k``, one direction for all k (Cao et al. 2020, https://arxiv.org/abs/1901.07884).

    Args:
        width: D of the features.
        classes: K.

    >>> CoralHead(4, 3)(torch.zeros(2, 4)).shape
    torch.Size([2, 2])
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.direction = nn.Linear(width, 1, bias=False)
        self.first = nn.Parameter(torch.tensor(float(classes - 2) / 2))
        self.steps = nn.Parameter(torch.zeros(classes - 2))  # through softplus: the levels fall whatever they are

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K - 1), falling."""
        fallen = nn.functional.pad(nn.functional.softplus(self.steps).cumsum(0), (1, 0))
        levels: Tensor = self.direction(features) + self.first - fallen
        return levels


class PictureBranch(nn.Module):
    """P(class | picture).

    Args:
        schema: of the data: ``classes``, ``image.px``, ``image.channels``.
        name: of the architecture, timm's.
        pretrained: True for the weights that timm publishes, a path for others, False for random ones.
        head: ``softmax``; or ``coral``, which knows the order of the classes.
        load: False builds the architecture alone, for weights that come from a checkpoint.
        model: further arguments of ``timm.create_model``.

    Raises:
        StagewiseError: an unknown head.
        CheckpointError: timm does not know the name, or the weights cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        name: str = "densenet121",
        pretrained: bool | str = False,
        head: str = "softmax",
        load: bool = True,
        model: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise StagewiseError(f"branch.head must be one of {', '.join(HEADS)}, got '{head}'.")
        channels, px, classes = int(schema["image"]["channels"]), int(schema["image"]["px"]), len(schema["classes"])
        body = _body(name, pretrained if load else False, channels, dict(model or {}))
        self.body = body.to(memory_format=torch.channels_last)  # faster convolutions, however the pictures lie
        if load and not pretrained:
            log.warning("picture branch (%s): random weights, because branch.pretrained=false", name)
        self.width = _width(self.body, channels, px)
        self.head = CoralHead(self.width, classes) if head == "coral" else nn.Linear(self.width, classes)
        self.coral = head == "coral"
        known: Mapping[str, Any] = getattr(self.body, "pretrained_cfg", None) or {}
        for key, usual in (("mean", (0.5,)), ("std", (0.25,))):
            value = torch.tensor(known.get(key) or usual, dtype=torch.float32)
            # fixed numbers, whatever is in the picture: its absolute values are the signal
            value = value if len(value) == channels else value.mean().expand(channels)
            self.register_buffer(key, value.clone().view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, S, S) in [0, 1] -> ``probability`` (B, K), ``features`` (B, D), with coral ``levels`` (B, K - 1)."""
        features: Tensor = self.body((image - self.mean) / self.std).float()
        answer = self.head(features)
        if self.coral:
            return {"probability": coral_log_probabilities(answer).exp(), "features": features, "levels": answer}
        return {"probability": answer.softmax(-1), "features": features}


def _body(name: str, pretrained: bool | str, channels: int, options: dict[str, Any]) -> nn.Module:
    import timm

    source: dict[str, Any] = {"pretrained": bool(pretrained)}
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise CheckpointError(f"no weights at branch.pretrained='{pretrained}'; pass a file, true or false.")
        source["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        found: nn.Module = timm.create_model(name, in_chans=channels, num_classes=0, **source, **options)
    except Exception as error:  # timm's own, of the hub's client, and of torch.load: no common base
        raise CheckpointError(
            f"picture branch: cannot make branch.name='{name}' with pretrained={pretrained}: {error}"
        ) from error
    return found


@torch.no_grad()
def _width(body: nn.Module, channels: int, px: int) -> int:
    """D of what the body answers; some networks of timm say another number than they give."""
    training = body.training
    features = body.eval()(torch.zeros(1, channels, px, px))
    body.train(training)
    return int(features.shape[-1])
