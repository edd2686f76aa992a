"""The loss of a batch of class probabilities."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...datamodules.errors import StagewiseError

KINDS = ("nll", "focal")
WEIGHTING = ("none", "inverse_frequency", "effective_number")
_SMALLEST = 1e-7


class FusionObjective(nn.Module):
    """Negative logarithm of the fused probability of the true class.

    Class weights are one mechanism, with mean 1 over the train rows. ``focal`` changes how much an easy row counts, not
    a class (Lin et al. 2017, https://arxiv.org/abs/1708.02002). The ordinal term is the expected distance from the true
    class, ``sum_k p_k |k - y| / (K - 1)``: unlike an argmax it has a gradient. Where a coral head is trained alone, its
    own loss (one binary cross-entropy for each level) stands for the first term.

    Args:
        class_count: (K,) train rows of each class.
        kind: ``nll`` or ``focal``.
        gamma: of ``focal``.
        weighting: of the classes: ``none``, ``inverse_frequency`` or ``effective_number``.
        beta: of ``effective_number``.
        ordinal: weight of the ordinal term; 0 leaves it out.

    Raises:
        StagewiseError: an unknown kind or weighting, a number outside its range, a class without rows.

    >>> FusionObjective([10, 30], weighting="inverse_frequency").weight
    tensor([2.0000, 0.6667])
    """

    weight: Tensor

    def __init__(
        self,
        class_count: Sequence[int],
        kind: str = "nll",
        gamma: float = 2.0,
        weighting: str = "none",
        beta: float = 0.99,
        ordinal: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value, known in (("kind", kind, KINDS), ("weighting", weighting, WEIGHTING)):
            if value not in known:
                raise StagewiseError(f"loss.{name} must be one of {', '.join(known)}, got '{value}'.")
        if not 0 <= beta < 1 or gamma < 0 or ordinal < 0:
            raise StagewiseError(f"loss: beta={beta} must be in [0, 1), gamma={gamma} and ordinal={ordinal} from 0 on.")
        if min(class_count) < 1:
            raise StagewiseError(f"`class_count` has a class without rows: {list(class_count)}; each needs one.")
        self.kind, self.gamma, self.ordinal = kind, gamma, ordinal
        counts = torch.tensor(list(class_count), dtype=torch.float32)
        self.register_buffer("weight", class_weights(counts, weighting, beta))

    def forward(self, out: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """The mean over the rows, float32.

        Args:
            out: ``probability`` (B, K); ``levels`` (B, K - 1) where the coral loss is meant.
            label: (B,).
        """
        p = out["probability"].float()
        true = p.gather(1, label[:, None]).squeeze(1).clamp(min=_SMALLEST)
        loss = -true.log()
        if "levels" in out:
            above = (label[:, None] > torch.arange(p.shape[1] - 1, device=label.device)).float()
            loss = F.binary_cross_entropy_with_logits(out["levels"].float(), above, reduction="none").sum(1)
        if self.kind == "focal":
            loss = (1 - true) ** self.gamma * loss
        if self.ordinal:
            loss = loss + self.ordinal * expected_distance(p, label)
        return (self.weight[label] * loss).mean()


def expected_distance(probability: Tensor, label: Tensor) -> Tensor:
    """(B, K), (B,) -> (B,) classes between truth and answer on average, as a share of K - 1.

    >>> expected_distance(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0]))
    tensor([0.5000])
    """
    classes = probability.shape[1]
    distance = (torch.arange(classes, device=label.device) - label[:, None]).abs()
    return (probability * distance).sum(1) / (classes - 1)


def class_weights(counts: Tensor, weighting: str, beta: float) -> Tensor:
    """(K,) weights with mean 1 over the train rows, so that the learning rate keeps its meaning."""
    if weighting == "none":
        return torch.ones_like(counts)
    weight = 1 / counts if weighting == "inverse_frequency" else (1 - beta) / (1 - beta**counts)
    return weight * counts.sum() / (weight * counts).sum()
