"""Low-rank changes of a frozen image tower."""

import math

import torch
from torch import Tensor, nn

from ...datamodules.errors import StagewiseError


class LowRankAdapters(nn.Module):
    """LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): ``W + alpha / rank * B A`` for each block's matrices.

    The tower itself is not touched, so its weights stay loadable as they are published; :meth:`weights` gives what it
    runs with, through ``torch.func.functional_call``.

    Args:
        tower: whose matrices are changed: the 2-D weights below ``blocks``.
        rank: of the change.
        alpha: scale; ``alpha == rank`` adds ``B A`` as it is.
        blocks: part of the names of the parameters meant.

    Raises:
        StagewiseError: a rank below 1, or a tower without such matrices.

    >>> tower = nn.ModuleDict({"resblocks": nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))})
    >>> adapters = LowRankAdapters(tower, rank=2)
    >>> adapters.names, sum(p.numel() for p in adapters.parameters())
    (['resblocks.0.weight', 'resblocks.1.weight'], 36)
    """

    def __init__(self, tower: nn.Module, rank: int = 8, alpha: float = 16.0, blocks: str = "resblocks") -> None:
        super().__init__()
        if rank < 1:
            raise StagewiseError(f"`lora.rank` must be at least 1, got {rank}.")
        chosen = {name: p for name, p in tower.named_parameters() if f"{blocks}." in name and p.ndim == 2}
        if not chosen:
            raise StagewiseError(f"the image tower has no matrices below '{blocks}'; LoRA needs a transformer (ViT-…).")
        self.names, self.scale = list(chosen), alpha / rank
        self.down = nn.ParameterList([_uniform(rank, p.shape[1]) for p in chosen.values()])
        self.up = nn.ParameterList([nn.Parameter(torch.zeros(p.shape[0], rank)) for p in chosen.values()])

    def weights(self, tower: nn.Module) -> dict[str, Tensor]:
        """Name -> changed matrix, of the tower that the adapters were made for."""
        parts = zip(self.names, self.down, self.up, strict=True)
        return {name: tower.get_parameter(name) + self.scale * (up @ down) for name, down, up in parts}

    def forward(self, tower: nn.Module, inputs: Tensor) -> Tensor:
        """What the changed tower answers."""
        found: Tensor = torch.func.functional_call(tower, self.weights(tower), (inputs,))
        return found

    @torch.no_grad()
    def merge(self, tower: nn.Module) -> None:
        """Writes the changed matrices into the tower, which then answers the same without the adapters."""
        for name, weight in self.weights(tower).items():
            tower.get_parameter(name).copy_(weight)


def _uniform(rank: int, width: int) -> nn.Parameter:
    bound = 1 / math.sqrt(width)
    return nn.Parameter(torch.empty(rank, width).uniform_(-bound, bound))
