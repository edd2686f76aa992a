"""Crop of an object -> logits of its classes."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...datamodules.drains.vocabulary import CLASSES, TYPE_OF_CLASS, TYPES
from ...datamodules.errors import StagewiseError
from ..clip import CLIP_MEAN, CLIP_STD, TextTower, clip_model
from ..half_precision import FrozenCopy
from .lora import LowRankAdapters
from .prompts import PromptBuilder
from .text_bank import TextBank, encode

HEADS = ("text", "linear")


class DrainNetwork(nn.Module):
    """CLIP's similarity of a crop to the prompts of the classes that the object's type allows.

    Args:
        schema: of the data module: ``feature_mean``, ``feature_std`` of the box features in train, ``image.px``.
        clip: arguments of :func:`~stagewise.lightning_modules.clip.clip_model`.
        prompts: arguments of :class:`PromptBuilder`.
        head: ``text``; or ``linear``, a linear layer that starts as the plain prompts (a probe on frozen features).
        text: keeps the text tower, to train it too; else the texts are encoded once and the tower is dropped.
        lora: arguments of :class:`LowRankAdapters`, None has none.
        features: width of the layer that adds what the box alone says (place, size, neighbours); None has none.
        load: the published weights; False is for weights that come from a checkpoint.

    Raises:
        StagewiseError: an unknown head, or a linear one beside a text tower that would train for nothing.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    allowed: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        clip: Mapping[str, Any] | None = None,
        prompts: Mapping[str, Any] | None = None,
        head: str = "text",
        text: bool = False,
        lora: Mapping[str, Any] | None = None,
        features: int | None = None,
        load: bool = True,
    ) -> None:
        super().__init__()
        if head not in HEADS or (head == "linear" and text):
            known = "'text', or 'linear' with text=false"
            raise StagewiseError(f"network.head must be {known}; got '{head}' with text={str(text).lower()}.")
        options = {"name": "ViT-L-14", **(clip or {})}
        model = clip_model(image_px=int(schema["image"]["px"]), load=load, **options)
        self.visual: nn.Module = model.visual  # type: ignore[assignment]
        self.register_buffer("scale", model.logit_scale.detach().exp())  # type: ignore[operator, union-attr]
        tower = TextTower(model, str(options["name"]))
        self.builder = PromptBuilder(**(prompts or {}))
        self.bank = TextBank(self.builder, int(self.visual.output_dim))  # type: ignore[arg-type]
        if load:
            self.bank.fill(tower)
        self.text = tower if text else None
        self.adapters = LowRankAdapters(self.visual, **lora) if lora is not None else None
        self.linear = self._probe() if head == "linear" else None
        self.features = FeatureBranch(schema, features) if features else None
        self._frozen: FrozenCopy | None = None
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.register_buffer("allowed", allowed_classes(), persistent=False)

    def _probe(self) -> nn.Linear:
        plain = self.bank.embedding[0]
        probe = nn.Linear(plain.shape[1], plain.shape[0])
        with torch.no_grad():
            probe.weight.copy_(plain * self.scale)
            nn.init.zeros_(probe.bias)
        return probe

    def freeze(self) -> None:
        """Until it trains again, the image tower answers in half precision where that is faster."""
        if self.adapters is None:
            self._frozen = FrozenCopy(self.visual)

    def train(self, mode: bool = True) -> Self:
        """Drops the frozen copy: it would hide the gradient."""
        if mode:
            self._frozen = None
        return super().train(mode)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, D) of length 1."""
        # convolutions are a quarter faster on images that lie in memory so
        x = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if self._frozen is not None:
            return F.normalize(self._frozen(x), dim=-1)
        found = self.visual(x) if self.adapters is None else self.adapters(self.visual, x)
        return F.normalize(found.float(), dim=-1)

    def texts(self, position: Tensor, context: Tensor) -> Tensor:
        """(B), (B) -> (B, K, D): from the bank, or from the text tower where it trains."""
        if self.text is None:
            return self.bank(position, context)  # type: ignore[no-any-return]
        variants, each = self.builder.variant_of(position, context).unique(return_inverse=True)
        return encode(self.text, self.builder, variants)[each]

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of a batch of objects.

        Args:
            batch: ``image`` (B, 3, S, S) in [0, 1], ``box_type``, ``position``, ``context`` (B) each, ``metadata``
                (B, F) where the network has a feature branch, ``view`` like ``image`` where the data has a second one.

        Returns:
            ``logits`` (B, K) float32, -inf where the type does not allow the class; ``embedding`` (B, D).
        """
        embedding = self.embed(batch["image"])
        if "view" in batch:
            embedding = F.normalize(embedding + self.embed(batch["view"]), dim=-1)
        if self.linear is not None:
            logits = self.linear(embedding).float()
        else:
            texts = self.texts(batch["position"], batch["context"])
            logits = self.scale * torch.einsum("bd,bkd->bk", embedding, texts.float())
        if self.features is not None:
            logits = logits + self.features(batch["metadata"])
        masked = logits.masked_fill(~self.allowed[batch["box_type"]], -torch.inf)
        return {"logits": masked, "embedding": embedding}


class FeatureBranch(nn.Module):
    """Logits from the box features, 0 until it has learned.

    Args:
        schema: ``feature_mean`` and ``feature_std`` of train.
        width: of the hidden layer.
        dropout: before the last layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Mapping[str, Any], width: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(schema["feature_mean"], dtype=torch.float32))
        self.register_buffer("std", torch.tensor(schema["feature_std"], dtype=torch.float32))
        last = nn.Linear(width, len(CLASSES))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(len(self.mean), width), nn.GELU(), nn.Dropout(dropout), last)

    def forward(self, metadata: Tensor) -> Tensor:
        """(B, F) -> (B, K)."""
        found: Tensor = self.layers((metadata - self.mean) / self.std)
        return found


def allowed_classes() -> Tensor:
    """(types, classes): whether a type can have a class.

    >>> allowed_classes().sum(1).tolist()
    [2, 3, 3, 1]
    """
    return torch.arange(len(TYPES))[:, None] == torch.tensor(TYPE_OF_CLASS)
