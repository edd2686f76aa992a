"""Ordered classes: cumulative odds, their losses, and the class probabilities that they imply. Pure functions.

All heads speak one language: logits (B, K, H, W) whose softmax is the class probabilities. A CORAL or CORN head gives
the logarithms of the probabilities that its levels imply, so that whichever head was trained is what predicts.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...datamodules.errors import StagewiseError

MIN_GAP = 1e-6  # between two levels; below it the class between them would have no probability at all


def soft_label_table(classes: int, tau: float) -> Tensor:
    """Soft ordinal labels: the true class shares its mass with its neighbours, ``q_k ~ exp(-|k - y| / tau)``.

    For the loss alone: class frequencies, samplers and scores go on counting hard pixels.

    Args:
        classes: K.
        tau: in classes; 0.5 leaves 0.78 to 0.87 of the mass with the true class of three.

    Returns:
        (K, K): the row of the true class, sums to 1.

    Raises:
        StagewiseError: ``tau`` is not positive.

    >>> soft_label_table(3, tau=0.5)[1].round(decimals=2).tolist()
    [0.10999999940395355, 0.7900000214576721, 0.10999999940395355]
    """
    if not tau > 0:
        raise StagewiseError(f"`soft_labels` must be a positive number of classes, got {tau}; null is hard labels.")
    k = torch.arange(classes, dtype=torch.float64)
    return torch.softmax(-(k[:, None] - k).abs() / tau, 1).float()


def cumulative_log_odds(logits: Tensor) -> Tensor:
    """Log odds of ``y > k`` under softmax: ``lse(z_{>k}) - lse(z_{<=k})``.

    A constant added to all logits changes nothing.

    Args:
        logits: (B, K, ...).

    Returns:
        (B, K - 1, ...), falling in k.

    >>> p = torch.tensor([[0.5, 0.3, 0.2]])
    >>> cumulative_log_odds(p.log()).sigmoid().round(decimals=4).tolist()  # P(y > 0), P(y > 1)
    [[0.5, 0.20000000298023224]]
    """
    splits = range(1, logits.shape[1])
    return torch.stack([logits[:, k:].logsumexp(1) - logits[:, :k].logsumexp(1) for k in splits], 1)


def coral_loss(levels: Tensor, mask: Tensor) -> Tensor:
    """CORAL (Cao, Mirjalili and Raschka 2020, https://arxiv.org/abs/1901.07884): one binary cross entropy a level.

    Args:
        levels: (B, K - 1, ...) log odds of ``y > k``: of a CORAL head, or of :func:`cumulative_log_odds`.
        mask: (B, ...) class; negative is ignored.

    Returns:
        Sum over the levels, mean over the labelled pixels; 0 without any.

    >>> levels = torch.tensor([[[4.0], [-4.0]]])  # surely y > 0, surely not y > 1
    >>> [round(coral_loss(levels, torch.tensor([[y]])).item(), 2) for y in (0, 1, 2, -1)]
    [4.04, 0.04, 4.04, 0.0]
    """
    k = torch.arange(levels.shape[1], device=mask.device).view(-1, *[1] * (mask.ndim - 1))
    above = (mask.unsqueeze(1) > k).to(levels.dtype)
    each = F.binary_cross_entropy_with_logits(levels, above, reduction="none")
    labelled = (mask >= 0).unsqueeze(1)
    return (each * labelled).sum() / labelled.sum().clamp(min=1)


def corn_loss(conditionals: Tensor, mask: Tensor) -> Tensor:
    """CORN (Shi, Cao and Raschka 2021, https://arxiv.org/abs/2111.08851): level k learns from pixels with ``y >= k``.

    Args:
        conditionals: (B, K - 1, ...) log odds of ``y > k`` given ``y >= k``.
        mask: (B, ...) class; negative is ignored.

    Returns:
        Mean over all pairs of a level and a pixel that it learns from; 0 without any.

    >>> corn_loss(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 2]])).item()  # log 2
    0.6931471824645996
    """
    k = torch.arange(conditionals.shape[1], device=mask.device).view(-1, *[1] * (mask.ndim - 1))
    label = mask.unsqueeze(1)
    each = F.binary_cross_entropy_with_logits(conditionals, (label > k).to(conditionals.dtype), reduction="none")
    learns = label >= k  # never true of a negative label
    return (each * learns).sum() / learns.sum().clamp(min=1)


def coral_log_probabilities(levels: Tensor) -> Tensor:
    """Log probability of each class from a CORAL head's levels.

    ``log(sigmoid(a) - sigmoid(b)) = logsigmoid(a) + logsigmoid(-b) + log(1 - exp(b - a))``, exact far out as well.

    Args:
        levels: (B, K - 1, ...) log odds of ``y > k``, falling in k.

    Returns:
        (B, K, ...).

    >>> coral_log_probabilities(torch.tensor([[2.0, -1.0]])).exp().sum().item()
    1.0
    """
    gap = (levels[:, :-1] - levels[:, 1:]).clamp(min=MIN_GAP)
    above = torch.cat([torch.zeros_like(levels[:, :1]), F.logsigmoid(levels)], 1)
    below = torch.cat([F.logsigmoid(-levels), torch.zeros_like(levels[:, :1])], 1)
    between = torch.log(-torch.expm1(-gap))
    return above + below + F.pad(between, [0, 0] * (levels.ndim - 2) + [1, 1])


def corn_log_probabilities(conditionals: Tensor) -> Tensor:
    """Log probability of each class from a CORN head: the product of the conditional ones.

    Args:
        conditionals: (B, K - 1, ...) log odds of ``y > k`` given ``y >= k``.

    Returns:
        (B, K, ...).

    >>> corn_log_probabilities(torch.zeros(1, 2)).exp().tolist()
    [[0.5, 0.25, 0.25]]
    """
    nought = torch.zeros_like(conditionals[:, :1])
    reached = torch.cat([nought, F.logsigmoid(conditionals).cumsum(1)], 1)  # log P(y >= k)
    return reached + torch.cat([F.logsigmoid(-conditionals), nought], 1)


def class_probabilities(out: dict[str, Tensor]) -> Tensor:
    """What the network predicts, whichever head it has.

    Args:
        out: of :class:`LandslideNetwork`.

    Returns:
        (B, K, H, W) float32, sums to 1.

    >>> class_probabilities({"logits": torch.zeros(1, 4, 1, 1)}).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return out["logits"].float().softmax(1)
