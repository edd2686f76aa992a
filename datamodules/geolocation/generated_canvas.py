"""A picture in the making: a camera with its weather, and shapes given by scene positions."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .generated_fields import Look

Colour = tuple[int, ...]


def mix(first: Sequence[float], second: Sequence[float], share: float) -> Colour:
    """Blends two RGB colours (0 to 255); ``share`` is the part of the second."""
    return tuple(int(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def vivid(hue: float, saturation: float = 0.7, value: float = 0.75) -> Colour:
    """Returns an RGB colour (0 to 255) from a hue in cycles."""
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


@dataclass
class View:
    """One photograph in the making; positions are in picture widths, x to the right and y down."""

    image: Image.Image
    rng: np.random.Generator
    look: Look

    def __post_init__(self) -> None:
        """Draws the camera, the weather and the season of this photograph."""
        draw = self.rng.uniform
        self.size, self.draw = self.image.size[0], ImageDraw.Draw(self.image, "RGBA")
        self.yaw, self.zoom, self.horizon = draw(-0.09, 0.09), draw(0.88, 1.15), draw(0.47, 0.57)
        self.side = 1.0 if draw() < 0.5 else -1.0
        day = [(110, 165, 225), (165, 180, 195), (225, 190, 150), (140, 150, 190)][int(draw(0, 4))]
        self.sky = mix(day, (200, 210, 220), draw(0.0, 0.5))
        self.season, self.haze = draw(-1.0, 1.0), 0.15 + draw(0.0, 0.4)
        self.sun_side = draw(-1.0, 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the pixel of a scene position, after yaw and zoom."""
        turned_x, risen_y = (x - 0.5) * self.zoom + 0.5 + self.yaw, (y - self.horizon) * self.zoom + self.horizon
        return turned_x * self.size, risen_y * self.size

    def shape(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fills a polygon given by scene positions."""
        self.draw.polygon([self.at(x, y) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, round_: bool = False) -> None:
        """Fills an upright rectangle, or the ellipse inside it, given by scene positions."""
        fill = self.draw.ellipse if round_ else self.draw.rectangle
        fill([*self.at(left, top), *self.at(right, bottom)], fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """Strokes a path given by scene positions; ``width`` in picture widths."""
        self.draw.line([self.at(x, y) for x, y in points], fill=colour, width=max(1, round(width * self.size)))
