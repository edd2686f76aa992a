"""Copies of remote shards, never more than a given size of them."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import ShardError, StagewiseError
from .shard_manifest import StoredFile, file_hash
from .shard_pictures import ShardFolder, damaged

_AT_A_TIME = 8  # downloads on one machine
_STALE_S = 3600.0  # a download that was not written to for so long was killed


class ShardCache(ShardFolder):
    """Fetches a shard when it is first read; the processes of one machine share the copies.

    A shard that another process removes while it is read can be read to the end, and the next read fetches it again:
    what is removed when changes no sample.

    Args:
        folder: for the copies; the file names are those of the store.
        url: of the store.
        limit_bytes: of all copies together; the one that was not read for longest goes first.
    """

    def __init__(self, folder: Path, url: str, limit_bytes: int) -> None:
        super().__init__(folder)
        self.url, self.limit_bytes = url, limit_bytes

    def open(self, shard: StoredFile) -> int:
        """A descriptor for reading, which the caller closes.

        Raises:
            ShardError: the shard cannot be fetched, or is not what the manifest says.
        """
        path = self.folder / shard.file
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self._fetch(shard, path)
            else:
                os.utime(descriptor)  # its last use
                return descriptor

    def _fetch(self, shard: StoredFile, path: Path) -> None:
        with FileLock(self.folder / f".fetch{int(shard.sha256[:8], 16) % _AT_A_TIME}.lock"):
            if path.exists():
                return
            reserved, arriving = path.with_name(f"{path.name}.part"), self.folder / ".arriving" / shard.sha256
            for folder in (path.parent, arriving.parent):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(self.folder / ".room.lock"):
                    self._make_room(shard.bytes)
                    reserved.touch()
                    os.truncate(reserved, shard.bytes)  # takes no disk, but counts from now on
                download(f"{self.url}/{shard.file}", arriving)
                if arriving.stat().st_size != shard.bytes or file_hash(arriving) != shard.sha256:
                    raise damaged(f"{self.url}/{shard.file}", "is not the one that the manifest names")
                os.replace(arriving, path)
            finally:
                arriving.unlink(missing_ok=True)
                reserved.unlink(missing_ok=True)

    def _make_room(self, wanted_bytes: int) -> None:
        """Removes shards, and what a killed process left, until there is room; its caller holds a lock."""
        killed = time.time() - _STALE_S
        for stat, path in _present([*self.folder.glob("*/**/*.part"), *self.folder.glob(".arriving/*")]):
            if stat.st_mtime < killed:
                path.unlink(missing_ok=True)
        held = _present(self.folder.glob("*/**/*.bin*"))
        room = self.limit_bytes - wanted_bytes - sum(stat.st_size for stat, _ in held)
        for stat, path in sorted(held, key=lambda entry: entry[0].st_mtime_ns):
            if room >= 0:
                return
            if path.suffix == ".bin":
                path.unlink(missing_ok=True)
                room += stat.st_size


def _present(paths: Iterable[Path]) -> list[tuple[os.stat_result, Path]]:
    """Those that another process does not remove meanwhile."""
    found = []
    for path in paths:
        with suppress(FileNotFoundError):
            found.append((path.stat(), path))
    return found


def download(url: str, path: Path) -> None:
    """Fetches a file, whole or not at all.

    Raises:
        StagewiseError: litdata is not installed.
        ShardError: it cannot be fetched; says why.
    """
    if find_spec("litdata") is None:
        raise StagewiseError("a remote store needs litdata; run: pip install 'stagewise[streaming]'")
    try:
        _downloader(url.partition("/")[0], os.getpid()).download_file(url, str(path))
        if not path.is_file():
            raise FileNotFoundError(f"nothing arrived at {path}")
    except Exception as error:  # each kind of object store has errors of its own
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ShardError(f"cannot fetch '{url}' ({why}); check the address, the access and what is there.") from error


@cache
def _downloader(scheme: str, process: int) -> Any:
    """litdata's, one for each process: their connections do not survive a fork."""
    from litdata.streaming.downloader import get_downloader

    return get_downloader(f"{scheme}//", "", [], {}, {})
