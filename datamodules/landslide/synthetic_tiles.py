"""Synthetic tiles on disk, with a manifest that says what each was made of."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError

CHANNELS_FILE, MASKS_FILE, MANIFEST_FILE = "channels.npy", "masks.npy", "manifest.json"
Tile = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(C, H, W) channels in physical units, NaN is nodata; (H, W) class, -1 is ignored."""


class SyntheticTiles:
    """Tiles of a folder; each read takes one tile from the disk and keeps nothing.

    Args:
        folder: written by :func:`write_synthetic`.

    Raises:
        StagewiseError: a file is missing or too short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            described = json.loads((self.folder / MANIFEST_FILE).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise StagewiseError(f"no synthetic tiles in '{folder}': {error}; delete the folder.") from error
        self.settings: dict[str, Any] = described["settings"]
        self.manifest: list[dict[str, Any]] = described["tiles"]
        self.shape: tuple[int, int, int] = tuple(described["shape"])
        self.classes: int = described["classes"]
        self._start = {
            CHANNELS_FILE: self._header_bytes(CHANNELS_FILE, self.shape, 4),
            MASKS_FILE: self._header_bytes(MASKS_FILE, self.shape[1:], 1),
        }

    @classmethod
    def open(cls, folder: str | Path) -> "SyntheticTiles":
        """The tiles in ``folder``."""
        return cls(folder)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Tile:
        """(C, H, W) channels and (H, W) mask of one tile."""
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        channels = self._read(CHANNELS_FILE, self.shape, np.float32, index)
        return channels, self._read(MASKS_FILE, self.shape[1:], np.int8, index).astype(np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(tiles, K) pixels of each class."""
        return np.array([tile["counts"] for tile in self.manifest], np.int64).reshape(-1, self.classes)

    @property
    def ids(self) -> list[str]:
        """Name of each."""
        return [tile["id"] for tile in self.manifest]

    @property
    def parents(self) -> list[tuple[str, str]]:
        """Names of the tiles that each was made of."""
        return [(tile["base"], tile["neighbour"]) for tile in self.manifest]

    def _header_bytes(self, name: str, shape: tuple[int, ...], item_bytes: int) -> int:
        path = self.folder / name
        header = (path.stat().st_size if path.is_file() else 0) - len(self) * int(np.prod(shape)) * item_bytes
        if header <= 0:
            raise StagewiseError(f"'{path}' is missing or too short for {len(self)} tiles; delete '{self.folder}'.")
        return header

    def _read(self, name: str, shape: tuple[int, ...], kind: Any, index: int) -> NDArray[Any]:
        # not a memory map: its pages would count as this process's memory, and a training loop touches them all
        pixels = int(np.prod(shape))
        offset = self._start[name] + index * pixels * np.dtype(kind).itemsize
        return np.fromfile(self.folder / name, kind, pixels, offset=offset).reshape(shape)


def write_synthetic(
    folder: Path,
    settings: dict[str, Any],
    described: list[dict[str, Any]],
    shape: tuple[int, int, int],
    tiles: Iterable[Tile],
    classes: int,
) -> None:
    """Writes tiles one by one into a folder that is there.

    Args:
        folder: without such files yet.
        settings: what the tiles depend on, plain values.
        described: of each tile ``id``, ``base``, ``neighbour`` and ``lambda``.
        shape: (C, H, W).
        tiles: as many as ``described``.
        classes: K.
    """
    with (folder / CHANNELS_FILE).open("wb") as channels_file, (folder / MASKS_FILE).open("wb") as masks_file:
        _write_header(channels_file, "<f4", (len(described), *shape))
        _write_header(masks_file, "|i1", (len(described), *shape[1:]))
        for entry, (channels, mask) in zip(described, tiles, strict=True):
            np.ascontiguousarray(channels, "<f4").tofile(channels_file)
            np.ascontiguousarray(mask, "|i1").tofile(masks_file)
            entry["counts"] = np.bincount(mask[mask >= 0], minlength=classes).tolist()
    content = {"settings": settings, "shape": list(shape), "classes": classes, "tiles": described}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1))


def _write_header(file: Any, kind: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def check_room(folder: Path, tiles: int, shape: tuple[int, int, int]) -> None:
    """Refuses to start what the disk cannot hold.

    Raises:
        StagewiseError: says what is needed and what there is.
    """
    needed, free = tiles * int(np.prod(shape)) * 4, shutil.disk_usage(folder).free
    if needed > free:
        raise StagewiseError(
            f"{tiles} tiles of {shape} need {needed / 1e9:.2f} GB in '{folder.parent}', which has {free / 1e9:.2f}; "
            "make room, choose another cache folder, or lower `target_share`."
        )
