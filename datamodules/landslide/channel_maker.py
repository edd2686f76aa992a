"""Input rasters -> an area's channels on disk, block by block, in constant memory."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import StagewiseError
from .aligned_raster import AlignedRaster
from .channel_file import FACTS, TILE_PX, ChannelFile, read_json
from .channel_inputs import Inputs, Source, find_sources, key_of, reference
from .channels import HYDROLOGY, LANDCOVER_BAND, TERRAIN, WORLD_COVER, ChannelList
from .extras import require
from .hydrology import hydrology_channels
from .prepared import CHANNELS_FILE, Window
from .rasters import Grid, bounded_cache, read_grid
from .terrain import Channels, TerrainSettings, terrain_channels

log = logging.getLogger(__name__)
BLOCK_PX = 1024


def make_channels(
    source_folder: str | Path,
    channels: ChannelList,
    target: str | Path,
    settings: dict[str, Any] | None = None,
    block_px: int = BLOCK_PX,
    inputs: Inputs | None = None,
) -> Grid:
    """Writes ``channels.tif`` and ``channels.json`` for ``PreparedArea``.

    Nothing is done where they are there with the same key; a run that was killed goes on at its last block.

    Args:
        source_folder: with the input rasters.
        channels: to make.
        target: folder.
        settings: of ``TerrainSettings``.
        block_px: side of a block, a multiple of 256. Hydrology depends on it slightly, so it is part of the key.
        inputs: other files and bands than the usual, see ``channel_inputs.find_sources``.

    Returns:
        The grid of the channels. The seconds of each step are in ``channels.json``.

    Raises:
        StagewiseError: an input is missing, truncated, of a wrong CRS or does not cover the grid; land cover has
            unknown codes; the disk is full.
    """
    require("rasterio")
    if block_px <= 0 or block_px % TILE_PX:
        raise StagewiseError(f"`block_px` must be a multiple of {TILE_PX}, got {block_px}.")
    folder, target, terrain = Path(source_folder), Path(target), TerrainSettings.of(settings)
    sources = find_sources(folder, channels, inputs)
    grid = read_grid(reference(folder, sources))
    key = channels_key(folder, channels, settings, block_px, inputs)
    facts = read_json(target / FACTS)
    if facts.get("key") == key and (target / CHANNELS_FILE).is_file():
        return grid
    if facts:
        log.info("%s was made from other inputs or settings: its channels are made anew", target)
    with bounded_cache(), BlockMaker(channels, sources, grid, terrain) as maker:
        _write_blocks(maker, ChannelFile(target, grid, channels.stored, key), block_px, terrain)
    _log_seconds(target, maker.seconds)
    return grid


def channels_key(
    source_folder: str | Path,
    channels: ChannelList,
    settings: dict[str, Any] | None = None,
    block_px: int = BLOCK_PX,
    inputs: Inputs | None = None,
) -> str:
    """The key that ``make_channels`` would make with the same arguments; 16 hexadecimal digits.

    Raises:
        StagewiseError: an input is missing, or a setting unknown.
    """
    folder = Path(source_folder)
    sources = find_sources(folder, channels, inputs)
    parts = {
        "channels": channels.stored,
        "bands": {name: source.bands for name, source in sources.items()},
        "settings": TerrainSettings.of(settings).to_plain(),
        "block_px": block_px,
    }
    files = {name: source.path for name, source in sources.items()}
    return key_of(parts, {**files, "reference": reference(folder, sources)})


def _write_blocks(maker: "BlockMaker", file: ChannelFile, block_px: int, terrain: TerrainSettings) -> None:
    windows = blocks_of(file.grid, block_px)
    progress = tqdm(windows[file.done :], "channels", len(windows), initial=file.done, unit="block", disable=None)
    for window in progress:
        values = maker.make(window)
        with maker.timed("write"):
            file.write(window, values)
    plain = {"terrain": terrain.to_plain(), "block_px": block_px, "pixel_size_m": file.grid.pixel_size_m}
    file.finish({"key": file.key, "channels": list(file.bands), "seconds": maker.seconds, **plain})


def _log_seconds(target: Path, seconds: dict[str, float]) -> None:
    total = sum(seconds.values())
    shares = ", ".join(f"{step} {value:.1f} s ({value / total:.0%})" for step, value in seconds.items())
    log.info("channels of %s: %.1f s: %s", target, total, shares)


def blocks_of(grid: Grid, block_px: int) -> list[Window]:
    """Windows that tile the grid, row by row.

    >>> blocks_of(Grid("", (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), 300, 200), 256)
    [(0, 0, 200, 256), (0, 256, 200, 44)]
    """
    return [
        (row, column, min(block_px, grid.height - row), min(block_px, grid.width - column))
        for row in range(0, grid.height, block_px)
        for column in range(0, grid.width, block_px)
    ]


class BlockMaker:
    """Makes the channels of any window of a grid.

    Args:
        channels: to make.
        sources: rasters they are made from.
        grid: the reference.
        settings: windows and caps.
    """

    def __init__(
        self, channels: ChannelList, sources: dict[str, Source], grid: Grid, settings: TerrainSettings
    ) -> None:
        self.channels, self.grid, self.settings = channels, grid, settings
        self.seconds: dict[str, float] = {}
        self._sources = sources
        self._rasters = {
            name: AlignedRaster(source.path, source.bands, grid, classes=name == LANDCOVER_BAND)
            for name, source in sources.items()
        }
        self._terrain = [name for name in channels.stored if name in TERRAIN]
        self._hydrology = [name for name in channels.stored if name in HYDROLOGY]

    def make(self, window: Window) -> NDArray[np.float32]:
        """(len(stored), rows, columns) in physical units, NaN where there is no data."""
        made = self._from_dtm(window) if "dtm" in self._rasters else {}
        for name, raster in self._rasters.items():
            if name != "dtm":
                with self.timed(name):
                    made.update(zip(self._sources[name].channels, raster.read(window)))
        if LANDCOVER_BAND in made:
            self._check_codes(made[LANDCOVER_BAND])
        return np.stack([made[name] for name in self.channels.stored])

    def _from_dtm(self, window: Window) -> Channels:
        size, settings = self.grid.pixel_size_m, self.settings
        names = [*self._terrain, *(["slope"] if self._hydrology and "slope" not in self._terrain else [])]
        halo = settings.terrain_halo_px(size)
        wide = int(np.ceil(settings.hydrology_halo_m / size)) if self._hydrology else halo
        outer, inner = self._around(window, max(wide, halo)), self._around(window, halo)
        with self.timed("read dtm"):
            elevation = self._rasters["dtm"].read(outer)[0].astype(np.float64)
        with self.timed("terrain"):
            made = terrain_channels(names, elevation[_within(inner, outer)], self._beyond(window, halo), size, settings)
        if self._hydrology:
            with self.timed("hydrology"):
                block = _within(window, outer)
                made |= hydrology_channels(self._hydrology, elevation, block, made["slope"], size, settings)
        return made

    def _around(self, window: Window, halo: int) -> Window:
        row, column, rows, columns = window
        top, left = max(0, row - halo), max(0, column - halo)
        bottom, right = min(self.grid.height, row + rows + halo), min(self.grid.width, column + columns + halo)
        return top, left, bottom - top, right - left

    def _beyond(self, window: Window, halo: int) -> tuple[int, int, int, int]:
        row, column, rows, columns = window
        bottom, right = row + rows + halo - self.grid.height, column + columns + halo - self.grid.width
        return max(0, halo - row), max(0, bottom), max(0, halo - column), max(0, right)

    def _check_codes(self, codes: NDArray[np.float32]) -> None:
        found = np.unique(codes[~np.isnan(codes)])
        unknown = [float(code) for code in found if code not in WORLD_COVER]
        if unknown:
            raise StagewiseError(
                f"{self._sources[LANDCOVER_BAND].path} has the codes {unknown[:10]}, which are not ESA WorldCover's "
                f"{list(WORLD_COVER)}; translate them, or mark them as nodata."
            )

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds to the seconds of a step."""
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    def __enter__(self) -> "BlockMaker":
        return self

    def __exit__(self, *_: object) -> None:
        for raster in self._rasters.values():
            raster.close()


def _within(inner: Window, outer: Window) -> tuple[slice, slice]:
    row, column = inner[0] - outer[0], inner[1] - outer[1]
    return slice(row, row + inner[2]), slice(column, column + inner[3])
