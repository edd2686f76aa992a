"""The things of a generated embankment. What gives a condition away is painted inside the thing's own box, only there.

Every thing carries harmless marks too (stains, dust, grass between the stones), and the marks of a condition can be
faint; ``difficulty`` sets how much of both.
"""

from dataclasses import dataclass

import numpy as np

from .generated_layout import Thing
from .generated_scene import Colour, Look, Picture, blend, noise

_SILT = np.array([0.30, 0.26, 0.18], np.float32)
_WATER = np.array([0.17, 0.16, 0.14], np.float32)


@dataclass(frozen=True)
class Brush:
    """What a thing is painted with.

    Attributes:
        rng: of the picture.
        look: of the location.
        difficulty: 0 for plain marks on clean things, 1 for marks hardly told from stains.
        scale: pixels of the picture, per pixel of a picture of 320.
    """

    rng: np.random.Generator
    look: Look
    difficulty: float
    scale: float

    def noise(self, patch: Picture, cell: float) -> Picture:
        """Smooth noise of the size of a patch; ``cell`` in pixels at 320."""
        return noise(self.rng, patch.shape[0], patch.shape[1], cell * self.scale)

    def strength(self) -> float:
        """How plainly the marks of one thing show, 0 to 1."""
        return float(1 - self.difficulty * self.rng.beta(1.2, 1.6))


def paint(picture: Picture, thing: Thing, brush: Brush) -> None:
    """Paints a thing into the picture, in place."""
    px = picture.shape[0]
    cx, cy, w, h = thing.box
    top, bottom = max(round((cy - h / 2) * px), 0), min(round((cy + h / 2) * px), px)
    left, right = max(round((cx - w / 2) * px), 0), min(round((cx + w / 2) * px), px)
    patch = picture[top:bottom, left:right]
    painters = {"vegetation": _paint_vegetation, "rock_toe": _paint_rocks}
    patch[:] = painters.get(thing.type, _paint_drain)(patch, thing, brush)


def _along_and_across(patch: Picture, thing: Thing) -> tuple[Picture, Picture]:
    """(H, W) way along the band in pixels, and across it: -0.5 at one edge, 0.5 at the other."""
    height, width = patch.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    along, across = (rows, columns) if thing.upright else (columns, rows)
    long, wide = (height, width) if thing.upright else (width, height)
    shift = thing.shear / (thing.box[2] if thing.upright else thing.box[3]) * wide
    thick = wide - abs(shift)
    middle = wide / 2 + shift * (along / long - 0.5)
    return along, (across - middle) / max(thick, 1.0)


def _spots(brush: Brush, along: Picture, count: int, share: float) -> Picture:
    """Positive inside ``count`` stretches that take ``share`` of the band's length together, negative outside."""
    long = float(along.max()) + 0.5
    half = max(share * long / count / 2, 2.5 * brush.scale)
    centres = (np.arange(count) + brush.rng.uniform(0.2, 0.8, count)) * long / count
    nearest = np.min([np.abs(along - float(centre)) for centre in centres], axis=0)
    return (half - nearest) / (3.0 * brush.scale)


def _paint_drain(patch: Picture, thing: Thing, brush: Brush) -> Picture:
    along, across = _along_and_across(patch, thing)
    lined = _lining(patch, thing, brush, along, across)
    marked = _harmless(lined, brush, along, across)
    if thing.condition == "damaged":
        marked = _break(marked, patch, brush, along, across)
    if thing.condition == "blocked":
        marked = _clog(marked, thing, brush, along, across)
    inside = np.clip((0.5 - np.abs(across)) * 12, 0, 1)
    return blend(patch, marked, inside)


def _lining(patch: Picture, thing: Thing, brush: Brush, along: Picture, across: Picture) -> Picture:
    """Two lips and the channel between them, in slabs with joints."""
    slab = 13 * brush.scale
    tint = 1 + 0.05 * brush.noise(patch, 25) + 0.05 * brush.noise(patch, 3)
    concrete = brush.look.concrete * tint[..., None]
    channel: Picture | Colour = concrete * np.float32(0.80)
    if thing.type == "toe_drain":  # a ditch with water in it
        channel = _WATER * (1.3 + 0.3 * brush.noise(patch, 4))[..., None] + np.float32(0.08) * concrete
    wide = 0.26 if thing.type == "slope_drain" else 0.24
    lined = blend(concrete, channel, np.clip((wide - np.abs(across)) * 14, 0, 1))
    shadow = np.clip((0.10 - np.abs(across + wide)) * 14, 0, 1)
    joints = np.where((along + brush.rng.uniform(0, slab)) % slab < 1.2 * brush.scale, 0.35, 0.0)
    return lined * (1 - 0.35 * shadow - joints * (np.abs(across) > wide * 0.9))[..., None]


def _harmless(lined: Picture, brush: Brush, along: Picture, across: Picture) -> Picture:
    """Stains, dust and overhanging grass, on any drain whatever its condition."""
    amount = brush.difficulty * brush.rng.uniform(0.1, 1.0)
    stains = np.clip(brush.noise(lined, 9) * 0.7 - 0.2, 0, 1) * amount
    marked = blend(lined, _SILT * np.float32(1.2), 0.8 * stains)
    dust = np.clip(brush.noise(lined, 12) * 0.7 - 0.3, 0, 1) * amount
    marked = blend(marked, brush.look.ground, 0.8 * dust)
    grass = np.clip(_spots(brush, along, 3, 0.3), 0, 1) * (np.abs(across) > 0.3 + 0.06 * brush.noise(lined, 3))
    return blend(marked, brush.look.plant, 0.8 * amount * grass)


def _break(marked: Picture, ground: Picture, brush: Brush, along: Picture, across: Picture) -> Picture:
    """Slabs that are gone, so that the ground shows, and cracks in the others."""
    strength = brush.strength()
    gaps = _spots(brush, along, int(brush.rng.integers(1, 4)), brush.rng.uniform(0.12, 0.35) * (0.4 + 0.6 * strength))
    ragged = gaps + 0.9 * brush.noise(marked, 3) * (0.4 + np.abs(across))
    rubble = blend(ground, brush.look.concrete, 0.55 * (brush.noise(marked, 2.5) > 0.9))
    bare = rubble * np.float32(0.88)
    marked = blend(marked, bare, np.clip(ragged * 2, 0, 1) * (0.25 + 0.75 * strength))
    swing = np.sin(along / (7 * brush.scale) + brush.rng.uniform(0, 6)) * 0.3 + 0.12 * brush.noise(marked, 6)
    crack = np.clip(1.3 - np.abs(across - swing) * 14, 0, 1) * np.clip(brush.noise(marked, 20) + 0.2, 0, 1)
    return marked * (1 - 0.6 * strength * crack)[..., None]


def _clog(marked: Picture, thing: Thing, brush: Brush, along: Picture, across: Picture) -> Picture:
    """Silt, leaves and weeds that fill the channel; the lips stay."""
    strength = brush.strength()
    plugs = _spots(brush, along, int(brush.rng.integers(1, 4)), brush.rng.uniform(0.20, 0.55) * (0.4 + 0.6 * strength))
    fill = np.clip(plugs + 0.6 * brush.noise(marked, 5), 0, 1) * np.clip((0.40 - np.abs(across)) * 8, 0, 1)
    leaves = np.clip(0.5 + 0.7 * brush.noise(marked, 2.5), 0, 1)
    silt = _SILT * np.float32(1.7) if thing.type == "toe_drain" else _SILT
    debris = blend(silt * (1 + 0.15 * brush.noise(marked, 2))[..., None], brush.look.plant * np.float32(0.8), leaves)
    return blend(marked, debris, fill * (0.25 + 0.75 * strength))


def _paint_rocks(patch: Picture, thing: Thing, brush: Brush) -> Picture:
    along, across = _along_and_across(patch, thing)
    size = brush.look.stone_px * brush.scale
    tone, joint = _stones(brush.rng, patch.shape[0], patch.shape[1], size)
    stones = brush.look.stone * (0.80 + 0.35 * tone + 0.05 * brush.noise(patch, 2))[..., None]
    rocks = blend(stones, stones * np.float32(0.35), joint)
    amount = brush.difficulty * brush.rng.uniform(0.1, 1.0)
    rocks = blend(rocks, brush.look.ground, np.clip(brush.noise(patch, 8) * 0.6 - 0.1, 0, 1) * amount)
    rocks = blend(rocks, brush.look.plant * np.float32(0.8), (brush.noise(patch, 4) > 2.2 - 0.9 * amount) * 0.8)
    if thing.condition == "damaged":
        strength = brush.strength()
        share = brush.rng.uniform(0.15, 0.45) * (0.4 + 0.6 * strength)
        slumps = _spots(brush, along, int(brush.rng.integers(1, 4)), share)
        ragged = slumps + 1.1 * brush.noise(patch, 7) - 0.8 * np.abs(across)
        earth = brush.look.ground * (0.92 + 0.08 * brush.noise(patch, 3))[..., None]
        rocks = blend(rocks, earth, np.clip(ragged * 1.5, 0, 1) * (0.25 + 0.75 * strength))
    inside = np.clip((0.5 - np.abs(across) + 0.03 * brush.noise(patch, 4)) * 12, 0, 1)
    return blend(patch, rocks, inside)


def _stones(rng: np.random.Generator, height: int, width: int, size: float) -> tuple[Picture, Picture]:
    """Cells around jittered points: (H, W) tone of each stone in [0, 1], and 1 in the joints between stones."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(size)
    shape = (int(height / size) + 4, int(width / size) + 4)
    jitter, tones = rng.random((2, *shape), np.float32) * np.float32(0.8), rng.random(shape, np.float32)
    cell_y, cell_x = rows.astype(int) + 1, columns.astype(int) + 1
    first = np.full((height, width), 9.0, np.float32)
    second, tone = first.copy(), np.zeros_like(first)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = cell_y + dy, cell_x + dx
            apart = np.hypot((y - 1 - rows) + jitter[0, y, x], (x - 1 - columns) + jitter[1, y, x])
            closer = apart < first
            second = np.where(closer, first, np.minimum(second, apart))
            tone = np.where(closer, tones[y, x], tone)
            first = np.minimum(first, apart)
    return tone, np.clip(1.2 - (second - first) * 5, 0, 1)


def _paint_vegetation(patch: Picture, thing: Thing, brush: Brush) -> Picture:
    height, width = patch.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inside = np.clip((0.95 - np.hypot(y, x) + 0.16 * brush.noise(patch, 8)) * 7, 0, 1)
    tone = 0.85 + 0.28 * brush.noise(patch, 2.5) + 0.22 * brush.noise(patch, 7) - 0.25 * (y > 0.6)
    tint = brush.look.plant * brush.rng.uniform(0.75, 1.15) + brush.rng.normal(0, 0.02, 3)
    return blend(patch, np.clip(tint * tone[..., None], 0.02, 1), inside)
