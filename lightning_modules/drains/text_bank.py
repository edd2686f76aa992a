"""The texts of the nine candidates, encoded once."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...datamodules.drains.vocabulary import CLASSES
from ..clip import TextTower
from .prompts import PromptBuilder

_TEXTS_AT_ONCE = 256


class TextBank(nn.Module):
    """Embedding of every class in every variant of the prompt (position, context), the mean over the templates.

    A frozen text tower gives the same embeddings at every step, so they are computed once and travel in the checkpoint;
    the tower itself is not needed again.

    Args:
        builder: of the prompts.
        width: D of the embeddings.

    >>> bank = TextBank(PromptBuilder(), width=8)
    >>> bank(torch.tensor([0, 2]), torch.tensor([0, 0])).shape
    torch.Size([2, 9, 8])
    """

    embedding: Tensor

    def __init__(self, builder: PromptBuilder, width: int) -> None:
        super().__init__()
        self.builder = builder
        self.register_buffer("embedding", torch.zeros(len(builder), len(CLASSES), width))  # (V, K, D)

    @torch.no_grad()
    def fill(self, tower: TextTower) -> None:
        """Encodes every variant."""
        for variants in torch.arange(len(self.builder)).split(
            max(1, _TEXTS_AT_ONCE // (len(CLASSES) * len(self.builder.templates)))
        ):
            self.embedding[variants] = encode(tower, self.builder, variants).to(self.embedding)

    def forward(self, position: Tensor, context: Tensor) -> Tensor:
        """(B), (B) -> (B, K, D) of length 1."""
        return self.embedding[self.builder.variant_of(position, context).to(self.embedding.device)]


def encode(tower: TextTower, builder: PromptBuilder, variants: Tensor) -> Tensor:
    """Embeddings of variants, with the tower's gradient.

    Args:
        tower: of the texts.
        builder: of the prompts.
        variants: (V).

    Returns:
        (V, K, D) of length 1.
    """
    texts = list(_texts(builder, variants))
    found = torch.cat([tower(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)])
    each = found.view(len(variants), len(CLASSES), len(builder.templates), -1)
    return F.normalize(each.mean(2), dim=-1)


def _texts(builder: PromptBuilder, variants: Tensor) -> Iterator[str]:
    for variant in variants.tolist():
        for class_id in range(len(CLASSES)):
            yield from builder.prompts(class_id, variant)
