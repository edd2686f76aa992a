"""The generated landscape's land cover, orthophoto, exact susceptibility rule and labels. Pure functions of arrays.

The rule: ground fails (class high) with the probability ``sigmoid(sharpness * score)``. The score knows slope,
hollows, wetness, aspect, land cover, the rock and steep ground above. No raster shows the rock; the orthophoto has its
grain: weak rock is finely mottled, hard rock is blotched, with the same spread of colours in a single pixel. Ground
that is too gentle to fail, within 15 pixels straight downhill of ground that fails, is run over (class medium).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, label
from scipy.special import expit, ndtr

from .generated_terrain import (
    Field,
    convergence,
    drainage_tree,
    drained_area,
    gradient,
    highest_upslope,
    random_field,
    relief,
)

LOW, MEDIUM, HIGH = 1, 2, 3
RUNOUT_PX, APRON_PX = 15, 10
RULE: dict[str, float] = {
    "sharpness": 5.0,  # of both classes' probabilities
    "slope": 4.0,  # x exp(-((slope - optimum) / width)^2)
    "slope_optimum_deg": 33.0,
    "slope_width_deg": 10.0,
    "hollow": 0.7,  # x tanh(convergence of the flow x 30 m)
    "wetness": 0.35,  # x (TWI - 6), at most 2 of it
    "aspect": 0.6,  # x cos(aspect - the wet side)
    "weak_rock": 1.4,  # x weakness, -1 to 1
    "apron": 1.0,  # x (the steepest slope within 10 px uphill - 36 degrees) / 4 degrees, 0 to 1
    "smooth_px": 1.7,  # of the Gaussian that the score is smoothed with: ground fails in one piece
    "runout_source": 0.45,  # probability of failure uphill from which on ground is run over
    "runout_slope_deg": 22.0,  # steeper ground is not
}  # fmt: skip
COVER_EFFECT = {10: -1.3, 20: -0.4, 30: 0.3, 40: 0.2, 50: -1.0, 60: 1.1, 70: -1.5, 80: -8.0, 90: -1.0, 100: 0.3}

_COLOUR = {
    10: (58, 82, 48), 20: (108, 112, 74), 30: (128, 134, 84), 40: (152, 140, 92), 50: (158, 150, 146),
    60: (150, 134, 116), 70: (222, 226, 232), 80: (62, 84, 96), 90: (86, 102, 76), 100: (122, 118, 98),
}  # fmt: skip


@dataclass(frozen=True)
class Climate:
    """What makes an area unlike another.

    Attributes:
        mean_elevation_m: of the area.
        steepness: slope at the channel heads, metre a metre.
        forest: share of the area under trees.
        bare: share of the area without plants.
        snow: share of the area under snow, its highest ground.
        crops: share of the area under crops, where it is gentle.
        wet_side_deg: direction (clockwise from north) that wet slopes face.
        intercept: of the score.
        brightness: of the orthophoto, as a factor.
        unlabelled: share of the area that nobody mapped.
        missing_corners: share of a side that the terrain model's corners lack.
        missed: share of the landslides that the mapping missed.
    """

    mean_elevation_m: float = 900.0
    steepness: float = 0.5
    forest: float = 0.4
    bare: float = 0.06
    snow: float = 0.0
    crops: float = 0.15
    wet_side_deg: float = 200.0
    intercept: float = -2.9
    brightness: float = 1.0
    unlabelled: float = 0.2
    missing_corners: float = 0.0
    missed: float = 0.06


@dataclass(frozen=True)
class Landscape:
    """Rasters of one area, all (H, W) but ``ortho``, (3, H, W) uint8; ``known`` is False where there is no data."""

    height_m: Field
    landcover: NDArray[np.uint8]
    ortho: NDArray[np.uint8]
    p_high: Field
    p_medium: Field
    labels: NDArray[np.uint8]
    known: NDArray[np.bool_]

    @property
    def truth(self) -> NDArray[np.uint8]:
        """The most probable class, 1 to 3."""
        p_low = 1 - self.p_high - self.p_medium
        return (np.argmax([p_low, self.p_medium, self.p_high], axis=0) + LOW).astype(np.uint8)


def landscape(rng: np.random.Generator, side: int, pixel_size_m: float, climate: Climate) -> Landscape:
    """Draws an area.

    Args:
        rng: source of all that is random.
        side: rows and columns.
        pixel_size_m: of the grid; the shapes are made for about 10.
        climate: of the area.

    Returns:
        Its rasters.

    >>> area = landscape(np.random.default_rng(0), 64, 10.0, Climate())
    >>> area.ortho.shape, sorted(set(area.labels.ravel().tolist()))
    ((3, 64, 64), [0, 1, 2, 3])
    """
    height = relief(rng, side, pixel_size_m, climate.steepness)
    height += climate.mean_elevation_m - height.mean()
    north, east = gradient(height, pixel_size_m)
    steep = np.hypot(north, east)
    area = drained_area(*drainage_tree(height)).reshape(height.shape).astype(np.float32)
    wetness = gaussian_filter(np.log(area * pixel_size_m / np.maximum(steep, 0.01)), 1.0)
    slope_deg = np.degrees(np.arctan(steep))
    cover = land_cover(rng, height, slope_deg, wetness, area, climate)
    weakness = np.tanh(2.5 * random_field(rng, side, power=2.5, finest=16, coarsest=120))
    facing_wet = np.cos(np.arctan2(-east, -north) - np.radians(climate.wet_side_deg))
    score = climate.intercept + failure_score(height, slope_deg, wetness, facing_wet, cover, weakness, pixel_size_m)
    p_high, p_medium = class_probabilities(score, height, slope_deg, cover)
    known = inside(side, climate.missing_corners)
    labels = draw_labels(rng, p_high, p_medium, climate) * known
    sun = np.clip((1 - 0.9 * east * -0.5 + 0.9 * north * -0.5) / np.sqrt(1 + steep**2), 0.35, 1.4)
    ortho = picture(rng, cover, weakness, sun.astype(np.float32), climate.brightness)
    return Landscape(height, cover, ortho, p_high, p_medium, labels, known)


def land_cover(
    rng: np.random.Generator, height: Field, slope_deg: Field, wetness: Field, area: Field, climate: Climate
) -> NDArray[np.uint8]:
    """WorldCover codes: shares of the area by rank of what favours each class, later ones over earlier ones."""
    side, relative = height.shape[0], (height - height.mean()) / height.std()
    patches = [random_field(rng, side, power=1.6, finest=3, coarsest=90) for _ in range(5)]
    cover = np.full(height.shape, 30, np.uint8)
    favours = (
        (20, 0.2, patches[0] + 0.3 * relative),
        (10, climate.forest, patches[1] - 0.3 * relative + 0.02 * slope_deg),
        (40, climate.crops, patches[2] - 0.15 * slope_deg),
        (100, 0.5 * climate.snow, relative + 0.4 * patches[0]),
        (60, climate.bare, patches[3] + 0.05 * slope_deg),
        (50, 0.008, patches[4] - 0.2 * slope_deg),
        (90, 0.01, wetness - 0.3 * slope_deg),
        (70, climate.snow, relative + 0.2 * patches[3]),
    )
    for code, share, favour in favours:
        if share > 0:
            cover[favour > np.quantile(favour, 1 - share)] = code
    cover[binary_dilation(area > 2500)] = 80
    return cover


def failure_score(
    height: Field, slope_deg: Field, wetness: Field, facing_wet: Field, cover: NDArray[np.uint8], weakness: Field,
    pixel_size_m: float,
) -> Field:  # fmt: skip
    """Score of failure but for the climate's intercept; the terms of ``RULE`` and ``COVER_EFFECT``."""
    smooth_deg = gaussian_filter(slope_deg, 1.0)
    slope = np.exp(-(((smooth_deg - RULE["slope_optimum_deg"]) / RULE["slope_width_deg"]) ** 2))
    hollow = np.tanh(30 * convergence(height, pixel_size_m, 2.0))
    apron = np.clip((highest_upslope(smooth_deg, height, APRON_PX) - 36) / 4, 0, 1)
    effect = np.zeros(256, np.float32)
    effect[list(COVER_EFFECT)] = list(COVER_EFFECT.values())
    score = RULE["slope"] * slope + RULE["hollow"] * hollow + RULE["wetness"] * np.clip(wetness - 6, -2, 2)
    score += RULE["aspect"] * facing_wet + RULE["weak_rock"] * weakness + RULE["apron"] * apron
    return gaussian_filter(score + effect[cover], RULE["smooth_px"]).astype(np.float32)


def class_probabilities(score: Field, height: Field, slope_deg: Field, cover: NDArray[np.uint8]) -> tuple[Field, Field]:
    """Probabilities of high and of medium; low has the rest."""
    p_high = expit(RULE["sharpness"] * score)
    source = gaussian_filter(highest_upslope(p_high, height, RUNOUT_PX), 1.0)
    gentle = (RULE["runout_slope_deg"] - gaussian_filter(slope_deg, 1.0)) / 2
    reached = (source - RULE["runout_source"]) / 0.1
    p_runout = expit(RULE["sharpness"] * np.minimum(gentle, reached)) * (cover != 80)
    return p_high.astype(np.float32), ((1 - p_high) * p_runout).astype(np.float32)


def draw_labels(rng: np.random.Generator, p_high: Field, p_medium: Field, climate: Climate) -> NDArray[np.uint8]:
    """Draws each pixel's class with exactly its probabilities, neighbours alike; then misses objects and leaves gaps.

    The noise is a random field whose values are evenly distributed over (0, 1) at each pixel.
    """
    side = p_high.shape[0]
    first, second = (ndtr(random_field(rng, side, power=1.0, finest=6, coarsest=24)) for _ in range(2))
    labels = np.full(p_high.shape, LOW, np.uint8)
    labels[second < p_medium / np.maximum(1 - p_high, 1e-6)] = MEDIUM
    labels[first < p_high] = HIGH
    objects, count = label(labels > LOW)
    sizes = np.bincount(objects.ravel(), minlength=count + 1)
    missed = (rng.random(count + 1) < climate.missed) & (sizes < 0.002 * labels.size)
    missed[0] = False
    labels[missed[objects]] = LOW
    gaps = random_field(rng, side, power=2.0, finest=12, coarsest=side / 3)
    labels[gaps > np.quantile(gaps, 1 - climate.unlabelled)] = 0
    return labels


def inside(side: int, missing_corners: float) -> NDArray[np.bool_]:
    """Where a turned survey has data: all but the north-east and south-west corners; (side, side)."""
    rows, columns = np.indices((side, side)) / side
    off = columns - rows
    return (off < 1 - missing_corners) & (off > missing_corners - 1)


def picture(
    rng: np.random.Generator, cover: NDArray[np.uint8], weakness: Field, sun: Field, brightness: float
) -> NDArray[np.uint8]:
    """Orthophoto, (3, H, W) uint8: cover's colours in the sun, with the rock's grain and the sensor's noise."""
    side = cover.shape[0]
    table = np.zeros((256, 3), np.float32)
    table[list(_COLOUR)] = list(_COLOUR.values())
    weak = (1 + weakness) / 2
    fine, coarse = (
        random_field(rng, side, power=0.0, finest=2),
        random_field(rng, side, power=1.0, finest=8, coarsest=20),
    )
    grain = 11 * (np.sqrt(weak) * fine + np.sqrt(1 - weak) * coarse)
    grain *= np.where(np.isin(cover, (10, 50, 70, 80)), 0.6, 1.0)
    tone = 5 * random_field(rng, side, power=1.5, finest=4, coarsest=60)
    bands = table[cover].transpose(2, 0, 1) * sun + grain + tone
    bands += np.array([3.0, 0.0, -3.0])[:, None, None] * weakness  # iron in the weak rock
    bands += rng.normal(0, 2.5, bands.shape)
    return np.clip(np.rint(bands * brightness), 1, 255).astype(np.uint8)
