"""Focal and Dice loss of dense labels. Pure functions; ignored pixels give no loss and no gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

MIN_REST = 1e-7  # of 1 - p: below it, powers smaller than 1 have no finite slope


def shares_of(target: Tensor, classes: int, labelled: Tensor | None = None) -> Tensor:
    """How much of each pixel belongs to each class.

    Args:
        target: (B, H, W) class, negative is ignored; or (B, K, H, W) soft labels that sum to 1.
        classes: K.
        labelled: (B, H, W) bool, False is ignored; for soft labels.

    Returns:
        (B, K, H, W), 0 in all classes of an ignored pixel.

    >>> shares_of(torch.tensor([[[2, -1]]]), 3).flatten(1).tolist()
    [[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]]
    """
    if target.is_floating_point():
        return target if labelled is None else torch.where(labelled.unsqueeze(1), target, 0)
    shares = torch.stack([target == k for k in range(classes)], 1).float()
    return shares if labelled is None else shares * labelled.unsqueeze(1)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    class_weights: Sequence[float],
    gamma: float = 2.5,
    labelled: Tensor | None = None,
) -> Tensor:
    """Focal loss of a softmax (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    ``- sum_k q_k w_k (1 - p_k)^gamma log p_k``, divided by the number of labelled pixels and not by the sum of their
    weights: with that, the weight would cancel out in a batch of one class, which sparse labels make often.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) class, negative is ignored; or (B, K, H, W) soft labels.
        class_weights: K numbers.
        gamma: 0 is weighted cross entropy.
        labelled: (B, H, W) bool, False is ignored; for soft labels.

    Returns:
        Mean over the labelled pixels; 0 without any.

    >>> logits, mask = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)
    >>> round(focal_loss(logits, mask, [3.0, 1.0], gamma=2.0).item() / torch.tensor(2.0).log().item(), 4)
    0.75
    """
    log_p, shares = logits.log_softmax(1), shares_of(target, logits.shape[1], labelled)
    weights = torch.tensor(class_weights, dtype=logits.dtype, device=logits.device).view(-1, 1, 1)
    rest = (1 - log_p.exp()).clamp(min=MIN_REST)
    return -(shares * weights * rest.pow(gamma) * log_p).sum() / shares.sum().clamp(min=1)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016, https://arxiv.org/abs/1606.04797), mean over the classes that are there.

    Sums run over the labelled pixels of the whole batch. Hard labels only: mass moved to a neighbour would make a
    class present that is not.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) class, negative is ignored.

    Returns:
        ``1 - 2 |P T| / (|P| + |T|)``; 0 without labels.

    >>> mask = torch.tensor([[[0, 1, -1]]])
    >>> round(dice_loss(torch.tensor([[[[9.0, -9.0, 3.0]], [[-9.0, 9.0, 0.0]]]]), mask).item(), 4)
    0.0
    """
    return _dice_of(_dice_sums(logits, mask))


class DiceOfAll(Metric):
    """The same loss over all batches and processes: a mean of the batches' losses would depend on how they are cut.

    Args:
        classes: K.

    >>> loss, mask = DiceOfAll(2), torch.tensor([[[0, 1, -1]]])
    >>> loss.update(torch.tensor([[[[9.0, -9.0, 3.0]], [[-9.0, 9.0, 0.0]]]]), mask)
    >>> round(loss.compute().item(), 4)
    0.0
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(3, classes), dist_reduce_fx="sum")

    def update(self, logits: Tensor, mask: Tensor) -> None:
        """Adds a batch; see :func:`dice_loss`."""
        self.sums += _dice_sums(logits.detach().float(), mask)

    def compute(self) -> Tensor:
        """The loss as a scalar."""
        return _dice_of(self.sums)


def _dice_sums(logits: Tensor, mask: Tensor) -> Tensor:
    """(3, K): what prediction and truth share, the predicted, the true."""
    truth = shares_of(mask, logits.shape[1])
    p = logits.softmax(1) * (mask >= 0).unsqueeze(1)
    return torch.stack([part.sum((0, 2, 3)) for part in (p * truth, p, truth)])


def _dice_of(sums: Tensor) -> Tensor:
    shared, predicted, true = sums
    there = (true > 0).to(sums.dtype)
    return ((1 - 2 * shared / (predicted + true).clamp(min=MIN_REST)) * there).sum() / there.sum().clamp(min=1)
