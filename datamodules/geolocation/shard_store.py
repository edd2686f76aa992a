"""A streamed store: a folder of shards beside its tables, on this machine or behind a URL."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from ..errors import ShardError
from .shard_cache import ShardCache, download
from .shard_manifest import NAME, Manifest, StoredFile
from .shard_pictures import ShardFolder, ShardPictures

GB = 10**9


@dataclass
class ShardStore:
    """A store that ``convert.py`` made.

    Args:
        root: its folder, or its URL as litdata spells it: ``s3://…``, ``gs://…``, ``azure://…``, or ``local:FOLDER``
            for a slow disk. Of a URL, tables are copied at the start, shards when they are read.
        cache_dir: for the copies.
        cache_gb: of copied shards; what was not used for longest goes first.
    """

    root: str
    cache_dir: Path
    cache_gb: float

    @property
    def is_remote(self) -> bool:
        """Whether shards have to be copied first."""
        return "://" in self.root or self.root.startswith("local:")

    @property
    def folder(self) -> Path:
        """Where the tables lie; of a URL once ``manifest`` was read."""
        if not self.is_remote:
            return Path(self.root)
        name = hashlib.blake2b(self.root.rstrip("/").encode(), digest_size=8).hexdigest()
        return self.cache_dir.absolute() / "shards" / name

    @cached_property
    def manifest(self) -> Manifest:
        """What the store holds, once its tables are checked; of a local store also the size of every shard.

        Raises:
            DatasetNotFoundError: there is no store.
            ShardError: a file is missing, has another size or content, or cannot be fetched; names it.
        """
        if self.is_remote:
            self._copy_tables()
        manifest = Manifest.read(self.folder, self.root)
        manifest.check_tables(self.folder, self.root)
        if not self.is_remote:
            manifest.check_shards(self.folder)
        return manifest

    def pictures(self, split: str) -> ShardPictures:
        """The pictures of a split by the number of their row."""
        folder = ShardFolder(self.folder)
        if self.is_remote:
            folder = ShardCache(self.folder, self.root.rstrip("/"), int(self.cache_gb * GB))
        return ShardPictures(folder, self.manifest.splits[split])

    def check_room(self, shards: int) -> None:
        """Refuses a cache that could not hold what is read at a time.

        Args:
            shards: that are needed at a time.

        Raises:
            ShardError: names the smallest cache that will do.
        """
        need = shards * max(shard.bytes for shard in self.manifest.splits["train"])
        if self.is_remote and need > self.cache_gb * GB:
            raise ShardError(
                f"streaming.cache_gb={self.cache_gb:g} is too small: {shards} shards are read at a time; give it "
                f"{need / GB:.3g}, or lower datamodule.streaming.window."
            )

    def _copy_tables(self) -> None:
        """Copies what is not there; of two processes one copies, the other waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".tables.lock"):
            fresh = self.folder / f"{NAME}.new"
            fresh.unlink(missing_ok=True)
            download(f"{self.root.rstrip('/')}/{NAME}", fresh)
            if not (self.folder / NAME).is_file() or fresh.read_bytes() != (self.folder / NAME).read_bytes():
                self._forget()
            os.replace(fresh, self.folder / NAME)
            for table in Manifest.read(self.folder, self.root).tables:
                self._copy(table)

    def _forget(self) -> None:
        """Removes the copies of another store that was there before."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith((".", f"{NAME}.new")):
                path.unlink()

    def _copy(self, table: StoredFile) -> None:
        path = self.folder / table.file
        if path.is_file() and path.stat().st_size == table.bytes:
            return
        path.unlink(missing_ok=True)
        download(f"{self.root.rstrip('/')}/{table.file}", path)
        if path.stat().st_size != table.bytes:
            path.unlink()
            raise ShardError(f"'{self.root}/{table.file}' has not {table.bytes} bytes; copy the store again.")
