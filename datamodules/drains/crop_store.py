"""Crops on disk: every picture is decoded once for all its objects."""

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

from ..errors import BadRowsError, StagewiseError
from ..folders import whole_folder
from ..images import read_image
from .crops import crop_window, letterbox, whole_window
from .table import DrainTable

CROPS_FILE, WHOLES_FILE, MANIFEST_FILE = "crops.npy", "wholes.npy", "manifest.json"
_FORMAT = 1  # another number when what is stored changes


class CropStore:
    """Crops and whole pictures of a folder, read from disk one by one.

    Args:
        folder: written by :func:`open_crops`.

    Raises:
        StagewiseError: the folder holds no store.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            content = json.loads((self.folder / MANIFEST_FILE).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise StagewiseError(f"no crops in '{folder}': {error}; delete the folder.") from error
        self.broken: dict[int, str] = {int(number): why for number, why in content["broken"].items()}
        self._open: dict[str, NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker maps the files itself; a pickled map would be all pixels

    def crop(self, object_id: int) -> Tensor:
        """uint8 (3, S, S) of one object."""
        return self._read(CROPS_FILE, object_id)

    def whole(self, picture_id: int) -> Tensor:
        """uint8 (3, S, S) of one picture, without any mark."""
        return self._read(WHOLES_FILE, picture_id)

    def _read(self, name: str, row: int) -> Tensor:
        if name not in self._open:
            self._open[name] = np.load(self.folder / name, mmap_mode="r")
        return torch.from_numpy(np.array(self._open[name][row]))


def open_crops(
    table: DrainTable,
    cache_dir: str | Path,
    *,
    px: int = 224,
    margin: float = 0.1,
    pad: str = "mean",
    crops: bool = True,
    wholes: bool = False,
) -> CropStore:
    """Opens the crops of a whole folder, made first where there are none of these pictures, boxes and settings.

    Args:
        table: the whole folder.
        cache_dir: the crops lie in ``drains/KEY`` below it.
        px: side of a crop.
        margin: of :func:`crop_window`; so is ``pad``.
        pad: what fills the square.
        crops: stores those of the objects.
        wholes: stores the whole pictures.

    Raises:
        BadRowsError: a picture is not there any more.
    """
    settings = {"format": _FORMAT, "px": px, "margin": margin, "pad": pad, "crops": crops, "wholes": wholes}
    folder = Path(cache_dir) / "drains" / _key(table, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of two runs at once one makes them, the other waits
        if not folder.is_dir():
            whole_folder(folder, lambda part: _write(part, table, settings))
    return CropStore(folder)


def _key(table: DrainTable, settings: Mapping[str, Any]) -> str:
    try:
        files = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in table.paths]
    except OSError as error:
        raise BadRowsError(f"a picture went away: {error}.") from error
    digest = hashlib.blake2b(json.dumps([files, settings]).encode(), digest_size=12)
    for array in (table.boxes, table.picture):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(part: Path, table: DrainTable, settings: Mapping[str, Any]) -> None:
    px, broken = int(settings["px"]), {}
    rows = {CROPS_FILE: len(table) * settings["crops"], WHOLES_FILE: len(table.paths) * settings["wholes"]}
    maps = {
        name: np.lib.format.open_memmap(part / name, "w+", np.uint8, (count, 3, px, px))
        for name, count in rows.items()
        if count
    }
    own = table.objects_of()

    def fill(number: int) -> str | None:
        try:
            _fill(maps, table, number, own[number], settings)
        except BadRowsError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(fill, range(len(own)))
        for number, why in enumerate(tqdm(done, "cutting crops", len(own), leave=False, disable=len(own) < 100)):
            if why:
                broken[number] = why
    for array in maps.values():
        array.flush()
    (part / MANIFEST_FILE).write_text(json.dumps({"settings": settings, "broken": broken}, indent=1))


def _fill(
    maps: Mapping[str, NDArray[np.uint8]],
    table: DrainTable,
    number: int,
    objects: NDArray[np.int64],
    settings: Mapping[str, Any],
) -> None:
    """Writes what one picture gives."""
    picture, px = read_image(table.paths[number]), int(settings["px"])
    size = (int(table.width[number]), int(table.height[number]))
    if tuple(picture.shape[:0:-1]) != size:
        raise BadRowsError(f"'{table.paths[number]}' is {tuple(picture.shape[:0:-1])}, but its header says {size}.")
    if CROPS_FILE in maps:
        for row in objects:
            window = crop_window(table.boxes[row], size, settings["margin"], settings["pad"])
            maps[CROPS_FILE][row] = letterbox(picture, window, px).numpy()
    if WHOLES_FILE in maps:
        maps[WHOLES_FILE][number] = letterbox(picture, whole_window(size), px).numpy()
