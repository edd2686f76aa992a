"""Which raster and which of its bands each channel is made from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetNotFoundError, StagewiseError
from .aligned_raster import Band
from .channels import HYDROLOGY, LANDCOVER_BAND, ORTHO, TERRAIN, ChannelList

SOURCES = ("dtm", "ortho", "landcover", "attributes")
Inputs = Mapping[str, str | Mapping[str, Any]]


@dataclass(frozen=True)
class Source:
    """A raster that channels are made from.

    Attributes:
        path: of the raster.
        channels: bands of the prepared area that are read from it; empty for ``dtm``, whose channels are computed.
        bands: of the raster, one for each of ``channels``; the elevation of ``dtm``.
    """

    path: Path
    channels: tuple[str, ...]
    bands: tuple[Band, ...]


def find_sources(folder: Path, channels: ChannelList, inputs: Inputs | None = None) -> dict[str, Source]:
    """The rasters that the channels need.

    Args:
        folder: with ``dtm.tif``, ``ortho.tif``, ``landcover.tif``, ``attributes.tif``.
        channels: that are made.
        inputs: source -> another file name (or path), or ``{"path": ..., "bands": ...}``: a band of dtm or landcover,
            the three of ortho, or for attributes channel -> band where the names differ.

    Raises:
        DatasetNotFoundError: a raster is not there; names the channels that need it.
        StagewiseError: ``inputs`` names a source that does not exist, or bands that do not fit.
    """
    inputs = inputs or {}
    unknown = sorted(set(inputs) - set(SOURCES))
    if unknown:
        raise StagewiseError(f"`inputs` names {unknown}; the sources are {list(SOURCES)}.")
    made = {"dtm": (), "ortho": ORTHO, "landcover": (LANDCOVER_BAND,)}
    computed = {*TERRAIN, *HYDROLOGY, *ORTHO, LANDCOVER_BAND}
    sources = {}
    for name in channels.inputs:
        wanted = made.get(name, tuple(band for band in channels.stored if band not in computed))
        given = inputs.get(name, f"{name}.tif")
        spec = {"path": given} if isinstance(given, str) else dict(given)
        sources[name] = Source(folder / spec.pop("path", f"{name}.tif"), wanted, _bands(name, wanted, spec))
    for name, source in sources.items():
        if not source.path.is_file():
            raise DatasetNotFoundError(_missing(name, source, channels))
    return sources


def _bands(name: str, channels: tuple[str, ...], spec: dict[str, Any]) -> tuple[Band, ...]:
    given = spec.pop("bands", spec.pop("band", None))
    if spec:
        raise StagewiseError(f"`inputs.{name}` has {sorted(spec)}; it may have `path` and `bands`.")
    if name == "attributes":
        given = given or {}
        if not isinstance(given, Mapping):
            raise StagewiseError(f"`inputs.attributes.bands` must map channels to bands, got {given!r}.")
        return tuple(given.get(channel, channel) for channel in channels)
    count = max(1, len(channels))
    bands = tuple(range(1, count + 1)) if given is None else (given,) if isinstance(given, str | int) else tuple(given)
    if len(bands) != count:
        raise StagewiseError(f"`inputs.{name}.bands` must be {count}, got {given!r}.")
    return bands


def _missing(name: str, source: Source, channels: ChannelList) -> str:
    needing = (
        [channel for channel in channels.names if ChannelList([channel]).inputs == (name,)] if name == "dtm" else []
    )
    what = ", ".join(needing or source.channels)
    return f"no {source.path}; the channels {what} are made from it: add it, or leave them out of `channels`."


def reference(folder: Path, sources: Mapping[str, Source]) -> Path:
    """The raster whose grid all others are read on: dtm, or attributes where there is none, or the first input."""
    dtm = sources["dtm"].path if "dtm" in sources else folder / "dtm.tif"
    if dtm.is_file():
        return dtm
    return sources.get("attributes", next(iter(sources.values()))).path


def key_of(parts: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Sixteen hexadecimal digits that change with the parts, and with name, size and time of change of the files."""
    stats = {name: (path.name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()}
    text = json.dumps({"parts": parts, "files": stats}, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
