"""Thermal maps of wounds on a limb, drawn as temperature fields in degrees C."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .pictures import colours_of
from .table import Corners

COLORMAP = "inferno"
SCALE_DEG = (20.0, 40.0)  # of the colours, the same in all pictures
_ROOM_DEG = 22.5


def draw_wound(
    contrast_deg: float, rim: float, skin_deg: float, px: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], Corners]:
    """One map of a wound, seen anew: place, size, turn and noise are drawn.

    Args:
        contrast_deg: wound minus skin.
        rim: how far the warm rim reaches beyond the wound, as a share of its radius.
        skin_deg: temperature of the skin.
        px: side of the map.
        rng: random numbers.

    Returns:
        (px, px) degrees C, and a box around the wound and the skin next to it, in pixels.
    """
    y, x = (np.mgrid[:px, :px] + 0.5) / px  # shares of the side
    turn, lean = rng.uniform(0, np.pi), rng.uniform(-0.12, 0.12)
    middle, half = 0.5 + lean * (y - 0.5) + rng.uniform(-0.04, 0.04), rng.uniform(0.33, 0.4)
    limb = _step((half - np.abs(x - middle)) / 0.03)
    centre = np.array([0.5, 0.5]) + rng.uniform(-0.08, 0.08, 2)
    radii = rng.uniform(0.1, 0.14) * np.array([1.0, rng.uniform(0.75, 1.0)])
    away = _ellipse(x - centre[0], y - centre[1], radii, turn)  # 1 on the wound's edge
    skin = skin_deg - 1.5 * ((x - middle) / half) ** 2 + 0.3 * _smooth(px, 5, rng)
    wound = contrast_deg * _step((1 - away) / 0.12)
    glow = 2.0 * np.exp(-0.5 * (np.clip(away - 1, 0, None) / rim) ** 2) * _step((away - 1) / 0.12)
    field = _ROOM_DEG + limb * (skin + wound + glow - _ROOM_DEG) + 0.3 * _smooth(px, 9, rng)
    reach = 2.2 * float(radii.max())
    box = [float(round(px * limit)) for limit in (*(centre - reach), *(centre + reach))]
    left, top, right, bottom = np.clip(box, 0, px).tolist()
    return field + rng.normal(0, 0.08, field.shape), (left, top, right, bottom)


def false_colours(field_deg: NDArray[np.float64], scale_deg: Sequence[float] = SCALE_DEG) -> NDArray[np.uint8]:
    """(H, W) degrees C -> uint8 (H, W, 3) in the colours of ``COLORMAP``.

    >>> false_colours(np.array([[20.0, 40.0]])).tolist()
    [[[0, 0, 4], [252, 255, 164]]]
    """
    share = (field_deg - scale_deg[0]) / (scale_deg[1] - scale_deg[0])
    return colours_of(COLORMAP)[(share * 255).round().clip(0, 255).astype(int)]


def _step(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _ellipse(
    x: NDArray[np.float64], y: NDArray[np.float64], radii: NDArray[np.float64], turn: float
) -> NDArray[np.float64]:
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return np.hypot(along / radii[0], across / radii[1])


def _smooth(px: int, knots: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(px, px) noise of deviation about 1 that is linear between knots."""
    at = np.linspace(0, knots - 1, px)
    low = np.minimum(at.astype(int), knots - 2)
    weights = np.zeros((px, knots))
    weights[np.arange(px), low] = 1 - (at - low)
    weights[np.arange(px), low + 1] = at - low
    return 1.4 * weights @ rng.normal(size=(knots, knots)) @ weights.T
