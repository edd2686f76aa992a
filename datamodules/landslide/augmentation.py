"""Random turns of whole tiles, light that changes on the ortho photograph only, and another height above the sea."""

import torch
from torch import Tensor

from ..errors import StagewiseError
from .channels import ORTHO, ChannelList
from .turning import ELEMENTS, turn

_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue, ITU-R BT.601


class TileAugmentation:
    """One of the eight turns for channels and mask, and brightness, contrast and saturation of red, green and blue.

    Args:
        channels: of the tiles.
        brightness: half-width of the factor around 1; so are the next two. 0 changes nothing.
        contrast: around the tile's mean.
        saturation: around grey.
        elevation_shift_m: deviation of the metres that a whole tile is lifted or lowered by. The height above the sea
            is a name of the place: a model for areas at other heights must not lean on it.

    Raises:
        StagewiseError: a half-width outside [0, 1), a negative shift, or an aspect that cannot be turned.

    >>> augment = TileAugmentation(ChannelList(["slope", "red", "green", "blue"]))
    >>> image, mask = augment(torch.rand(4, 8, 8), torch.zeros(8, 8, dtype=torch.long), torch.Generator())
    >>> image.shape, mask.shape
    (torch.Size([4, 8, 8]), torch.Size([8, 8]))
    """

    def __init__(
        self,
        channels: ChannelList,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        elevation_shift_m: float = 0.0,
    ) -> None:
        for name, width in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            if not 0 <= width < 1:
                raise StagewiseError(f"`{name}` must be a half-width from 0 to below 1, got {width}.")
        if elevation_shift_m < 0:
            raise StagewiseError(f"`elevation_shift_m` must be at least 0, got {elevation_shift_m}.")
        directed = [name for name in channels.names if "aspect" in name]
        if directed and (channels.aspect is None or len(directed) > 2):
            raise StagewiseError(
                f"the channels {directed} cannot be turned; give aspect_sin together with aspect_cos and no other "
                "aspect, or train without augmentation."
            )
        self.aspect, self.ortho = channels.aspect, channels.positions(*ORTHO)
        self.widths, self.shift_m = (brightness, contrast, saturation), elevation_shift_m
        self.elevation = channels.positions("elevation")

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws an element, three factors and a shift.

        Args:
            image: (C, H, W) with H = W, NaN is nodata.
            mask: (H, W).
            generator: on the CPU; the same number of draws whatever the channels are.

        Returns:
            Both anew; nodata stays nodata.
        """
        element = int(torch.randint(len(ELEMENTS), (), generator=generator))
        brightness, contrast, saturation = (
            float(1 + width * (2 * torch.rand((), generator=generator) - 1)) for width in self.widths
        )
        shift_m = self.shift_m * float(torch.randn((), generator=generator))
        image, mask = turn(image, element, self.aspect).clone(), turn(mask, element).clone()
        if self.ortho:
            image[self.ortho] = change_light(image[self.ortho], brightness, contrast, saturation)
        image[self.elevation] += shift_m
        return image, mask


def change_light(bands: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Scales the light, its spread around the mean, and the colours around grey.

    Unlike torchvision's it asks for no range of values: ortho photographs come in 8 or 16 bits or as reflectances, and
    nothing is clamped. Twice the values in, twice the values out.

    Args:
        bands: (1 to 3, H, W), NaN is nodata; saturation needs red, green and blue.
        brightness: factor; so are the others, and 1 changes nothing.
        contrast: around the mean over the pixels that are there.
        saturation: around the luma of each pixel.

    >>> change_light(torch.tensor([1.0, 3.0]).view(1, 1, 2), 2.0, 0.5, 1.0).flatten().tolist()
    [3.0, 5.0]
    """
    bands = bands * brightness
    mean = torch.nanmean(bands)
    bands = mean + contrast * (bands - mean)
    if len(bands) < len(_LUMA):
        return bands
    grey = torch.einsum("b,bhw->hw", bands.new_tensor(_LUMA), bands)
    return torch.where(grey.isnan(), bands, grey + saturation * (bands - grey))
