"""Focal + CORAL in one pass with the gradient worked out by hand: the same numbers as :mod:`losses`, much sooner.

Plain autograd writes and reads back some fifty arrays of the logits' size. Here the pixels go through in blocks that
stay near the cache, each block gives its loss and its gradient at once, and only the gradient is kept. Selections are
products with 0 and 1: ``torch.where`` and ``pow`` take 10 to 20 times a product's time on a CPU.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .losses import MIN_REST

MIN_LOG_P = -80.0  # its exp is still a normal float32


def focal_coral(
    logits: Tensor,
    mask: Tensor,
    class_weights: Sequence[float],
    gamma: float = 2.5,
    coral_weight: float = 0.3,
    soft_labels: Sequence[Sequence[float]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``focal + coral_weight * CORAL`` of :func:`losses.focal_loss` and the softmax-consistent :func:`coral_loss`.

    Args:
        logits: (B, K, H, W); a class counts as no less likely than ``exp(-80)``.
        mask: (B, H, W) class, negative is ignored.
        class_weights: K numbers, of the focal part.
        gamma: of the focal part.
        coral_weight: factor on the CORAL part.
        soft_labels: (K, K), see :func:`ordinal.soft_label_table`; None is hard labels.

    Returns:
        The weighted sum, which has a gradient, and the two parts, which have none; means over the labelled pixels.

    >>> logits, mask = torch.zeros(1, 3, 1, 2), torch.tensor([[[1, -1]]])
    >>> [round(part.item(), 4) for part in focal_coral(logits, mask, [1.0, 1.0, 1.0], gamma=0.0)]
    [1.3419, 1.0986, 0.8109]
    """
    total, focal, coral = _FocalCoral.apply(logits, mask, class_weights, gamma, coral_weight, soft_labels)
    return total, focal, coral


def with_gradient(
    logits: Tensor,
    mask: Tensor,
    class_weights: Sequence[float],
    gamma: float,
    coral_weight: float,
    soft_labels: Sequence[Sequence[float]] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal, CORAL, and the gradient (B, K, H, W) of their weighted sum; arguments of :func:`focal_coral`."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    inverse = torch.count_nonzero(mask >= 0).clamp(min=1).to(logits.dtype).reciprocal()
    parts = []
    for z, y, slopes in _blocks(logits, mask, gradient):
        shares = class_shares(y, len(class_weights), soft_labels, logits.dtype).mul_(inverse)
        log_p = z.log_softmax(0).clamp_(min=MIN_LOG_P)
        p = log_p.exp()
        focal, own = _focal_terms(log_p, p, shares, class_weights, gamma)
        coral = _coral_terms(log_p, p, shares, own, coral_weight)
        slopes.copy_(own.addcmul_(p, _sum(own), value=-1))  # from log p to the logits
        parts.append(torch.stack([focal, coral]))
    focal, coral = torch.stack(parts).sum(0).unbind()
    return focal, coral, gradient


class _FocalCoral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, mask: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
        focal, coral, gradient = with_gradient(logits, mask, *settings)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(focal, coral)
        return focal + settings[2] * coral, focal, coral

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], *[None] * 5


def _blocks(logits: Tensor, mask: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views (K, ...), (...) and (K, ...): a sample at a time for the cache of a CPU, all at once elsewhere."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        yield logits.movedim(1, 0), mask, gradient.movedim(1, 0)
    else:
        yield from zip(logits, mask, gradient)


def class_shares(mask: Tensor, classes: int, table: Sequence[Sequence[float]] | None, dtype: torch.dtype) -> Tensor:
    """The share of each class, (K, ...), for a mask (...); 0 where it is negative."""
    label = mask.to(dtype)
    hard = label.new_empty(classes, *label.shape)
    for k in range(classes):
        torch.eq(label, k, out=hard[k])
    if table is None:
        return hard
    return (torch.tensor(table, dtype=dtype, device=mask.device).T @ hard.flatten(1)).view_as(hard)


def _focal_terms(
    log_p: Tensor, p: Tensor, shares: Tensor, weights: Sequence[float], gamma: float
) -> tuple[Tensor, Tensor]:
    """``-sum q w u^gamma log p`` with ``u = 1 - p``, and its slope to each log p, as if they were free."""
    rest = (1 - p).clamp_(min=MIN_REST)
    factor = rest.log().mul_(gamma - 1).exp_().mul_(shares)  # exp(log) is a quarter of pow's time
    for k, weight in enumerate(weights):
        factor[k] *= weight
    value = (factor * rest).mul_(log_p).sum().neg()
    return value, rest.neg_().addcmul_(p, log_p, value=gamma).mul_(factor)


def _coral_terms(log_p: Tensor, p: Tensor, shares: Tensor, slopes: Tensor, weight: float) -> Tensor:
    """``-sum q_A log p_A`` over both sides A of each level; adds ``weight`` times its slopes to each log p."""
    value, classes = p.new_zeros(()), len(p)
    for k in range(1, classes):
        for side in (slice(0, k), slice(k, classes)):
            if side.stop - side.start == 1:
                q, log_side = shares[side], log_p[side]
                slopes[side].sub_(q, alpha=weight)
            else:
                q, p_side = _sum(shares[side]), _sum(p[side])
                log_side = p_side.log()
                slopes[side].addcmul_(p[side], q / p_side, value=-weight)
            value = value - (q * log_side).sum()
    return value


def _sum(rows: Tensor) -> Tensor:
    """``rows.sum(0)``, in a third of its time for a few rows."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
