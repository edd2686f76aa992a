"""The data module of image geolocation, its pictures in files or in shards."""

import logging
from typing import Any

from ..base import GeneratedMixin
from ..errors import StagewiseError
from ..samplers import GroupBalancedBatchSampler
from ..settings import settings_of
from ..shard_sampler import ShardWindowBatchSampler
from .datamodule import PhotoDataModule
from .shard_pictures import ShardPictures
from .shard_store import ShardStore

log = logging.getLogger(__name__)
STREAMING: dict[str, Any] = {"window": 4, "cache_gb": 16.0}


class GeolocationDataModule(PhotoDataModule):
    """CSVs with pictures in files or in shards -> balanced train batches, validation and test batches, geography.

    Args:
        root: folder with the CSVs; for ``litdata`` the folder that ``convert.py`` wrote, or its URL.
        storage: ``folder`` (each picture is a file) or ``litdata`` (shards). The pictures of shards were checked when
            they were made: ``checks.images`` then says nothing.
        streaming: ``{window, cache_gb}`` of ``litdata``: shards of a region that are drawn from at a time, and the
            largest size of the local copies of a remote store.
        options: of :class:`PhotoDataModule`.
    """

    def __init__(
        self, root: str, storage: str = "folder", streaming: dict[str, Any] | None = None, **options: Any
    ) -> None:
        if storage not in ("folder", "litdata"):
            raise StagewiseError(f"`storage` must be 'folder' or 'litdata', got '{storage}'.")
        self.streaming = settings_of("streaming", streaming, STREAMING)
        super().__init__(root, **options)
        self.store: ShardStore | None = None
        if storage == "litdata":
            self.store = ShardStore(root, self.cache_dir, float(self.streaming["cache_gb"]))
            self.root = self.splits.root = self.store.folder
            self.splits.checks["images"] = False

    def setup(self, stage: str) -> None:
        """Checks the store, then goes on as with files."""
        if self.store and not self.store.manifest.checked:
            log.warning("the pictures of '%s' were not checked when it was made", self.store.root)
        super().setup(stage)

    def shards(self, name: str) -> ShardPictures | None:
        """The shards of a split, of a store."""
        return self.store.pictures(name) if self.store else None

    def sampler(self) -> GroupBalancedBatchSampler:
        """The mix of the files, of a store drawn from a window of each region's shards."""
        shards = self.shards("train")
        if not shards or not self.store:
            return super().sampler()
        train = self.splits.get("train")
        window: dict[str, Any] = {"shards": shards.shard_of(train.line - 2), "window": int(self.streaming["window"])}
        sampler = ShardWindowBatchSampler(**self.mix(), **window, strata=train.region)
        self.store.check_room(sampler.most_shards())
        return sampler

    def data_key(self) -> str:
        """Also names the shards."""
        shards = [self.store.manifest.key(name) for name in ("train", "val")] if self.store else []
        return " ".join([super().data_key(), *shards])

    def pictures_key(self, name: str) -> str:
        """The shards' hash, where there is no file of each picture."""
        return self.store.manifest.key(name) if self.store else super().pictures_key(name)

    def convert(self, output: str, shard_mb: float = 32.0, splits: list[str] | None = None) -> str:
        """Writes the splits as shards into a new folder, with their tables and the cell table.

        Args:
            output: the folder.
            shard_mb: size of a shard; the last of a region is smaller.
            splits: names; None is every CSV of ``root`` but ``cell_metadata.csv``.

        Returns:
            What was written, as text.

        Raises:
            StagewiseError: ``output`` is there, or these are shards already.
        """
        from .shard_writer import write_store

        if self.store:
            raise StagewiseError("storage=litdata: these are shards already; pass datamodule.storage=folder.")
        found = sorted(path.stem for path in self.root.glob("*.csv") if path.name != "cell_metadata.csv")
        names = ["train", *(name for name in splits or found if name != "train")]
        return write_store(self.splits, names, output, shard_mb, self.seed)


class GeneratedGeolocationDataModule(GeneratedMixin, GeolocationDataModule):
    """The same on a generated country, for demonstrations and tests; see :func:`write_generated_country`."""

    def is_written(self) -> bool:
        """Whether there is a train split and its cell table."""
        return (self.root / "train.csv").is_file() and (self.root / "cell_metadata.csv").is_file()

    def write(self, **options: Any) -> None:
        """Writes tables and pictures, and the geocells beside them."""
        from .generated import write_generated_country

        if not (self.root / "train.csv").is_file():
            write_generated_country(self.root, **options)
        self.splits.write_cells(self.root / "cell_metadata.csv")
