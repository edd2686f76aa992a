"""Folders that are there whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path


def whole_folder(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes a folder under another name and renames it when it is whole; a failure leaves nothing.

    A killed run leaves the half folder, and the next one clears it: one process at a time, so the caller holds a lock.

    Args:
        folder: that is to be there.
        make: fills the folder that it is given.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        make(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
