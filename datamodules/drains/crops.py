"""What a network sees of an object: its crop, or the whole picture with its box. Nothing is squashed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..errors import StagewiseError
from .boxes import to_corners

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's normalisation: it becomes 0 there
MEAN_COLOUR = tuple(round(255 * share) for share in CLIP_MEAN)
MARK_COLOUR = (255, 0, 0)
MIN_MARGIN_PX = 3
PADS = ("mean", "context", "fold")
MOST_PIECES = 8


class Window(NamedTuple):
    """Which pixels are shown, and the square that they are laid into; all in pixels of the picture.

    Args:
        left: of the shown pixels.
        top: of them.
        right: of them, exclusive.
        bottom: of them, exclusive.
        square_left: may lie outside the picture.
        square_top: may lie outside the picture.
        side: of the square.
        pieces: into which a strip is cut, to be laid side by side; 1 leaves it whole.
    """

    left: int
    top: int
    right: int
    bottom: int
    square_left: int
    square_top: int
    side: int
    pieces: int = 1


def crop_window(box: ArrayLike, picture_w_h: Sequence[int], margin: float = 0.1, pad: str = "mean") -> Window:
    """The window of an object: the whole box, and around it a margin where the picture has one.

    Args:
        box: (4,) ``cx, cy, w, h``.
        picture_w_h: pixels.
        margin: on each side, as a share of the box's longer side; at least 3 px.
        pad: what fills the rest of the square beside a thin box: ``mean`` is CLIP's mean colour, ``context`` the
            picture's own surroundings, and the mean colour only beyond the picture's edge; ``fold`` cuts a thin strip
            into pieces and lays them side by side, larger: of a drain of 311 x 30 px, 3 times as large.

    Raises:
        StagewiseError: an unknown ``pad`` or a negative margin.

    >>> crop_window([0.5, 0.5, 0.8, 0.1], (100, 100), margin=0.125)
    Window(left=0, top=35, right=100, bottom=65, square_left=0, square_top=0, side=100, pieces=1)
    """
    if pad not in PADS or margin < 0:
        raise StagewiseError(f"`pad` must be one of {PADS} and `margin` at least 0, got '{pad}' and {margin}.")
    size = np.asarray(picture_w_h)
    first, last = np.split(to_corners(box, picture_w_h)[0], 2)
    around = max(MIN_MARGIN_PX, margin * (last - first).max())
    low = np.clip(np.floor(first - around + 1e-6), 0, size - 1).astype(int)
    high = np.clip(np.ceil(last + around - 1e-6), low + 1, size).astype(int)
    side = int((high - low).max())
    corner = (low + high - side) // 2
    if pad == "context":
        low, high = corner.clip(0), np.minimum(corner + side, size)
    pieces = _pieces(*(high - low).tolist()) if pad == "fold" else 1
    return Window(*map(int, (*low, *high, *corner, side, pieces)))


def _pieces(width: int, height: int) -> int:
    """How many pieces make a strip largest in a square.

    >>> _pieces(320, 40), _pieces(20, 120), _pieces(30, 40)
    (3, 2, 1)
    """
    short, long = sorted((width, height))
    return max(range(1, MOST_PIECES + 1), key=lambda count: min(count / long, 1 / (count * short)))


def whole_window(picture_w_h: Sequence[int]) -> Window:
    """The window of a whole picture.

    >>> whole_window((100, 60))
    Window(left=0, top=0, right=100, bottom=60, square_left=0, square_top=-20, side=100, pieces=1)
    """
    width, height = (int(x) for x in picture_w_h)
    side = max(width, height)
    return Window(0, 0, width, height, (width - side) // 2, (height - side) // 2, side)


def letterbox(picture: Tensor, window: Window, px: int) -> Tensor:
    """Lays a window into a square, antialiased; its aspect stays.

    Args:
        picture: uint8 (3, H, W).
        window: of the picture.
        px: side of the result.

    Returns:
        uint8 (3, px, px), CLIP's mean colour where the window shows nothing.
    """
    left, top, right, bottom, x, y, side, pieces = window
    if pieces > 1:
        return _folded(picture[:, top:bottom, left:right], pieces, px)
    width, height = (max(1, round(length * px / side)) for length in (right - left, bottom - top))
    shown = F.resize(picture[:, top:bottom, left:right], [height, width], antialias=True)
    at_x, at_y = (min(round(gap * px / side), px - n) for gap, n in ((left - x, width), (top - y, height)))
    square = _blank(px, px)
    square[:, at_y : at_y + height, at_x : at_x + width] = shown
    return square


def _folded(strip: Tensor, pieces: int, px: int) -> Tensor:
    """Pieces of a strip one below the other; of an upright one, one beside the other."""
    if strip.shape[1] > strip.shape[2]:
        return _folded(strip.transpose(1, 2), pieces, px).transpose(1, 2).contiguous()
    row, length = px // pieces, pieces * px
    scale = min(row / strip.shape[1], length / strip.shape[2])
    height, width = (max(1, min(most, round(n * scale))) for n, most in zip(strip.shape[1:], (row, length)))
    line, top, left = _blank(row, length), (row - height) // 2, (length - width) // 2
    line[:, top : top + height, left : left + width] = F.resize(strip, [height, width], antialias=True)
    square = _blank(px, px)
    square[:, : row * pieces] = line.view(3, row, pieces, px).transpose(1, 2).reshape(3, row * pieces, px)
    return square


def _blank(height: int, width: int) -> Tensor:
    return torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None].repeat(1, height, width)


def mark_box(whole: Tensor, box: ArrayLike, picture_w_h: Sequence[int]) -> Tensor:
    """Draws a box into a whole picture; the line lies around the object, inside the square.

    Args:
        whole: uint8 (3, S, S) of :func:`letterbox` with :func:`whole_window`.
        box: (4,) ``cx, cy, w, h``.
        picture_w_h: of the picture before it was letterboxed, pixels.

    Returns:
        A copy with a red frame.
    """
    px, window = whole.shape[-1], whole_window(picture_w_h)
    line = max(1, px // 112)
    offset = np.tile([window.square_left, window.square_top], 2)
    corners = (to_corners(box, picture_w_h)[0] - offset) * px / window.side
    left, top = (max(line, int(v)) for v in np.floor(corners[:2]))
    right, bottom = (min(px - line, int(v)) for v in np.ceil(corners[2:]))
    inner = whole[:, top:bottom, left:right].clone()
    marked = whole.clone()
    colour = torch.tensor(MARK_COLOUR, dtype=torch.uint8)[:, None, None]
    marked[:, top - line : bottom + line, left - line : right + line] = colour
    marked[:, top:bottom, left:right] = inner
    return marked


def jiggle(image: Tensor, flip: bool, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Mirrors left and right, zooms about the centre and shifts; never upside down, as gravity is a cue.

    Args:
        image: uint8 (3, S, S).
        flip: left and right change sides.
        zoom: above 1 the object grows.
        shift: to the right and down, as shares of S.

    Returns:
        uint8 (3, S, S), CLIP's mean colour where nothing is left to show.
    """
    image = image.flip(-1) if flip else image
    if zoom == 1 and not any(shift):
        return image
    px = image.shape[-1]
    length = px / zoom
    x, y = (round((px - length) / 2 - part * length) for part in shift)
    side = max(1, round(length))
    window = Window(max(0, x), max(0, y), min(px, x + side), min(px, y + side), x, y, side)
    return letterbox(image, window, px)
