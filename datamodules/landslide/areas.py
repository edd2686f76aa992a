"""From a folder of rasters to areas that lie ready on disk."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetNotFoundError, StagewiseError
from .channel_inputs import find_sources, reference
from .channels import ChannelList
from .prepared import PreparedArea
from .rasters import Grid, read_grid

log = logging.getLogger(__name__)
LABEL_FILES = ("labels.tif", "labels.gpkg", "labels.csv")


def find_areas(
    root: str | Path, channels: ChannelList, inputs: Mapping[str, Any] | None = None, labels: str | None = None
) -> dict[str, Path]:
    """Name -> folder of each area: ``root`` itself where it holds rasters, otherwise its sub-folders that do.

    Args:
        root: of the data set.
        channels: that are needed.
        inputs: as of :func:`~.channel_maker.make_channels`, where files have other names.
        labels: another name of the label file.

    Raises:
        DatasetNotFoundError: no such folder, or no raster in it; it names the files that were looked for.
    """
    root = Path(root)
    files = {f"{source}.tif" for source in channels.inputs} | ({labels} if labels else set(LABEL_FILES))
    files |= {str(spec["path"] if isinstance(spec, Mapping) else spec) for spec in (inputs or {}).values()}
    if not root.is_dir():
        raise DatasetNotFoundError(f"no folder root='{root}'; pass datamodule.root=DIR with {sorted(files)}.")
    if any((root / name).is_file() for name in files):
        return {root.resolve().name: root}
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    found = {p.name: p for p in folders if any((p / name).is_file() for name in files)}
    if not found:
        raise DatasetNotFoundError(f"neither '{root}' nor a folder in it holds one of {sorted(files)}.")
    return found


def area_cache(cache_dir: str | Path, folder: Path, channels: Sequence[str], *settings: Any) -> Path:
    """Where an area with such channels and settings lies ready; others do not replace it."""
    content = json.dumps([str(folder.resolve()), list(channels), settings], sort_keys=True)
    digest = hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
    return Path(cache_dir) / "landslide" / f"{folder.resolve().name}-{digest}"


def area_grids(
    folders: Mapping[str, Path], channels: ChannelList, inputs: Mapping[str, Any] | None = None
) -> dict[str, Grid]:
    """The reference grid of each area.

    Raises:
        StagewiseError: a raster is missing or of no use, or the areas' pixels are not of one size.
    """
    grids = {name: read_grid(reference(at, find_sources(at, channels, inputs))) for name, at in folders.items()}
    sizes = {name: grid.pixel_size_m for name, grid in grids.items()}
    if max(sizes.values()) > 1.01 * min(sizes.values()):
        said = ", ".join(f"{name} {size:g} m" for name, size in sizes.items())
        raise StagewiseError(f"the areas' pixels differ: {said}; resample them to one size, see `rio warp --res`.")
    return grids


def open_areas(targets: Mapping[str, Path], channels: ChannelList) -> dict[str, PreparedArea]:
    """The areas that were prepared.

    Raises:
        DatasetNotFoundError: one is not there.
    """
    for name, target in targets.items():
        if not (target / "channels.tif").is_file():
            raise DatasetNotFoundError(f"area '{name}' was not prepared in '{target}'; call `prepare_data()` first.")
    return {name: PreparedArea(name, target, channels) for name, target in targets.items()}
