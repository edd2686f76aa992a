"""Pictures in shards: one after the other in a few large files, in litdata's format."""

import os
import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BadRowsError, ShardError
from ..images import decoded
from .shard_manifest import REMEDY, StoredFile

_COUNT = 4  # bytes of a number in a shard
_REMEMBERED = 256  # shards that were read ahead


class ShardFolder:
    """Shards on this machine.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, shard: StoredFile) -> int:
        """A descriptor for reading, which the caller closes.

        Raises:
            ShardError: the shard is not there.
        """
        try:
            return os.open(f"{self.folder}/{shard.file}", os.O_RDONLY)
        except OSError as error:
            raise damaged(self.folder / shard.file, f"cannot be read ({error.strerror})") from error


class ShardPictures:
    """The pictures of a split, read by the number of their row; nothing is held between two of them.

    Args:
        folder: opens shards.
        shards: of the split, in the order of its rows.
    """

    def __init__(self, folder: ShardFolder, shards: list[StoredFile]) -> None:
        self.folder, self.shards = folder, shards
        self._ahead: dict[str, None] = {}
        self._ends = np.cumsum([shard.rows for shard in shards])

    def shard_of(self, rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """(N,) number of each row's shard."""
        return np.searchsorted(self._ends, rows, side="right").astype(np.int32)

    def image(self, row: int) -> Tensor:
        """Decodes a picture.

        Returns:
            uint8 (3, H, W).

        Raises:
            BadRowsError: it is no picture.
            ShardError: its shard is missing or damaged.
        """
        try:
            return decoded(self.content(row))
        except RuntimeError as error:
            shard, position = self._place(row)
            raise BadRowsError(
                f"picture {position} of the shard '{self.folder.folder / shard.file}' is truncated or not a picture; "
                "mend or remove its row where the store was made (checks.images=true finds all) and convert it again."
            ) from error

    def content(self, row: int) -> Tensor:
        """uint8 (N,) the file that the picture was."""
        shard, position = self._place(row)
        descriptor = self.folder.open(shard)
        try:
            self._read_ahead(descriptor, shard)
            return _item(descriptor, position, shard.bytes)
        except (ValueError, struct.error) as error:
            raise damaged(self.folder.folder / shard.file, f"is truncated or damaged ({error})") from error
        finally:
            os.close(descriptor)

    def _read_ahead(self, descriptor: int, shard: StoredFile) -> None:
        """Has the system read a shard as a whole when it is new here: its pictures are asked for in no order."""
        if shard.file not in self._ahead and hasattr(os, "posix_fadvise"):  # macOS has none
            if len(self._ahead) == _REMEMBERED:
                del self._ahead[next(iter(self._ahead))]
            self._ahead[shard.file] = None
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def _place(self, row: int) -> tuple[StoredFile, int]:
        """A row's shard and its number in it."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self.shards[number], row - int(self._ends[number]) + self.shards[number].rows


def _item(descriptor: int, position: int, size: int) -> Tensor:
    """One item of litdata's format: number of items, their offsets, and of each its length and content."""
    begin, end = struct.unpack("<II", os.pread(descriptor, 2 * _COUNT, (1 + position) * _COUNT))
    if not begin + _COUNT <= end <= size:
        raise ValueError(f"item {position} from byte {begin} to {end} of {size}")
    content = torch.empty(end - begin - _COUNT, dtype=torch.uint8)
    if os.preadv(descriptor, [content.numpy().data], begin + _COUNT) != len(content):
        raise ValueError(f"item {position} ends at byte {end}")
    return content


def damaged(shard: str | Path, what: str) -> ShardError:
    """The error that names a shard and the remedy."""
    return ShardError(f"the shard '{shard}' {what}; {REMEDY}")
