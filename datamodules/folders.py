"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def whole_folder(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes a folder under another name and renames it when it is whole; a failure leaves nothing.

    Args:
        folder: that is to be there; one that another process made meanwhile is kept.
        make: fills the folder that it is given.
    """
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        make(part)
        if not folder.is_dir():  # another process may have been quicker
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
