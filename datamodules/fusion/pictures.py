"""Pictures of wounds as a network sees them: cropped, padded, resized; their values stay those of the file.

A picture is never divided by its own maximum: absolute temperature is the signal.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..errors import BadRowsError, StagewiseError
from ..images import read_image, why_unreadable
from .table import Corners

_EXIF_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes of grey with more than 8 bits
_OF_8_BITS = 257  # 255 * 257 = 65535
_FAR = 60.0  # mean distance in RGB at which a picture is surely not in the colours of a map; noise of JPEG is below 20


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height as EXIF turns the picture, from the header only.

    Raises:
        BadRowsError: missing, empty or no picture.
    """
    try:
        with Image.open(path) as image:
            exif = image.getexif() if "exif" in image.info else {}  # of other PNG it would decode the whole picture
            turned = exif.get(_EXIF_ORIENTATION) in _QUARTER_TURNS
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadRowsError(f"'{path}': {why_unreadable(path)}; replace or remove the file.") from error


def bits_of(path: str | Path) -> int:
    """8, or 16 for grey pictures with more than 8 bits; from the header only."""
    with Image.open(path) as image:
        return 16 if image.mode in _DEEP else 8


def cut_picture(path: str | Path, box: Corners | None, settings: Mapping[str, Any]) -> Tensor:
    """Reads a picture and cuts the square that a network sees.

    Args:
        path: of the file.
        box: in pixels of the picture as EXIF turns it; None shows it whole.
        settings: ``{px, channels, colormap, margin, bits}``.

    Returns:
        (channels, px, px) uint8, or uint16 where ``bits`` is 16.

    Raises:
        BadRowsError: the file does not decode, or has no false colours to turn back.
    """
    deep = bits_of(path) == 16 if Path(path).is_file() else False
    values = _deep_grey(path) if deep else read_image(path).float() * _OF_8_BITS  # (1 or 3, H, W), 0 to 65535
    if settings["colormap"]:
        values = _scalar(path, values, settings["colormap"], deep)
    elif settings["channels"] == 1 and len(values) == 3:
        values = F.rgb_to_grayscale(values)
    square = _square(values, box, float(settings["margin"]), int(settings["px"]))
    square = square.expand(int(settings["channels"]), -1, -1)
    if settings["bits"] == 8:
        return (square / _OF_8_BITS).round().to(torch.uint8)
    return square.round().to(torch.int32).to(torch.uint16)


def as_float(image: Tensor) -> Tensor:
    """Pixels as shares of the largest value that their type can hold, float32 in [0, 1]; floats stay.

    >>> as_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [0.0, 1.0]
    """
    if image.is_floating_point():
        return image
    return image.float() / (65535 if image.dtype == torch.uint16 else 255)


def from_false_colour(picture: NDArray[np.uint8], colormap: str) -> tuple[NDArray[np.uint8], float]:
    """Turns a false-colour map back to one scalar channel.

    Args:
        picture: (H, W, 3).
        colormap: matplotlib's name.

    Returns:
        (H, W) number 0 to 255 of the nearest colour of the map, and the mean distance to it in RGB.
    """
    tree, _ = _colours(colormap)
    flat = picture.reshape(-1, 3).astype(np.int64)
    packed, back = np.unique(flat @ (65536, 256, 1), return_inverse=True)
    distance, nearest = tree.query(np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1))
    return nearest.astype(np.uint8)[back].reshape(picture.shape[:2]), float(distance[back].mean())


def colours_of(colormap: str) -> NDArray[np.uint8]:
    """(256, 3) colours of one of matplotlib's maps.

    Raises:
        StagewiseError: matplotlib has no such map.
    """
    return _colours(colormap)[1]


@lru_cache(maxsize=4)
def _colours(colormap: str) -> tuple[Any, NDArray[np.uint8]]:
    import matplotlib
    from scipy.spatial import cKDTree

    if colormap not in matplotlib.colormaps:
        raise StagewiseError(f"image.colormap is '{colormap}', which matplotlib has not; such as inferno, jet, gray.")
    colours = (matplotlib.colormaps[colormap](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return cKDTree(colours), colours


def _scalar(path: str | Path, values: Tensor, colormap: str, deep: bool) -> Tensor:
    if deep:
        raise BadRowsError(f"'{path}' is 16-bit grey, so it has no false colours; set image.colormap=null.")
    pixels = (values / _OF_8_BITS).round().to(torch.uint8).permute(1, 2, 0).numpy()
    scalar, distance = from_false_colour(pixels, colormap)
    if distance > _FAR:
        raise BadRowsError(
            f"'{path}' is not in the colours of image.colormap={colormap} (mean distance {distance:.0f} of 255)."
        )
    return torch.from_numpy(scalar)[None].float() * _OF_8_BITS


def _deep_grey(path: str | Path) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadRowsError(f"'{path}': {why_unreadable(path)}; replace or remove the file.") from error
    return torch.from_numpy(pixels.clip(0, 65535).astype(np.float32))[None]


def window_of(box: Corners | None, picture_w_h: Sequence[int], margin: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels: the box and a margin, where the picture has one.

    Args:
        box: in pixels; None is the whole picture.
        picture_w_h: pixels.
        margin: on each side, as a share of the box's longer side.

    >>> window_of((10, 10, 30, 20), (100, 22), 0.1), window_of(None, (8, 6), 0.1)
    ((8, 8, 32, 22), (0, 0, 8, 6))
    """
    width, height = picture_w_h
    if box is None:
        return 0, 0, width, height
    left, top, right, bottom = box
    around = margin * max(right - left, bottom - top)
    first = [max(0, int(np.floor(low - around + 1e-6))) for low in (left, top)]
    last = [min(size, int(np.ceil(high + around - 1e-6))) for high, size in ((right, width), (bottom, height))]
    return first[0], first[1], last[0], last[1]


def _square(values: Tensor, box: Corners | None, margin: float, px: int) -> Tensor:
    """(C, H, W) -> (C, px, px): the window in the middle of a square of zeros; its aspect stays."""
    left, top, right, bottom = window_of(box, (values.shape[2], values.shape[1]), margin)
    side = max(right - left, bottom - top)
    width, height = (max(1, round(length * px / side)) for length in (right - left, bottom - top))
    shown = F.resize(values[:, top:bottom, left:right], [height, width], antialias=True)
    square = torch.zeros(len(values), px, px)
    y, x = (px - height) // 2, (px - width) // 2
    square[:, y : y + height, x : x + width] = shown.clamp(0, 65535)
    return square
