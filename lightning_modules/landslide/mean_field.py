"""Mean-field inference in a fully connected conditional random field."""

from collections.abc import Callable

import torch
from torch import Tensor

from .permutohedral import PermutohedralLattice
from .pieces import pieces, side_by_side

MIN_PROBABILITY = 1e-5


def mean_field(probability: Tensor, kernels: list[PermutohedralLattice], iterations: int, threads: int = 1) -> Tensor:
    """Marginals of a CRF with Potts compatibility.

    Args:
        probability: (K, N); its logarithm is the negative unary energy.
        kernels: scaled by their weights.
        iterations: at least 1.
        threads: that share the pixels, on a CPU.

    Returns:
        (K, N), sums to 1.
    """
    log_p = probability.clamp(MIN_PROBABILITY, 1).log_()
    unary = log_p[:-1] - log_p[-1:]  # all is against the last class, (K - 1, N), whose probability follows
    del log_p
    parts = pieces(unary.shape[1], unary.device)
    lattices = _filtered(kernels, parts, lambda part: _softmax_against_0(unary[:, part]), threads)
    for kernel in kernels:
        unary -= kernel.filter(torch.ones_like(unary[:1]))  # messages of all classes together

    def updated(part: slice) -> Tensor:
        messages = torch.zeros_like(unary[:, part])
        for kernel, lattice in zip(kernels, lattices):
            kernel.read(part, lattice, messages)
        return _softmax_against_0(messages.add_(messages.sum(0)).add_(unary[:, part]))

    for _ in range(iterations - 1):
        lattices = _filtered(kernels, parts, updated, threads)
    marginal = torch.empty_like(probability)

    def finish(share: list[slice]) -> None:
        for part in share:
            marginal[:, part] = updated(part)

    side_by_side(finish, parts, threads)
    return marginal


def _filtered(
    kernels: list[PermutohedralLattice], parts: list[slice], marginal: Callable[[slice], Tensor], threads: int
) -> list[Tensor]:
    """Each kernel's lattice of all classes but the last; marginals are made and used part by part, never all held."""

    def spread(share: list[slice]) -> list[Tensor]:
        lattices: list[Tensor] = []
        for part in share:
            values = marginal(part)[:-1]
            lattices = lattices or [kernel.empty(len(values)) for kernel in kernels]
            for kernel, lattice in zip(kernels, lattices):
                kernel.spread(values, part, lattice)
        return lattices

    by_kernel = zip(*side_by_side(spread, parts, threads))
    return [kernel.blur(torch.stack(of_threads).sum(0)) for kernel, of_threads in zip(kernels, by_kernel)]


def _softmax_against_0(logits: Tensor) -> Tensor:
    """(K - 1, n) -> (K, n): softmax with a last logit of 0."""
    return torch.cat([logits, torch.zeros_like(logits[:1])]).softmax(0)
