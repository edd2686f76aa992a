"""The heads: features of the decoder -> logits of the classes."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...datamodules.errors import StagewiseError
from .ordinal import coral_log_probabilities, corn_log_probabilities

KINDS = ("softmax", "coral", "corn")


class ClassHead(nn.Module):
    """Dropout, then one of three convolutions.

    Whole channels are dropped: a pixel's neighbours hold almost the same features, so dropped pixels would hide nothing
    (Tompson et al. 2015, https://arxiv.org/abs/1411.4280).

    Args:
        width: channels of the features.
        classes: K.
        kind: ``softmax`` (K scores), ``coral`` (one shared score with K - 1 falling biases) or ``corn`` (K - 1
            conditional scores).
        dropout: share of the channels.

    Raises:
        StagewiseError: an unknown kind, fewer than two classes, a dropout outside [0, 1).

    >>> out = ClassHead(16, 3, "coral", dropout=0.0)(torch.randn(1, 16, 4, 4))
    >>> {name: tuple(value.shape) for name, value in out.items()}
    {'logits': (1, 3, 4, 4), 'levels': (1, 2, 4, 4)}
    """

    def __init__(self, width: int, classes: int, kind: str = "softmax", dropout: float = 0.4) -> None:
        super().__init__()
        if kind not in KINDS:
            raise StagewiseError(f"`head` must be one of {', '.join(KINDS)}, got '{kind}'.")
        if classes < 2:
            raise StagewiseError(f"`classes` must be at least 2, got {classes}.")
        if not 0 <= dropout < 1:
            raise StagewiseError(f"`dropout` must be a share in [0, 1), got {dropout}; 40 % is 0.4.")
        self.kind = kind
        self.dropout = nn.Dropout2d(dropout)
        scores = {"softmax": classes, "coral": 1, "corn": classes - 1}[kind]
        self.score = nn.Conv2d(width, scores, 3, padding=1, bias=kind != "coral")
        if kind == "coral":
            self._even_biases(classes)

    def _even_biases(self, classes: int) -> None:
        """Biases under which a score of 0 gives every class the same probability."""
        odds = [math.log((classes - k) / k) for k in range(1, classes)]
        gaps = torch.tensor([a - b for a, b in pairwise(odds)])
        inverse_softplus = gaps + torch.log(-torch.expm1(-gaps))
        self.steps = nn.Parameter(torch.cat([torch.tensor(odds[:1]), inverse_softplus]))  # (K - 1)

    def biases(self) -> Tensor:
        """(K - 1) of the CORAL head. They fall by construction, so that no class gets a negative probability."""
        first, steps = self.steps[:1], self.steps[1:]
        return torch.cat([first, first - F.softplus(steps).cumsum(0)])

    def forward(self, features: Tensor, beside: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the log odds that they come from.

        Args:
            features: (B, width, H, W).
            beside: (B, scores, H, W) to add to the scores of the features, or None.

        Returns:
            ``logits`` (B, K, H, W) float32 whose softmax is the class probabilities; of a CORAL head also ``levels``
            (B, K - 1, H, W), log odds of ``y > k``; of a CORN head ``conditionals``, the same given ``y >= k``.
        """
        score = self.score(self.dropout(features)).float()
        score = score if beside is None else score + beside
        if self.kind == "softmax":
            return {"logits": score}
        if self.kind == "corn":
            return {"logits": corn_log_probabilities(score), "conditionals": score}
        levels = score + self.biases().view(-1, 1, 1)
        return {"logits": coral_log_probabilities(levels), "levels": levels}
