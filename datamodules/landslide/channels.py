"""The channels of a landslide model: their names, what they are made of, and how they lie on disk."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError

WORLD_COVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
"""Class codes of ESA WorldCover (https://esa-worldcover.org): tree cover, shrubland, grassland, cropland, built-up,
bare, snow and ice, water, herbaceous wetland, mangroves, moss and lichen."""

TERRAIN = (
    "elevation",  # m
    "slope",  # degrees
    "aspect_sin",  # of the downslope direction, clockwise from north
    "aspect_cos",
    "curvature",
    "plan_curvature",
    "profile_curvature",
    "tpi",  # topographic position index, m
    "tri",  # terrain ruggedness index, m
)
HYDROLOGY = ("log_flow_accumulation", "twi", "spi", "sti", "log_distance_to_drainage")
ORTHO = ("red", "green", "blue")
LANDCOVER = tuple(f"landcover_{code}" for code in WORLD_COVER)
RECIPE = (*TERRAIN, *HYDROLOGY, *ORTHO, *LANDCOVER)
"""The 28 channels of the recipe."""

LANDCOVER_BAND = "landcover"
"""Name of the band on disk that holds the class code; its one-hot channels are made when it is read."""


class ChannelList:
    """The channels that a model sees, in order.

    Args:
        names: of the recipe's channels, or of bands of a raster with ready-made attributes.

    Raises:
        StagewiseError: none at all, one twice, or some land-cover classes without the others.

    >>> channels = ChannelList(RECIPE)
    >>> len(channels), len(channels.stored), channels.inputs
    (28, 18, ('dtm', 'ortho', 'landcover'))
    >>> ChannelList(["slope", "my_index"]).inputs
    ('dtm', 'attributes')
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        if not self.names or len(set(self.names)) < len(self.names):
            raise StagewiseError(f"`channels` must be different names, at least one, got {list(names)}.")
        missing = set(LANDCOVER) - set(self.names)
        if missing and missing != set(LANDCOVER):
            raise StagewiseError(f"`channels` leaves out {sorted(missing)}; give all eleven classes or none of them.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stored(self) -> tuple[str, ...]:
        """Bands on disk: the land-cover channels are one band of codes."""
        bands = [name for name in self.names if name not in LANDCOVER]
        return (*bands, LANDCOVER_BAND) if len(bands) < len(self.names) else tuple(bands)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input rasters that are needed: ``dtm``, ``ortho``, ``landcover``, ``attributes``."""
        known = {"dtm": {*TERRAIN, *HYDROLOGY}, "ortho": set(ORTHO), "landcover": set(LANDCOVER)}
        needed = [source for source, channels in known.items() if channels & set(self.names)]
        return (*needed, "attributes") if set(self.names) - set().union(*known.values()) else tuple(needed)

    def positions(self, *names: str) -> list[int]:
        """Positions of those of ``names`` that are there."""
        return [self.names.index(name) for name in names if name in self.names]

    @property
    def aspect(self) -> tuple[int, int] | None:
        """Positions of sine and cosine of the aspect, which turn with the picture; None without them."""
        found = self.positions("aspect_sin", "aspect_cos")
        return (found[0], found[1]) if len(found) == 2 else None

    @property
    def one_hot(self) -> list[int]:
        """Positions of the land-cover channels, which are never normalised."""
        return self.positions(*LANDCOVER)

    def expand(self, bands: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bands on disk -> channels.

        Args:
            bands: (len(stored), H, W); NaN is nodata.

        Returns:
            (len(self), H, W) in the order of ``names``; NaN in all land-cover channels where its code is NaN.

        Raises:
            StagewiseError: a land-cover code that is not one of WorldCover's.
        """
        position = {name: i for i, name in enumerate(self.stored)}
        channels = np.empty((len(self), *bands.shape[1:]), np.float32)
        for i, name in enumerate(self.names):
            if name in position:
                channels[i] = bands[position[name]]
        if LANDCOVER_BAND in position:
            code = bands[position[LANDCOVER_BAND]]
            known = np.isnan(code)
            for i, value in zip(self.one_hot, WORLD_COVER):
                one = code == value
                known |= one
                channels[i] = np.where(np.isnan(code), np.nan, one)
            if not known.all():
                raise StagewiseError(f"land cover has the codes {np.unique(code[~known])[:5]}; known: {WORLD_COVER}.")
        return channels
