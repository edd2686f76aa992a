"""The annotated picture: boxes in the colour of their condition, and labels that can be read."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...datamodules.drains.vocabulary import TYPES

COLOURS = {"normal": (46, 160, 67), "damaged": (245, 140, 0), "blocked": (215, 38, 38), "unknown": (130, 130, 130)}
Corners = NDArray[np.float64]  # (N, 4) left, top, right, bottom in pixels

_PAD = 2  # pixels around a label's text


def colour_of(object_type: str, condition: str | None) -> tuple[int, int, int]:
    """Green normal, orange damaged, red blocked, grey unknown; vegetation has no condition and is green.

    >>> colour_of("toe_drain", "blocked") == COLOURS["blocked"], colour_of("vegetation", None) == COLOURS["normal"]
    (True, True)
    >>> colour_of("unknown", None) == COLOURS["unknown"]
    True
    """
    if object_type not in TYPES:
        return COLOURS["unknown"]
    return COLOURS["normal"] if object_type == "vegetation" else COLOURS[condition or "unknown"]


def draw_objects(
    picture: Tensor, boxes: ArrayLike, texts: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """Draws boxes and labels into a copy of a picture.

    Every label lies whole inside the picture, beside its box where there is room, and over no other label where that
    can be had. A text that is wider than the picture is cut.

    Args:
        picture: uint8 (3, H, W).
        boxes: (N, 4) left, top, right, bottom in pixels.
        texts: a label a box.
        colours: a colour a box, red, green, blue from 0 to 255.

    Returns:
        The annotated picture, of the same size.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).numpy(force=True))  # a copy
    draw = ImageDraw.Draw(image)
    width, height = image.size
    side = max(width, height)
    font = ImageFont.load_default(size=min(max(9, round(side / 45)), max(6, height - 3 * _PAD)))
    corners = np.asarray(boxes, float).reshape(-1, 4)
    shown = [_cut(text, font, width - 2 * _PAD) for text in texts]
    tall = font.getbbox("Ag")[3] + _PAD
    sizes = [(font.getlength(text) + 2 * _PAD, tall) for text in shown]
    line = max(1, round(side / 320))
    for box, colour in zip(corners, colours, strict=True):
        draw.rectangle(_inside(box, width, height), outline=colour, width=line)
    places = place_labels(corners, sizes, width, height)
    for place, text, colour in zip(places, shown, colours, strict=True):
        draw.rectangle(_inside(place, width, height), fill=colour)
        ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
        draw.text((place[0] + _PAD, place[1]), text, fill=ink, font=font)
    return image


def place_labels(boxes: ArrayLike, sizes: Sequence[tuple[float, float]], width: int, height: int) -> Corners:
    """Where the labels of a picture go.

    Each takes the first free place of: above its box, inside at the top, below it, to the right, to the left, each
    moved into the picture; failing these, the free place on a grid that is nearest to the box, and in a picture that
    is full of labels the one that covers least of the others.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels.
        sizes: width and height of each label, not larger than the picture.
        width: of the picture.
        height: of the picture.

    Returns:
        (N, 4) left, top, right, bottom of each label, inside the picture.

    >>> place_labels([[0, 0, 50, 20]], [(30, 10)], 100, 100).tolist()
    [[0.0, 0.0, 30.0, 10.0]]
    """
    placed = np.zeros((0, 4))
    for box, (w, h) in zip(np.asarray(boxes, float).reshape(-1, 4), sizes, strict=True):
        tried = np.concatenate([_beside(box, w, h), _grid(box, w, h, width, height)])
        low = np.clip(tried, 0, np.maximum([width - w, height - h], 0))
        candidates = np.concatenate([low, low + np.array([w, h])], axis=1)
        placed = np.concatenate([placed, candidates[[_overlap(candidates, placed).argmin()]]])  # the first of the least
    return placed


def _beside(box: Corners, w: float, h: float) -> Corners:
    """Left and top of a label above, inside, below, right and left of its box."""
    left, top, right, bottom = box
    return np.array([(left, top - h), (left, top), (left, bottom), (right, top), (left - w, top)])


def _grid(box: Corners, w: float, h: float, width: int, height: int) -> Corners:
    """Left and top of labels all over the picture, nearest to the box first."""
    x, y = np.meshgrid(np.arange(0, max(width - w, 0) + 1, max(w / 4, 1)), np.arange(0, max(height - h, 0) + 1, h))
    tops = np.stack([x.ravel(), y.ravel()], axis=1)
    away = np.hypot(*(tops + np.array([w, h]) / 2 - (box[:2] + box[2:]) / 2).T)
    return tops[np.argsort(away, kind="stable")]


def _overlap(labels: Corners, placed: Corners) -> NDArray[np.float64]:
    """(L,) pixels of each label that lie over those in place."""
    low = np.maximum(labels[:, None, :2], placed[None, :, :2])
    high = np.minimum(labels[:, None, 2:], placed[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1).sum(-1)


def _inside(box: Corners, width: int, height: int) -> list[int]:
    """Whole pixels of a box that lie in the picture; the edges belong to it."""
    left, top, right, bottom = (round(float(value)) for value in box)
    return [
        min(max(left, 0), width - 1),
        min(max(top, 0), height - 1),
        max(min(right, width) - 1, min(max(left, 0), width - 1)),
        max(min(bottom, height) - 1, min(max(top, 0), height - 1)),
    ]


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """As much of a text as fits."""
    while text and font.getlength(text) > room:
        text = text[:-1]
    return text
