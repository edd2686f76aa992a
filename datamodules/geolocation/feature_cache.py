"""Outputs of frozen encoders on disk, in half precision, keyed by weights, transform and data."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import StaleCacheError
from .photo_table import PhotoTable

Features = dict[str, NDArray[np.float16]]
Encode = Callable[[Any], dict[str, Tensor]]


def data_key(table: PhotoTable) -> str:
    """Hash of the CSV's rows and of each picture's path, size and time of change."""
    digest = hashlib.blake2b(digest_size=12)
    for path in table.image_paths():
        stat = os.stat(path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_or_make(
    folder: Path, key: dict[str, Any], views: int, rows: int, batches: Callable[[int], Iterable[Any]], encode: Encode
) -> Features:
    """Opens the cache in ``folder``, or runs the encoders over ``views`` passes of the data and writes it.

    Args:
        folder: of this cache.
        key: what the features depend on: weights, transform, data.
        views: augmented views of each picture.
        rows: pictures.
        batches: view number -> batches with ``sample_id``.
        encode: batch -> name -> (B, D).

    Returns:
        name -> (views, rows, D), memory-mapped.

    Raises:
        StaleCacheError: the folder holds features made from something else; names what differs.
    """
    described = {**key, "views": views, "rows": rows}
    if not (folder / "key.json").is_file():
        _make(folder, described, batches, encode)
    found = json.loads((folder / "key.json").read_text())
    stale = sorted(k for k in described.keys() | found.keys() if described.get(k) != found.get(k))
    if stale:
        raise StaleCacheError(
            f"the feature cache '{folder}' was made from other {', '.join(stale)}; delete the folder."
        )
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def _make(folder: Path, key: dict[str, Any], batches: Callable[[int], Iterable[Any]], encode: Encode) -> None:
    """Writes into a neighbour folder that is renamed at the end: an interrupted run leaves no half cache."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    arrays: dict[str, Any] = {}
    for view in range(key["views"]):
        for batch in tqdm(
            batches(view), desc=f"encoding {folder.name}, view {view + 1} of {key['views']}", leave=False
        ):
            rows = batch["sample_id"].cpu().numpy()
            for name, value in encode(batch).items():
                if name not in arrays:
                    shape = (key["views"], key["rows"], value.shape[1])
                    arrays[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.float16, shape)
                arrays[name][view, rows] = value.half().cpu().numpy()
    for array in arrays.values():
        array.flush()
    (part / "key.json").write_text(json.dumps(key, indent=1, sort_keys=True))
    part.rename(folder)
