"""The ground of a generated embankment, and what makes one location look unlike another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .generated_layout import Terraces

Picture = NDArray[np.floating[Any]]  # (H, W, 3) in [0, 1], or a field of it (H, W); float32 for speed
Colour = NDArray[np.floating[Any]]  # (3,) in [0, 1]

_GROUNDS = ((0.62, 0.58, 0.50), (0.58, 0.44, 0.30), (0.42, 0.45, 0.30), (0.68, 0.62, 0.48), (0.52, 0.48, 0.44))
_PLANTS = ((0.27, 0.38, 0.16), (0.38, 0.39, 0.22), (0.34, 0.44, 0.20), (0.34, 0.32, 0.21), (0.24, 0.33, 0.18))
_STONES = ((0.60, 0.58, 0.55), (0.55, 0.50, 0.44), (0.52, 0.54, 0.58))
_DUST = np.array([0.70, 0.65, 0.56], np.float32)
_CONCRETES = ((0.80, 0.79, 0.76), (0.68, 0.67, 0.64), (0.74, 0.69, 0.60))


@dataclass(frozen=True)
class Look:
    """What the pictures of one location have in common.

    Attributes:
        ground: colour of the bare earth.
        plant: colour of what grows.
        concrete: colour of the drains.
        stone: colour of the rock toe.
        growth: how much of the slope is overgrown, 0 to 1.
        grain_px: size of the coarse texture at 320 px.
        furrow: strength of the furrows down the slope.
        light: red, green, blue gain of sun and sky.
        crest: where the slope begins, share of the height.
        two: share of pictures with two slopes.
        stone_px: size of a stone at 320 px.
        habits: leaning of the location towards each condition, log odds.
    """

    ground: Colour
    plant: Colour
    concrete: Colour
    stone: Colour
    growth: float
    grain_px: float
    furrow: float
    light: Colour
    crest: float
    two: float
    stone_px: float
    habits: dict[str, float]


def draw_look(rng: np.random.Generator) -> Look:
    """Draws a location."""

    def colour(choices: tuple[tuple[float, float, float], ...]) -> Colour:
        shift = rng.normal(0, 0.03) + rng.normal(0, 0.01, 3)
        return np.asarray(choices[int(rng.integers(len(choices)))] + shift, np.float32)

    warm = rng.normal(0, 0.05)
    return Look(
        ground=colour(_GROUNDS),
        plant=colour(_PLANTS),
        concrete=colour(_CONCRETES),
        stone=colour(_STONES),
        growth=float(rng.uniform(0.05, 0.95)),
        grain_px=float(rng.uniform(14, 50)),
        furrow=float(rng.choice([0.0, 0.0, 0.05, 0.09])),
        light=np.asarray(rng.uniform(0.78, 1.12) * np.array([1 + warm, 1.0, 1 - warm]), np.float32),
        crest=float(rng.uniform(0.12, 0.24)),
        two=float(rng.uniform(0.15, 0.85)),
        stone_px=float(rng.uniform(4.5, 8.0)),
        habits={name: float(rng.normal(0, 0.5)) for name in ("normal", "blocked", "damaged")},
    )


def noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Picture:
    """(H, W) smooth noise of mean 0 and deviation about 1; ``cell_px`` is the distance over which it changes."""
    rows, columns = (max(2, round(side / max(cell_px, 1.0)) + 2) for side in (height, width))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return field * np.float32(1.25)


def blend(under: Picture, over: Picture | Colour, cover: Picture) -> Picture:
    """Lays a colour over a picture; ``cover`` (H, W) is 1 where it hides what is under it."""
    alpha = np.clip(cover, 0, 1)[..., None].astype(np.float32)
    return under + (over - under) * alpha


def draw_ground(rng: np.random.Generator, look: Look, terraces: Terraces, px: int) -> Picture:
    """(px, px, 3) crest, slopes, berm and the flat land below, without any thing on it."""
    scale = px / 320
    coarse = noise(rng, px, px, look.grain_px * scale)
    middle, fine = noise(rng, px, px, 9 * scale), noise(rng, px, px, 2.2 * scale)
    slope = _slope_mask(rng, terraces, px)
    dust = np.float32(0.35) * look.ground + np.float32(0.65) * _DUST
    furrows = np.sin(np.arange(px, dtype=np.float32) / (2.1 * scale) + 0.7 * coarse) * look.furrow
    rough = 0.05 * coarse + 0.05 * middle + 0.06 * fine
    picture = (dust + (look.ground - dust) * slope[..., None]) * (1 + rough * (0.5 + 0.5 * slope) + furrows * slope)[
        ..., None
    ]
    tufts = (middle + 0.8 * fine > 2.3 - look.growth) * (0.2 + 0.5 * slope)
    overgrown = (0.9 * coarse + 0.6 * middle + 0.9 * fine + 3 * look.growth - 2.2) * (0.25 + 0.75 * slope)
    plants = look.plant * ((1 + 0.20 * fine + 0.10 * middle) * (1 - 0.5 * tufts))[..., None]
    return blend(picture, plants, np.maximum(np.minimum(overgrown, 0.85), tufts))


def _slope_mask(rng: np.random.Generator, terraces: Terraces, px: int) -> Picture:
    """(px, px) 1 on the slopes, 0 on crest, berm and toe; the edges wave a little."""
    y = (np.arange(px, dtype=np.float32)[:, None] + 0.5) / px + 0.008 * noise(rng, 2, px, px / 6)[:1]
    mask = np.zeros((px, px), np.float32)
    for top, toe in terraces.slopes:
        mask = np.maximum(mask, np.clip((y - top) / 0.015, 0, 1) * np.clip((toe + 0.01 - y) / 0.015, 0, 1))
    return mask


def expose(rng: np.random.Generator, picture: Picture, look: Look) -> NDArray[np.uint8]:
    """Light, haze and the noise of the camera; (H, W, 3) in [0, 255]."""
    size = picture.shape[0]
    shade = 1 + 0.05 * noise(rng, size, size, size / 2)
    grain = rng.standard_normal((size, size, 1), np.float32) * np.float32(0.03)
    lit = picture * (look.light * np.float32(rng.uniform(0.92, 1.08))) * shade[..., None] + grain
    return (np.clip(lit, 0, 1) * np.float32(255)).astype(np.uint8)
