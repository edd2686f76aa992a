"""Cropped pictures on disk: every picture is decoded once, whatever the number of runs."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import BadRowsError
from ..folders import whole_folder
from .csv_rows import Faults
from .pictures import bits_of, cut_picture
from .table import Corners, FusionTable

PICTURES_FILE = "pictures.npy"
_FORMAT = 1  # another number when what is stored changes
Shown = tuple[str, Corners | None]  # a picture and its box


class PictureStore:
    """Crops of a table, read from disk one by one: ``store(path, box)``.

    Args:
        folder: written by :func:`open_pictures`.
        shown: what lies in it, in its order.
    """

    def __init__(self, folder: Path, shown: tuple[Shown, ...]) -> None:
        self.folder = folder
        self._place = {one: i for i, one in enumerate(shown)}
        self._pixels: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a worker maps the file itself; a pickled map would be all pixels

    def __call__(self, path: str, box: Corners | None) -> Tensor:
        """(C, px, px) of one picture, as :func:`cut_picture` gives it."""
        if self._pixels is None:
            self._pixels = np.load(self.folder / PICTURES_FILE, mmap_mode="r")
        return torch.from_numpy(np.array(self._pixels[self._place[path, box]]))


def depth_of(table: FusionTable) -> int:
    """16 where one of the pictures is 16-bit grey, else 8.

    Raises:
        BadRowsError: a picture is not there any more.
    """
    try:
        return max((bits_of(path) for path in {path for own in table.pictures for path in own}), default=8)
    except OSError as error:
        raise BadRowsError(f"a picture went away: {error}.") from error


def open_pictures(table: FusionTable, cache_dir: str | Path, settings: Mapping[str, Any]) -> PictureStore:
    """Opens the crops of a table, made first where there are none of these pictures, boxes and settings.

    Args:
        table: the whole of it.
        cache_dir: the crops lie in ``fusion/KEY`` below it.
        settings: of :func:`cut_picture`.

    Raises:
        BadRowsError: pictures that do not decode; names up to ten with their rows.
    """
    pairs = [pair for own in zip(table.pictures, table.boxes) for pair in zip(*own)]
    shown = tuple(dict.fromkeys(pairs))
    folder = Path(cache_dir) / "fusion" / _key(shown, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of two runs at once one makes them, the other waits
        if not folder.is_dir():
            whole_folder(folder, lambda part: _write(part, shown, table, settings))
    return PictureStore(folder, shown)


def _key(shown: tuple[Shown, ...], settings: Mapping[str, Any]) -> str:
    try:
        files = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns, box) for path, box in shown]
    except OSError as error:
        raise BadRowsError(f"a picture went away: {error}.") from error
    content = json.dumps([_FORMAT, files, dict(settings)], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def _write(part: Path, shown: tuple[Shown, ...], table: FusionTable, settings: Mapping[str, Any]) -> None:
    px, kind = int(settings["px"]), np.uint16 if settings["bits"] == 16 else np.uint8
    shape = (len(shown), int(settings["channels"]), px, px)
    pixels = np.lib.format.open_memmap(part / PICTURES_FILE, "w+", kind, shape) if shown else np.zeros(shape, kind)

    def fill(number: int) -> str | None:
        try:
            pixels[number] = cut_picture(*shown[number], settings).numpy()
        except BadRowsError as error:
            return str(error).split(";")[0]
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(fill, range(len(shown)))
        bar = tqdm(found, "cutting pictures", len(shown), leave=False, disable=len(shown) < 1000 or None)
        broken = {shown[i][0]: why for i, why in enumerate(bar) if why}
    faults = Faults(Path(shown[0][0]).parent if shown else part)
    for name, own in zip(table.ids.tolist(), table.pictures):
        for path in own:
            if path in broken:
                faults.add(f"row '{name}'", f"picture {broken[path]}")
    faults.refuse()
    if isinstance(pixels, np.memmap):
        pixels.flush()
