"""Where the things of a generated embankment lie, and in which condition they are.

The condition is drawn from what stands around a thing (how low it lies, vegetation beside it, drains above it) and from
the habits of its location, each thing on its own. So a table of boxes tells something about the condition, never all
of it, and one picture holds things of one type in different conditions. Positions are shares of the picture's side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .vocabulary import CLASSES

REAL_COUNTS = dict(zip(CLASSES, (52, 78, 76, 153, 366, 257, 97, 148, 238)))
"""Objects a class in the real set; the generated one has the same proportions."""

PULL = 2.2
"""How much the surroundings say about the condition; 0 for nothing."""

_NEAR = 0.06  # vegetation within this distance of a drain sheds leaves into it


@dataclass(frozen=True)
class Thing:
    """One object of a picture.

    Attributes:
        type: as the detector names it.
        box: centre x, centre y, width, height, shares of the picture's side.
        shear: how far the far end of a band is shifted across it, share of the picture's side, sign included.
        condition: None for vegetation, and until it is drawn.
    """

    type: str
    box: tuple[float, float, float, float]
    shear: float = 0.0
    condition: str | None = None

    @property
    def upright(self) -> bool:
        """Whether the band runs from top to bottom."""
        return self.type == "slope_drain"

    def outline(self) -> NDArray[np.float64]:
        """(K, 2) corners x, y; their bounding box is the box."""
        cx, cy, w, h = self.box
        if self.type == "vegetation":
            turn = np.arange(12) * np.pi / 6
            return np.stack([cx + w / 2 * np.cos(turn), cy + h / 2 * np.sin(turn)], axis=1)
        across = h if not self.upright else w
        thick = across - abs(self.shear)
        begin, end = (0.0, self.shear) if self.shear >= 0 else (-self.shear, 0.0)
        low, along = cy - h / 2 if not self.upright else cx - w / 2, np.array([-0.5, 0.5, 0.5, -0.5])
        edge = low + np.array([begin, end, end + thick, begin + thick])
        corners = np.stack([cx + w * along, edge], axis=1)
        return corners if not self.upright else np.stack([edge, cy + h * along], axis=1)


@dataclass(frozen=True)
class Terraces:
    """The profile of an embankment: upper and lower edge of each slope, shares of the picture's height."""

    slopes: tuple[tuple[float, float], ...]


def draw_terraces(rng: np.random.Generator, crest: float, two: float) -> Terraces:
    """One slope, or two with a berm between them.

    Args:
        rng: of the picture.
        crest: where the location's slopes usually begin.
        two: the location's share of pictures with two slopes.
    """
    top, toe = crest + rng.uniform(-0.04, 0.04), rng.uniform(0.77, 0.83)
    if rng.random() >= two:
        return Terraces(((top, toe),))
    middle = rng.uniform(0.42, 0.48)
    return Terraces(((top * 0.6, middle), (middle + rng.uniform(0.10, 0.13), toe + 0.02)))


def draw_things(rng: np.random.Generator, terraces: Terraces) -> list[Thing]:
    """The things of one picture, without conditions."""
    things: list[Thing] = []
    share = 1.0 if len(terraces.slopes) == 1 else 0.72
    for top, toe in terraces.slopes:
        rock = rng.uniform(0.10, 0.15)
        if rng.random() < 0.70 * share:
            things += _strips(rng, "rock_toe", toe - rock, rock, cuts=int(rng.choice([0, 1, 1, 2])), shear=0.01)
        if rng.random() < 0.47 * share:
            cuts = int(rng.random() < 0.15)
            things += _strips(rng, "toe_drain", toe + 0.01, rng.uniform(0.07, 0.09), cuts=cuts, shear=0.02)
        things += _slope_drains(rng, top, toe, count=int(rng.poisson(1.4 * share)))
    for _ in range(rng.poisson(1.05)):
        things += _vegetation(rng, things)
    return things


def _strips(rng: np.random.Generator, kind: str, top: float, thick: float, *, cuts: int, shear: float) -> list[Thing]:
    """A band across the picture, cut into pieces."""
    ends = [rng.choice([0.0, rng.uniform(0.0, 0.2)]), rng.choice([1.0, rng.uniform(0.8, 1.0)])]
    between = (np.arange(1, cuts + 1) + rng.uniform(-0.3, 0.3, cuts)) / (cuts + 1)
    edges = [ends[0], *between.tolist(), ends[1]]
    slant = rng.uniform(-shear, shear)
    pieces = []
    for left, right in pairwise(edges):
        w = right - left - 0.012
        tall = thick * rng.uniform(0.9, 1.1) + abs(slant)
        pieces.append(Thing(kind, (left + w / 2, top + tall / 2, w, tall), float(slant)))
    return pieces


def _slope_drains(rng: np.random.Generator, top: float, toe: float, count: int) -> list[Thing]:
    """Narrow bands down the slope, apart from each other."""
    columns = np.flatnonzero(rng.permutation(6) < count)
    lean = rng.uniform(-0.03, 0.03)
    drains = []
    for column in columns:
        long = min(toe - top, rng.uniform(0.28, 0.46) * (1.25 if toe - top > 0.5 else 1.0))
        start = top + rng.uniform(0.0, 1.0) * (toe - top - long)
        x, thick = (column + 0.5) / 6 + rng.uniform(-0.045, 0.045), rng.uniform(0.032, 0.045)
        shear = float(lean + rng.uniform(-0.01, 0.01))
        drains.append(Thing("slope_drain", (float(x), float(start + long / 2), thick + abs(shear), float(long)), shear))
    return drains


def _vegetation(rng: np.random.Generator, things: Sequence[Thing]) -> list[Thing]:
    """A bush, half of the time beside a drain; none where it would hide too much of the others."""
    drains = [thing for thing in things if thing.type.endswith("drain")]
    for _ in range(12):
        w, h = np.exp(rng.uniform(np.log(0.07), np.log(0.26), 2))
        x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2 + 0.02, 0.98 - h / 2)
        if drains and rng.random() < 0.5:
            cx, cy, dw, dh = drains[int(rng.integers(len(drains)))].box
            x = np.clip(cx + rng.choice([-1, 1]) * (min(dw, 0.4) / 2 + w * 0.4), w / 2, 1 - w / 2)
            y = np.clip(cy + rng.uniform(-0.5, 0.5) * dh, h / 2, 1 - h / 2)
        bush = Thing("vegetation", (float(x), float(y), float(w), float(h)))
        if all(_covered(other.box, bush.box) < 0.25 and _covered(bush.box, other.box) < 0.35 for other in things):
            return [bush]
    return []


def _covered(box: Sequence[float], by: Sequence[float]) -> float:
    """Share of a box that another one covers."""
    sides = [min(box[i] + box[i + 2] / 2, by[i] + by[i + 2] / 2) - max(box[i] - box[i + 2] / 2, by[i] - by[i + 2] / 2)
             for i in (0, 1)]  # fmt: skip
    return max(sides[0], 0.0) * max(sides[1], 0.0) / (box[2] * box[3])


def _gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Distance between the edges of two boxes; 0 where they touch."""
    across, along = (max(abs(one[i] - other[i]) - (one[i + 2] + other[i + 2]) / 2, 0.0) for i in (0, 1))
    return math.hypot(across, along)


def draw_conditions(
    rng: np.random.Generator, pictures: Sequence[Sequence[Thing]], habits: Sequence[dict[str, float]]
) -> list[list[Thing]]:
    """Gives every thing its condition; over all pictures the classes have the real proportions.

    Args:
        rng: of the data set.
        pictures: things of each picture, without conditions.
        habits: for each picture, its location's leaning towards each condition, log odds.
    """
    drawn = [list(things) for things in pictures]
    for kind in ("toe_drain", "rock_toe", "slope_drain"):
        conditions = [str(one.condition) for one in CLASSES if one.type == kind]
        where = [(i, j) for i, things in enumerate(drawn) for j, thing in enumerate(things) if thing.type == kind]
        if not where:
            continue
        rows = [_leanings(drawn[i], j, habits[i]) for i, j in where]
        shares = _matched(np.array([[row[name] for name in conditions] for row in rows]), _real_shares(kind))
        for (i, j), share in zip(where, shares):
            drawn[i][j] = replace(drawn[i][j], condition=str(rng.choice(conditions, p=share)))
    return drawn


def _leanings(things: Sequence[Thing], which: int, habits: dict[str, float]) -> dict[str, float]:
    """Log odds of each condition from where the thing lies and what lies around it."""
    thing = things[which]
    bushes = [other.box for other in things if other.type == "vegetation"]
    above = sum(other.upright for other in things)
    beside = float(any(_gap(thing.box, bush) < _NEAR for bush in bushes))
    low = (thing.box[1] - 0.55) / 0.25
    blocked = 0.9 * low + 1.3 * beside + 0.4 * bool(bushes)
    damaged = 0.8 * low + 0.5 * (above - 1) if thing.type == "rock_toe" else -0.8 * low - 0.6 * beside
    pulls = {"normal": 0.0, "blocked": PULL * blocked, "damaged": PULL * damaged}
    return {name: value + habits[name] for name, value in pulls.items()}


def _real_shares(kind: str) -> NDArray[np.float64]:
    counts = np.array([count for one, count in REAL_COUNTS.items() if one.type == kind], float)
    return counts / counts.sum()


def _matched(log_odds: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, C) probabilities with these log odds up to a constant a column, whose mean over the rows is ``shares``."""
    weights = np.exp(log_odds)
    for _ in range(50):
        p = weights / weights.sum(axis=1, keepdims=True)
        weights = weights * (shares / p.mean(axis=0))
    return weights / weights.sum(axis=1, keepdims=True)
