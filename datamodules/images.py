"""Reading, checking, cropping and augmenting pictures.

The geometry (crop and resize) runs per picture in the loader, the photometry per batch on the device. Both are pure
functions of a key, so a run that resumes sees the very pictures it would have seen.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from .errors import BadRowsError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
Box = tuple[int, int, int, int]  # top, left, height, width in pixels


def read_image(path: str | Path) -> Tensor:
    """Reads and decodes a picture.

    Returns:
        uint8 (3, H, W).

    Raises:
        BadRowsError: the file is missing, truncated or no picture.
    """
    try:
        return decoded(str(path))
    except RuntimeError as error:
        raise BadRowsError(f"'{path}': {why_unreadable(path)}; replace or remove the file.") from error


def decoded(source: str | Tensor) -> Tensor:
    """Decodes a JPEG, PNG, WebP or GIF, turned as its EXIF orientation says.

    Args:
        source: a path, or uint8 (N,) the content of a file.

    Returns:
        uint8 (3, H, W).

    Raises:
        RuntimeError: it is truncated or no picture.
    """
    image = decode_image(source, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    image = image if image.ndim == 3 else image[0]
    return F.to_dtype(image, torch.uint8, scale=True)  # a PNG may hold 16 bits a channel


def why_unreadable(path: str | Path) -> str:
    """Says what is wrong with a picture that does not decode."""
    if not Path(path).is_file():
        return "no such file"
    return "empty file" if Path(path).stat().st_size == 0 else "truncated or not a picture"


def unreadable_images(paths: Sequence[str], *, threads: int = 4, progress: bool = True) -> dict[int, str]:
    """Decodes every picture once.

    Returns:
        The position of each picture that fails, with the reason.
    """

    def reason(path: str) -> str | None:
        try:
            decode_image(path, mode=ImageReadMode.RGB)
        except RuntimeError:
            return why_unreadable(path)
        return None

    with ThreadPoolExecutor(threads) as pool:
        found: Iterable[str | None] = pool.map(reason, paths)
        bar = tqdm(found, desc="checking pictures", total=len(paths), disable=not progress, leave=False)
        return {i: text for i, text in enumerate(bar) if text}


def find_images(source: str | Path) -> list[Path]:
    """All pictures below a folder, or those that a pattern like ``folder/site03_*`` names, sorted; or the one file."""
    root = Path(source)
    if root.is_file():
        return [root]
    found = root.rglob("*") if root.is_dir() else root.parent.glob(root.name)
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def centre_box(height: int, width: int) -> Box:
    """The largest centred square: nothing is squashed."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], key: Sequence[int]
) -> Box:
    """A random crop that exists for a picture of any aspect.

    Its area is a share of the largest square of the picture, so it has the scale of :func:`centre_box`; torchvision's
    RandomResizedCrop takes a share of the whole picture and falls back to a fixed crop when that does not fit.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        area: smallest and largest share of the square's area.
        ratio: smallest and largest width / height.
        key: whole numbers that determine the box.

    >>> top, left, h, w = random_box(100, 300, (0.8, 1.0), (1.0, 1.0), key=(0, 7))
    >>> 89 <= h == w <= 100 and 0 <= left <= 300 - w
    True
    """
    u = np.random.Generator(np.random.Philox(key=_two_words(key))).random(4)
    side = min(height, width) * math.sqrt(area[0] + u[0] * (area[1] - area[0]))
    low = max(math.log(ratio[0]), 2 * math.log(side / height))  # a taller or wider box would stick out and,
    high = min(math.log(ratio[1]), 2 * math.log(width / side))  # cut to the picture, fall below the area
    stretch = math.exp((low + u[1] * (high - low)) / 2)
    h, w = (max(1, min(limit, round(x))) for limit, x in ((height, side / stretch), (width, side * stretch)))
    return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w


def _two_words(key: Sequence[int]) -> list[int]:
    """Philox takes two 64-bit words: the first number of the key, and the others."""
    rest = 0
    for number in key[1:]:
        rest = (rest * 1_000_003 + number) & 0xFFFF_FFFF_FFFF_FFFF
    return [key[0] & 0xFFFF_FFFF_FFFF_FFFF, rest]


def crop(image: Tensor, box: Box, size: int) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, size, size), antialiased bilinear."""
    top, left, height, width = box
    return F.resized_crop(image, top, left, height, width, [size, size], antialias=True)


def photometric(
    images: Tensor,
    generator: torch.Generator,
    *,
    jitter: Sequence[float] = (0.2, 0.2, 0.2, 0.02),
    gamma: tuple[float, float] = (0.8, 1.2),
    noise: float = 0.01,
) -> Tensor:
    """Colour jitter, gamma and Gaussian noise, drawn anew for each picture of a batch.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        generator: on the CPU; the draws do not depend on the device.
        jitter: half-widths of brightness, contrast, saturation (factors around 1) and hue (turns).
        gamma: range of the exponent.
        noise: standard deviation.

    Returns:
        float (B, 3, H, W) in [0, 1].
    """

    def draw(low: float, high: float) -> Tensor:
        u = torch.rand(len(images), 1, 1, 1, generator=generator)
        return (low + (high - low) * u).to(images.device, images.dtype)

    brightness, contrast, saturation, hue = (draw(1 - j, 1 + j) for j in jitter)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    images = _turn_colours(images, saturation, (hue - 1) * 2 * math.pi).clamp(0, 1)
    images = images.clamp(min=1e-4) ** draw(*gamma)
    deviation = torch.randn(images.shape, generator=generator).to(images.device, images.dtype)
    return (images + noise * deviation).clamp(0, 1)


_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _turn_colours(images: Tensor, saturation: Tensor, angle: Tensor) -> Tensor:
    """Scales and turns the chroma in YIQ: one 3 x 3 matrix a picture instead of a trip through HSV."""
    to_yiq = _TO_YIQ.to(images.device, images.dtype)
    cos, sin = (saturation * angle.cos()).flatten(), (saturation * angle.sin()).flatten()
    turn = torch.zeros(len(images), 3, 3, device=images.device, dtype=images.dtype)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    matrix = torch.linalg.inv(_TO_YIQ).to(images.device, images.dtype) @ turn @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrix, images)
