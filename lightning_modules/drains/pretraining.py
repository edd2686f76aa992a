"""A small CLIP from captions, where the published ones are too large or out of reach: what the demo starts from."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import CLIP_MEAN, CLIP_STD, clip_model, tokenizer_of

log = logging.getLogger(__name__)
Pairs = Callable[..., tuple[NDArray[np.uint8], list[str]]]
DEFAULTS = {"pairs": 4000, "epochs": 8, "batch_size": 128, "lr": 1e-3, "weight_decay": 0.05, "seed": 1}


def clip_of_captions(
    clip: Mapping[str, Any],
    image: Mapping[str, Any],
    draw: Pairs,
    cache_dir: str,
    device: torch.device,
    **settings: Any,
) -> str:
    """Trains both towers on pictures and captions, or finds what was trained of the same settings.

    Args:
        clip: arguments of :func:`~stagewise.lightning_modules.clip.clip_model` but ``pretrained``.
        image: how objects are cut; ``px`` is the side of the pictures.
        draw: ``(count, seed, px=px)`` -> uint8 (N, 3, px, px) and N captions.
        cache_dir: for the file.
        device: to train on.
        settings: ``pairs``, ``epochs``, ``batch_size``, ``lr``, ``weight_decay``, ``seed``.

    Returns:
        The path of a state dict in open_clip's layout, for ``pretrained``.
    """
    chosen, px = {**DEFAULTS, **settings}, int(image["px"])
    key = hashlib.blake2b(json.dumps([clip, dict(image), chosen], sort_keys=True).encode(), digest_size=8).hexdigest()
    path = Path(cache_dir) / "drains" / f"clip-{key}.pt"
    if path.is_file():
        log.info("CLIP of captions: found %s", path)
        return str(path)
    log.info("CLIP of captions: training on %d pairs", chosen["pairs"])
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(int(chosen["seed"]))
        model = clip_model(image_px=px, load=False, **clip).to(device)
        images, captions = draw(int(chosen["pairs"]), int(chosen["seed"]), px=px)
        _train(model, str(clip["name"]), torch.from_numpy(images), captions, chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, part)
    part.replace(path)
    return str(path)


def _train(model: nn.Module, name: str, images: Tensor, captions: list[str], chosen: Mapping[str, Any]) -> None:
    texts, said = np.unique(captions, return_inverse=True)  # few texts, said often
    device = next(model.parameters()).device
    tokens = tokenizer_of(name, model)(texts.tolist())
    size, steps = int(chosen["batch_size"]), len(captions) // int(chosen["batch_size"]) * int(chosen["epochs"])
    decay = float(chosen["weight_decay"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["lr"], weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, chosen["lr"], total_steps=steps)
    model.train()
    for epoch in range(int(chosen["epochs"])):
        losses = []
        for rows in torch.randperm(len(captions)).split(size):
            if len(rows) < size:
                continue
            which = torch.from_numpy(said)[rows]
            loss = contrast(model, as_input(images[rows].to(device)), tokens.to(device), which.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        log.info("CLIP of captions: epoch %d of %d, loss %.3f", epoch + 1, chosen["epochs"], np.mean(losses))
    model.eval()


def as_input(images: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) -> what CLIP sees, half of them mirrored."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, images, images.flip(-1))
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((mirrored.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def contrast(model: Any, images: Tensor, tokens: Tensor, said: Tensor) -> Tensor:
    """Each picture against the texts of the batch, each text against its pictures.

    A text that several pictures share is right for all of them (Yang et al. 2022, https://arxiv.org/abs/2204.03610).

    Args:
        model: open_clip's.
        images: (B, 3, S, S).
        tokens: of all texts.
        said: (B,) text of each picture.
    """
    present, column = said.unique(return_inverse=True)
    logits = model.logit_scale.exp() * (
        model.encode_image(images, normalize=True) @ model.encode_text(tokens[present], normalize=True).T
    )
    right = F.one_hot(column, len(present)).float()
    return (F.cross_entropy(logits, column) + F.cross_entropy(logits.T, right.T / right.sum(0)[:, None])) / 2
