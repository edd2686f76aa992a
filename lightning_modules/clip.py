"""CLIP models of open_clip, with the weights that they are published with."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..datamodules.errors import CheckpointError

log = logging.getLogger(__name__)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_model(
    name: str = "ViT-B-16",
    pretrained: str | None = "openai",
    image_px: int = 224,
    load: bool = True,
    quick_gelu: bool | None = None,
    **model_config: Any,
) -> nn.Module:
    """Both towers of an open_clip model.

    Args:
        name: open_clip's name of the architecture.
        pretrained: open_clip's tag or a path; None starts from random weights and says so.
        image_px: side of the input; position embeddings are resampled to it.
        load: False builds the architecture only, for weights that come from a checkpoint.
        quick_gelu: activation; None is what the tag was trained with (open_clip alone would only warn).
        model_config: overrides of open_clip's model configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``).

    Returns:
        open_clip's module, whose ``visual`` is the image tower.

    Raises:
        CheckpointError: weights that cannot be had or do not fit.
    """
    import open_clip

    if quick_gelu is None:
        quick_gelu = bool(open_clip.get_pretrained_cfg(name, pretrained or "").get("quick_gelu", False))
    if "vision_cfg" in model_config:  # it would override force_image_size
        model_config["vision_cfg"] = {**model_config["vision_cfg"], "image_size": image_px}
    if load and pretrained is None:
        log.warning("encoder clip (%s): random weights, because pretrained=null", name)
    source = pretrained if load else None
    options = {"force_quick_gelu": quick_gelu, "force_image_size": image_px, "require_pretrained": bool(source)}
    try:
        with quiet():
            model: nn.Module = open_clip.create_model(name, source, **options, **model_config)
    except Exception as error:  # open_clip's own, and those of torch.load: pickle, zip and runtime errors
        raise CheckpointError(f"encoder clip: cannot load {name} with pretrained='{source}': {error}") from error
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip tells every step of its own to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def tokenizer_of(name: str, model: nn.Module) -> Callable[[list[str]], Tensor]:
    """Texts -> (N, context length) tokens of a model of :func:`clip_model`."""
    import open_clip

    with quiet():
        made: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(name, context_length=int(model.context_length))  # type: ignore[arg-type]
    return made


def clip_image_tower(*args: Any, **options: Any) -> nn.Module:
    """The image tower of :func:`clip_model`, its text tower dropped.

    Returns:
        A module (B, 3, image_px, image_px) -> (B, ``output_dim``).
    """
    tower: nn.Module = clip_model(*args, **options).visual  # type: ignore[assignment]
    return tower


class TextTower(nn.Module):
    """The text half of a model of :func:`clip_model`, with its tokenizer.

    Args:
        model: loses its image tower.
        name: of the architecture, which says the tokenizer.

    >>> config = {"width": 16, "heads": 2, "layers": 1, "context_length": 12}
    >>> small = clip_model("ViT-B-32", None, 32, load=False, embed_dim=8, text_cfg=config)
    >>> TextTower(small, "ViT-B-32")(["toe drain blocked", "vegetation"]).shape
    torch.Size([2, 8])
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        if hasattr(model, "visual"):
            del model.visual
        model.register_parameter(
            "logit_scale", None
        )  # whoever compares keeps it; here it would be a weight without use
        self.model = model
        self.tokenize = tokenizer_of(name, model)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """(N) texts -> (N, D) of length 1."""
        device = next(self.parameters()).device
        found: Tensor = self.model.encode_text(self.tokenize(list(texts)).to(device), normalize=True)  # type: ignore[operator]
        return found
