"""Crops with captions of generated embankments, for the pre-training of the demo's own small CLIP.

They come from another world than the demo's data: other locations, other draws. A caption always says what the thing
is; its condition it says seldom and sometimes wrongly, as captions from the web do, so that a network which has read
them knows something about conditions before it has seen a label, but not much.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import StagewiseError
from .boxes import POSITIONS, position_of
from .crops import crop_window, letterbox
from .generated import DIFFICULTY, Embankment, draw_embankments
from .generated_layout import Thing
from .vocabulary import CLASSES

SAID = 0.5
"""Share of the captions that speak of the condition."""

WRONG = 0.2
"""Share of those that speak of another one of the same type."""

_OPENINGS = ("a photo of {}", "{}", "a drone photo of {}", "an aerial view of {} on an embankment", "a picture of {}")
_STREAM = 1  # the demo's data is stream 0 of its seed
_LOCATIONS = 24


def caption_pairs(
    count: int, seed: int = 0, *, px: int = 64, margin: float = 0.1, pad: str = "mean", difficulty: float = DIFFICULTY
) -> tuple[NDArray[np.uint8], list[str]]:
    """Draws objects with captions; the same arguments give the same pairs.

    Args:
        count: of pairs.
        seed: of everything random; no seed gives the pictures of ``write_generated_drains``.
        px: side of a crop.
        margin: of :func:`crop_window`; so is ``pad``.
        pad: what fills the square.
        difficulty: of the pictures.

    Returns:
        uint8 (count, 3, px, px) crops, and their captions.

    >>> pictures, captions = caption_pairs(3, px=32)
    >>> pictures.shape, len(captions)
    ((3, 3, 32, 32), 3)
    """
    if count < 1 or px < 1:
        raise StagewiseError(f"caption pairs need count >= 1 and px >= 1, got {count} and {px}.")
    rng = np.random.default_rng((seed, _STREAM, 3))
    crops, captions = np.empty((count, 3, px, px), np.uint8), list[str]()
    pictures = draw_embankments(20 + count // 2, locations=_LOCATIONS, seed=seed, difficulty=difficulty, stream=_STREAM)
    for drawn in pictures:
        for thing in drawn.things:
            if len(captions) == count:
                return crops, captions
            crops[len(captions)] = _crop(drawn, thing, px, margin, pad)
            captions.append(_caption(rng, thing, drawn.things))
    raise StagewiseError(f"seed {seed} drew fewer than {count} objects; take another.")


def _crop(drawn: Embankment, thing: Thing, px: int, margin: float, pad: str) -> NDArray[np.uint8]:
    size = drawn.pixels.shape[1], drawn.pixels.shape[0]
    picture = torch.from_numpy(drawn.pixels).permute(2, 0, 1)
    return letterbox(picture, crop_window(thing.box, size, margin, pad), px).numpy()


def _caption(rng: np.random.Generator, thing: Thing, things: list[Thing]) -> str:
    """One sentence; a part of them says where the thing lies or what is near."""
    text, condition = thing.type.replace("_", " "), thing.condition
    if condition is not None and rng.random() < SAID:
        if rng.random() < WRONG:
            wrong = [str(one.condition) for one in CLASSES if one.type == thing.type and one.condition != condition]
            condition = str(rng.choice(wrong))
        text = f"{text} {condition}" if rng.random() < 0.7 else f"{condition} {text}"
    if rng.random() < 0.3:
        text += f" at {POSITIONS[position_of([thing.box])[0]]}"
    others = sorted({other.type.replace("_", " ") for other in things if other is not thing})
    if others and rng.random() < 0.15:
        text += f", with {rng.choice(others)} nearby"
    return str(rng.choice(_OPENINGS)).format(text)
