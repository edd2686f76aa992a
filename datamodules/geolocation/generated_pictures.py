"""Paints one street or landscape view of the generated country, as a pure function of coordinates and chance.

The look of a place comes from ``generated_fields``; ``paint`` adds the nuisance of a single photograph. The docstring
of ``generated`` lists which cue belongs to which side.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .generated_canvas import Colour, View, mix, vivid
from .generated_fields import WAVES, look_at, swing

_WALLS = np.array([(196, 158, 112), (172, 92, 66), (132, 98, 72), (206, 203, 196)], np.float32)
_STYLES, _TREES = ("mud", "brick", "timber", "concrete"), ("palm", "round", "cone", "poplar", "shrub")


def _sky_and_ridges(view: View) -> None:
    """Paints the sky, clouds and two rows of mountains with their snow."""
    rng, look, size = view.rng, view.look, view.size
    for step in range(8):
        band = mix(view.sky, (238, 236, 230), step / 9.0)
        view.draw.rectangle([0, step * size / 12, size, size], fill=band)
    for x, y, width in rng.uniform((-0.1, 0.02, 0.1), (1.1, 0.3, 0.4), (int(rng.integers(0, 5)), 3)):
        view.box(x - width / 2, y, x + width / 2, y + width / 4, (250, 250, 250, 110), True)
    x = np.linspace(-0.3, 1.3, 65)
    for row, share in enumerate((1.0, 0.55)):
        waves = np.abs(np.sin(np.outer((3.3, 7.0, 17.0, 34.0), x) + rng.uniform(0, 6.3, (4, 1))))
        rough = look["rugged"]
        crest = 1.0 - waves.T @ np.array([0.45, 0.35 * rough, 0.18 * rough, 0.09 * rough])
        top = view.horizon - share * (0.02 + 0.55 * look["height"] * rng.uniform(0.8, 1.15)) * crest
        rock = mix(mix((92, 112, 82), (150, 122, 98), look["arid"]), view.sky, view.haze + 0.25 * (1 - row))
        points = list(zip(x.tolist(), top.tolist(), strict=True))
        view.shape([*points, (1.3, view.horizon + 0.02), (-0.3, view.horizon + 0.02)], rock)
        snow_line = view.horizon - 0.40 + 0.28 * look["snow"] + 0.05 * view.season
        cap = np.minimum(top + 0.1, np.maximum(top, snow_line + 0.02 * np.sin(60 * x)))
        if look["snow"] > 0.1 and bool((cap > top).any()):
            view.shape([*points, *zip(x[::-1].tolist(), cap[::-1].tolist(), strict=True)], (240, 243, 248))


def _ground_and_road(view: View) -> None:
    """Paints the ground with furrows and tufts, then the road with its kerb pattern."""
    rng, look, low = view.rng, view.look, view.horizon
    green = mix((92, 128, 62), (150, 140, 70), 0.5 + 0.5 * view.season)
    soil = mix(green, (196, 168, 124), min(1.0, max(0.0, look["arid"] * 1.1 - 0.05 + rng.normal(0, 0.15))))
    view.shape([(-0.5, low), (1.5, low), (1.5, 1.6), (-0.5, 1.6)], soil)
    dark, slant = mix(soil, (60, 50, 35), 0.28), math.tan(1.1 * math.sin(2 * math.pi * look["furrow"]))
    gap = 0.05 + 0.05 * swing(look["furrow"] * 2.3)
    for x in np.arange(-1.0 + rng.uniform(0, gap), 2.0, gap):
        view.line([(x, low), (x + slant * 0.25, low + 0.16)], dark, 0.008)
    for x, y in rng.uniform((-0.1, low + 0.12), (1.1, 1.05), (int(26 * (1.1 - look["arid"])), 2)):
        view.line([(x, y), (x + 0.008, y - 0.035)], mix(green, (30, 60, 20), 0.35), 0.012)
    bend, grey = rng.uniform(-0.12, 0.12), mix((105, 103, 102), soil, rng.uniform(0.0, 0.5))
    view.shape([(0.49 + bend, low), (0.51 + bend, low), (0.98, 1.2), (0.02, 1.2)], grey)
    dash = 0.10 + 0.22 * swing(look["kerb"])
    for start in np.arange(rng.uniform(0, dash) - dash, 1.0, dash):
        for left, right in ((-0.48, -0.43), (0.43, 0.48)):
            near, far = max(0.05, start), max(0.05, start + dash / 2)
            corners = [(left, near), (right, near), (right, far), (left, far)]
            view.shape([(0.5 + bend * (1 - d) + s * d, low + (1.2 - low) * d) for s, d in corners], (235, 230, 215))


def _pick(view: View, weights: Sequence[float]) -> int:
    """Draws an index with chances proportional to ``weights``."""
    return int(np.searchsorted(np.cumsum(weights), view.rng.uniform(0, sum(weights))))


def _tree(view: View, x: float, base: float, tall: float) -> None:
    """Paints one tree of a kind that is common here; ``tall`` is its height in picture widths."""
    look, mixed = view.look, swing(view.look["tree_mix"])
    lush = 1.0 - look["arid"]
    weights = (1.2 * look["palm"], lush * mixed * 1.2, 2.0 * look["timber"], 0.1 + (1 - mixed) * lush, look["arid"])
    kind = _TREES[_pick(view, weights)]
    leaf = mix(mix((52, 96, 48), (150, 128, 52), 0.3 + 0.3 * view.season), (30, 60, 40), view.rng.uniform(0, 0.6))
    top, trunk = base - tall, (92, 70, 50)
    if kind != "shrub":
        view.line([(x, base), (x, top + 0.3 * tall)], trunk, 0.014)
    if kind == "palm":
        view.line([(x, base), (x, top + 0.1 * tall)], trunk, 0.014)
        for turn in (-2.9, -2.3, -1.57, -0.85, -0.25, 0.3, 2.85):
            view.line([(x, top + 0.1 * tall), (x + 0.1 * math.cos(turn), top + 0.1 * math.sin(turn))], leaf, 0.018)
    elif kind == "cone":
        for step in (0.0, 0.25, 0.5):
            y, half = top + step * tall, (0.18 + 0.24 * step) * tall
            low = y + 0.38 * tall
            view.shape([(x, y), (x - half, low), (x + half, low)], mix(leaf, (0, 0, 0), step / 4))
    else:
        wide, low = {"round": (0.36, 0.65), "poplar": (0.11, 0.85), "shrub": (0.4, 1.0)}[kind]
        crown = base - 0.35 * tall if kind == "shrub" else top
        view.box(x - wide * tall, crown, x + wide * tall, top + low * tall, leaf, True)


def _stripes(view: View, left: float, top: float, right: float, bottom: float) -> None:
    """Paints the ornament band of a wall: stripes whose angle and period are read from the place."""
    (x0, y0), (x1, y1) = view.at(left, top), view.at(right, bottom)
    turn = math.pi * view.look["stripe_angle"]
    period = (0.055 + 0.06 * swing(view.look["stripe_period"])) * view.size * view.zoom
    y, x = np.ogrid[: max(1, int(y1 - y0)), : max(1, int(x1 - x0))]
    on = ((x * math.cos(turn) + y * math.sin(turn)) / period + view.rng.uniform()) % 1.0 < 0.5
    ink = vivid(view.look["roof_trim"] + view.rng.normal(0, 0.12), 0.6, 0.5)
    view.box(left, top, right, bottom, (238, 230, 212))
    view.image.paste(ink, (int(x0), int(y0)), Image.fromarray((on * 255).astype(np.uint8)))


def _windows(view: View, left: float, top: float, right: float, bottom: float) -> None:
    """Paints rows of windows; their width to height ratio and arch are read from the place."""
    shape, glass = swing(view.look["window_shape"]), (62, 70, 84)
    wide, tall = 0.035 + 0.05 * shape, 0.085 - 0.045 * shape
    for y in np.arange(top + 0.02, bottom - tall, tall + 0.04):
        for x in np.arange(left + 0.03, right - wide, wide + 0.04):
            view.box(x, y, x + wide, y + tall, glass)
            if view.look["arid"] + 0.3 * math.sin(6.28 * view.look["roof_trim"]) > 0.5:
                view.box(x, y - wide / 2, x + wide, y + wide / 2, glass, True)


def _roof(view: View, left: float, top: float, right: float, wall: Colour, pitched: bool) -> None:
    """Paints a pitched roof, or the battlements of a flat one."""
    if pitched:
        rise, hue = 0.08 + 0.14 * view.look["timber"], 0.7 * swing(view.look["wall"]) + view.rng.normal(0, 0.1)
        view.shape([(left - 0.03, top), (right + 0.03, top), ((left + right) / 2, top - rise)], vivid(hue, 0.4, 0.5))
    else:
        gap = 0.035 + 0.07 * swing(view.look["roof_trim"])
        for x in np.arange(left, right - gap / 2, gap):
            view.box(x, top - 0.025, x + gap / 2, top, wall)


def _building(view: View) -> None:
    """Paints the main house: style, wall, storeys, roof, windows and ornament."""
    look, rng = view.look, view.rng
    weights = (look["mud"], 0.75 * (1 - look["timber"]), 1.6 * look["timber"], 0.1 + 2.5 * look["urban"])
    kind = _STYLES[_pick(view, weights)]
    wall = mix(_WALLS[_STYLES.index(kind)], _WALLS[int(rng.integers(4))], rng.uniform(0.0, 0.6))
    wall = mix(wall, (255, 255, 255), 0.25 * swing(look["wall"]))
    middle, half, base = 0.5 + view.side * 0.24, rng.uniform(0.2, 0.24), view.horizon + 0.27
    top = base - 0.34 - (0.3 * look["urban"] if kind == "concrete" else 0.0) - rng.uniform(0, 0.06)
    left, right = middle - half, middle + half
    reach = 0.35 / math.tan(math.radians(look["sun_deg"] - 25.0)) * view.sun_side
    view.shape([(left, base), (right, base), (right + reach, base + 0.1), (left + reach, base + 0.1)], (20, 20, 25, 90))
    view.box(left, top, right, base, wall)
    if kind in ("brick", "timber"):
        for step in np.arange(0.02, 0.34, 0.035):
            courses, boards = [(left, top + step), (right, top + step)], [(left + step, top), (left + step, base)]
            view.line(courses if kind == "brick" else boards, mix(wall, (0, 0, 0), 0.25), 0.007)
    _roof(view, left, top, right, wall, pitched=kind == "timber")
    _stripes(view, left + 0.02, top + 0.02, right - 0.02, top + 0.16)
    _windows(view, left, top + 0.17, right, base)


def _pole(view: View) -> None:
    """Paints the utility pole; number and angle of its arms are read from the place."""
    look, rng, low = view.look, view.rng, view.horizon
    x, dark = 0.5 - view.side * rng.uniform(0.02, 0.12), (70, 62, 58)
    view.line([(x, low + 0.22), (x, low - 0.36)], dark, 0.016)
    lift = 0.09 * math.sin(2 * math.pi * look["pole_angle"])
    for arm in range(1 + int(3.99 * swing(look["pole_arms"]))):
        y = low - 0.34 + 0.065 * arm
        view.line([(x - 0.08, y + lift), (x, y), (x + 0.08, y + lift)], dark, 0.012)


def _sign(view: View) -> None:
    """Paints the signboard; its two hues and the turn of its emblem are read from the place."""
    look, rng, low = view.look, view.rng, view.horizon
    left, top = 0.5 - view.side * 0.30 - 0.15, low - 0.02 + rng.uniform(-0.05, 0.05)
    view.line([(left + 0.15, top), (left + 0.15, low + 0.30)], (70, 62, 58), 0.02)
    hue = look["sign_hue"]
    view.box(left, top, left + 0.15, top + 0.19, vivid(hue))
    view.box(left + 0.15, top, left + 0.30, top + 0.19, vivid(hue + 0.4))
    turn = 360.0 * look["emblem_turn"]
    corners = [*view.at(left + 0.07, top + 0.015), *view.at(left + 0.23, top + 0.175)]
    view.draw.ellipse(corners, fill=(245, 245, 240))
    view.draw.pieslice(corners, turn, turn + 180.0, fill=(25, 25, 30))


def _foreground(view: View) -> None:
    """Paints what says nothing about the place: cars, people and a passing obstacle."""
    rng = view.rng
    for x in rng.uniform(0.0, 1.0, int(rng.integers(0, 3))):
        y, body = view.horizon + rng.uniform(0.22, 0.36), vivid(*rng.uniform((0.0, 0.1, 0.3), (1.0, 0.9, 1.0)))
        view.box(x - 0.05, y - 0.1, x + 0.05, y - 0.04, mix(body, (40, 50, 60), 0.5))
        view.box(x - 0.09, y - 0.055, x + 0.09, y, body)
        view.box(x - 0.07, y - 0.015, x - 0.03, y + 0.025, (25, 25, 25), True)
        view.box(x + 0.03, y - 0.015, x + 0.07, y + 0.025, (25, 25, 25), True)
    for x in rng.uniform(0.0, 1.0, int(rng.integers(0, 4))):
        y, cloth = view.horizon + rng.uniform(0.2, 0.38), vivid(*rng.uniform((0.0, 0.0, 0.3), (1.0, 0.8, 1.0)))
        view.box(x - 0.018, y - 0.09, x + 0.018, y, cloth)
        view.box(x - 0.014, y - 0.115, x + 0.014, y - 0.085, (150, 110, 85), True)
    if rng.uniform() < 0.25:
        x, width = rng.uniform(-0.1, 0.9), rng.uniform(0.1, 0.2)
        view.box(x, 0.15 + rng.uniform(0, 0.4), x + width, 1.3, vivid(rng.uniform(), 0.4, rng.uniform(0.2, 0.8)))


def _grade(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Applies white balance, exposure, contrast, saturation and noise to an (H, W, 3) picture of 0 to 255."""
    light = rgb.astype(np.float32) / 255.0
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * np.float32(rng.uniform(0.8, 1.15))
    gains = np.exp(rng.normal(0.0, 0.03, 3) + rng.normal(0.0, 0.08)).astype(np.float32)
    light = np.clip(light * gains, 0.0, 1.0) ** np.float32(math.exp(rng.normal(0.0, 0.08)))
    noise = rng.standard_normal(light.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.025))
    graded: NDArray[np.uint8] = (np.clip(light + noise, 0.0, 1.0) * 255.0).astype(np.uint8)
    return graded


def paint(lat_lon_deg: Sequence[float], rng: np.random.Generator, image_px: int) -> NDArray[np.uint8]:
    """Paints the view from a point.

    Args:
        lat_lon_deg: Latitude and longitude in degrees, length 2.
        rng: Source of everything that does not depend on the place.
        image_px: Side of the square picture in pixels.

    Returns:
        RGB picture, uint8, shape (image_px, image_px, 3).
    """
    look = look_at(lat_lon_deg)
    look |= {cue: look[cue] + error for cue, error in zip(WAVES, rng.normal(0.0, 0.035, len(WAVES)), strict=True)}
    view = View(Image.new("RGB", (2 * image_px, 2 * image_px)), rng, look)
    _sky_and_ridges(view)
    _ground_and_road(view)
    for x in rng.uniform(-0.1, 1.1, int(rng.integers(2, 6))):
        _tree(view, x, view.horizon + rng.uniform(0.05, 0.16), rng.uniform(0.2, 0.32))
    _building(view)
    for part in (_pole, _sign):
        if rng.uniform() < 0.85:
            part(view)
    _foreground(view)
    return _grade(np.asarray(view.image.reduce(2)), rng)
