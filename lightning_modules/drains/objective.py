"""The loss of a batch of objects, with what corrects the imbalance of the classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...datamodules.errors import StagewiseError


class DrainObjective(nn.Module):
    """Cross-entropy over the classes that an object's type allows.

    - ``inverse_frequency``: weights ``1 / n`` with mean 1 over the train objects.
    - ``effective_number``: weights ``(1 - beta) / (1 - beta ** n)`` (Cui et al. 2019, https://arxiv.org/abs/1901.05555).
    - ``focal``: ``(1 - p) ** gamma`` (Lin et al. 2017, https://arxiv.org/abs/1708.02002).
    - ``logit_adjustment``: ``logits + tau * log frequency`` in training only (Menon et al. 2020,
      https://arxiv.org/abs/2007.07314).

    Args:
        class_count: objects of each class in train, oversampled ones not counted.
        corrections: some of the above; ``oversample`` is the data's and changes nothing here.
        gamma: of ``focal``.
        beta: of ``effective_number``.
        tau: of ``logit_adjustment``.
        label_smoothing: share of the target spread over the allowed classes.

    Raises:
        StagewiseError: a class without objects, a number outside its range.

    >>> objective = DrainObjective([10, 30], ["inverse_frequency"])
    >>> objective.weight
    tensor([2.0000, 0.6667])
    """

    weight: Tensor
    prior: Tensor

    def __init__(
        self,
        class_count: Sequence[int],
        corrections: Sequence[str] = (),
        gamma: float = 2.0,
        beta: float = 0.999,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if min(class_count) < 1:
            raise StagewiseError(f"`class_count` has a class without objects: {list(class_count)}; each needs one.")
        for name, value, top in (("beta", beta, 1), ("label_smoothing", label_smoothing, 1)):
            if not 0 <= value < top:
                raise StagewiseError(f"loss.{name} must be a share in [0, 1), got {value}.")
        if gamma < 0:
            raise StagewiseError(f"loss.gamma must not be negative, got {gamma}.")
        self.corrections, self.gamma, self.tau, self.label_smoothing = tuple(corrections), gamma, tau, label_smoothing
        counts = torch.tensor(list(class_count), dtype=torch.float32)
        self.register_buffer("weight", _weights(counts, self.corrections, beta))
        self.register_buffer("prior", (counts / counts.sum()).log())

    def forward(self, logits: Tensor, label: Tensor, train: bool = True) -> Tensor:
        """The mean over the batch, float32.

        Args:
            logits: (B, K); -inf where the type does not allow the class.
            label: (B,) of an allowed class.
            train: False leaves the correction of ``logit_adjustment`` out, as an evaluation's logits do.
        """
        logits = logits.float()
        if train and "logit_adjustment" in self.corrections:
            logits = logits + self.tau * self.prior
        log_p = F.log_softmax(logits, dim=-1)
        taken = log_p.gather(1, label[:, None]).squeeze(1)
        loss = -taken
        if self.label_smoothing:
            allowed = logits.isfinite()
            spread = -log_p.masked_fill(~allowed, 0.0).sum(1) / allowed.sum(1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * spread
        if "focal" in self.corrections:
            loss = (1 - taken.exp()) ** self.gamma * loss
        return (self.weight[label] * loss).mean()


def _weights(counts: Tensor, corrections: Sequence[str], beta: float) -> Tensor:
    if "inverse_frequency" in corrections:
        weight = 1 / counts
    elif "effective_number" in corrections:
        weight = (1 - beta) / (1 - beta**counts)
    else:
        return torch.ones_like(counts)
    return weight * counts.sum() / (weight * counts).sum()  # the mean over the objects is 1: the rate stays what it is
