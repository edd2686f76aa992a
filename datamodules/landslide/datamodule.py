"""The data module of landslide susceptibility."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch.utils.data import DataLoader, RandomSampler

from ..base import GeneratedMixin, TaskDataModule
from ..errors import StagewiseError
from ..loaders import ResumableDataLoader
from ..settings import settings_of
from .areas import area_cache, area_grids, find_areas, open_areas
from .augmentation import TileAugmentation
from .channel_maker import make_channels
from .channels import RECIPE, ChannelList
from .label_raster import make_labels
from .normalisation import describe
from .prepared import PreparedArea
from .spatial_splits import SpatialSplits
from .tile_dataset import TileDataset
from .tile_sampler import rare_class_sampler
from .tile_smote import TileSmote
from .tiles import TileTable, eval_tiles, label_counts, train_tiles

log = logging.getLogger(__name__)
CELLS_PER_TILE = 4
KNOWN: dict[str, dict[str, Any]] = {
    "channels": {"names": None, "inputs": None, "settings": None},
    "labels": {"classes": ["low", "medium", "high"], "file": None, "settings": None},
    "tiles": {"px": 256, "stride": None, "min_labelled": 1},
    "splits": {"method": "blocks", "folds": 5, "seed": 0}
    | dict.fromkeys(("block_px", "buffer_px", "shares", "test_area")),
    "rare": {"class": "medium", "sampler": None, "smote": None},
    "loader": {"batch_size": 4, "tiles_per_epoch": None, "num_workers": 0}
    | {"jitter": [0.4, 0.4, 0.4], "elevation_shift_m": 0.0},
}


class LandslideDataModule(TaskDataModule):
    """Rasters -> channels and labels on disk -> buffered splits -> train tiles, and what a model must know of them.

    Args:
        root: folder with ``dtm.tif``, ``ortho.tif``, ``landcover.tif``, ``attributes.tif`` (what the channels need)
            and ``labels.tif``, ``labels.gpkg`` or ``labels.csv``, or with such a folder for each area.
        channels: ``{names, inputs, settings}``: None is the recipe's 28; files with other names; windows in metres.
        labels: ``{classes, file, settings}``: names from low to high; see :func:`~.label_raster.make_labels`.
        tiles: ``{px, stride, min_labelled}``: side, step, labelled pixels that a train tile must hold.
        splits: ``{method, block_px, buffer_px, shares, folds, test_area, seed}`` of :meth:`SpatialSplits.make`.
        fold: that is the test; None goes by the shares.
        rare: ``{class, sampler, smote}``, or None; ``sampler`` ``{target_share, max_repeats}`` of
            :func:`~.tile_sampler.rare_class_sampler`, ``smote`` the arguments of :class:`TileSmote`.
        loader: ``{batch_size, tiles_per_epoch, num_workers, jitter, elevation_shift_m}``, the last two of
            :class:`TileAugmentation`.
        cache_dir: for what is made of the rasters.
        seed: of the run: order and augmentation. The splits have a seed of their own, so that an ensemble shares them.
    """

    def __init__(
        self,
        root: str,
        channels: dict[str, Any] | None = None,
        labels: dict[str, Any] | None = None,
        tiles: dict[str, Any] | None = None,
        splits: dict[str, Any] | None = None,
        fold: int | None = None,
        rare: dict[str, Any] | None = None,
        loader: dict[str, Any] | None = None,
        cache_dir: str = ".cache/stagewise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.fold, self.cache_dir, self.seed = Path(root), fold, Path(cache_dir), seed
        self.channel_options, self.labels = (
            settings_of("channels", channels, KNOWN["channels"]),
            settings_of("labels", labels, KNOWN["labels"]),
        )
        self.tiles, self.split_options = (
            settings_of("tiles", tiles, KNOWN["tiles"]),
            settings_of("splits", splits, KNOWN["splits"]),
        )
        self.rare = settings_of("rare", rare, KNOWN["rare"]) if rare else None
        self.loader = settings_of("loader", loader, KNOWN["loader"])
        self.classes = [str(name) for name in self.labels["classes"]]
        if self.rare and self.rare["class"] not in self.classes:
            raise StagewiseError(
                f"`rare.class` is '{self.rare['class']}', not one of {self.classes}; or set rare=null."
            )
        self.channels = ChannelList(self.channel_options["names"] or RECIPE)
        self.schema: dict[str, Any] | None = None
        self.areas: dict[str, PreparedArea] = {}
        self.splits: SpatialSplits | None = None

    # --- rasters ---

    def targets(self) -> dict[str, Path]:
        """Where each area's channels and labels lie."""
        found = self._folders()
        rest = [self.channel_options[key] for key in ("inputs", "settings")]
        return {
            name: area_cache(self.cache_dir, folder, self.channels.names, *rest, self.labels)
            for name, folder in found.items()
        }

    def _folders(self) -> dict[str, Path]:
        return find_areas(self.root, self.channels, self.channel_options["inputs"], self.labels["file"])

    def prepare_data(self) -> None:
        """Makes the label rasters and channels that are not there yet; goes on where an earlier run was stopped."""
        folders, options = self._folders(), {key: self.channel_options[key] for key in ("inputs", "settings")}
        grids = area_grids(folders, self.channels, options["inputs"])
        labels = {key: self.labels[key] for key in ("settings", "file")}
        for name, target in self.targets().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):  # of two runs at once one makes them, the other waits
                # labels first: they take a moment, and what is wrong with them is said before the channels are made
                make_labels(folders[name], grids[name], self.classes, target, **labels)
                make_channels(folders[name], self.channels, target, **options)

    def setup(self, stage: str) -> None:
        """Opens the areas, and makes the splits and statistics unless a checkpoint's were adopted."""
        self.areas = open_areas(self.targets(), self.channels)
        if self.schema is None:
            self.splits = self._make_splits()
            self.schema = self._make_schema(self.splits)
        elif self.splits is None:
            self.splits = SpatialSplits.from_plain(self.schema["splits"])
        self.check_processes()

    def adopt(self, schema: dict[str, Any]) -> None:
        """Takes a checkpoint's splits and statistics, so that nothing is fitted."""
        self.schema, self.channels = schema, ChannelList(schema["channels"])
        self.classes, self.splits = list(schema["classes"]), SpatialSplits.from_plain(schema["splits"])

    def _make_splits(self) -> SpatialSplits:
        cell_px = max(1, int(self.tiles["px"]) // CELLS_PER_TILE)
        options = {k: v for k, v in self.split_options.items() if v is not None}
        if options.get("method", "blocks") in ("area", "random"):
            options.pop("folds", None)
        if block_px := options.pop("block_px", None):
            options["block_cells"] = max(1, int(block_px) // cell_px)
        counts = {name: label_counts(area, cell_px, len(self.classes)) for name, area in self.areas.items()}
        size_m = next(iter(self.areas.values())).pixel_size_m
        return SpatialSplits.make(counts, cell_px, int(self.tiles["px"]), size_m, fold=self.fold, **options)

    def _make_schema(self, splits: SpatialSplits) -> dict[str, Any]:
        return {
            "channels": list(self.channels.names),
            "classes": self.classes,
            "pixel_size_m": next(iter(self.areas.values())).pixel_size_m,
            "tile_px": int(self.tiles["px"]),
            **describe(self.areas, splits),
            "channel_options": {key: self.channel_options[key] for key in ("inputs", "settings")},
            "class_count": [int(n) for n in splits.counts["train"]],
            "splits": splits.to_plain(),
            "areas": {name: area.crs for name, area in self.areas.items()},
        }

    # --- tiles ---

    def table(self, split: str) -> TileTable:
        """The tiles of a split; those of train overlap, those of the others cover it once."""
        assert self.splits is not None
        px = int(self.tiles["px"])
        if split != "train":
            return eval_tiles(self.areas, self.splits, split, px)
        stride = int(self.tiles["stride"] or px)
        return train_tiles(self.areas, self.splits, px, stride, int(self.tiles["min_labelled"]))

    def train_dataset(self) -> TileDataset:
        """The train tiles and, behind them, the synthetic ones."""
        assert self.splits is not None and self.schema is not None
        brightness, contrast, saturation = self.loader["jitter"]
        shift_m = float(self.loader["elevation_shift_m"])
        light = TileAugmentation(self.channels, brightness, contrast, saturation, shift_m)
        table = self.table("train")
        dataset = TileDataset(self.areas, table, self.splits, light)
        synthetic = None
        if self.rare and self.rare["smote"]:
            source = dataset.source(self.schema["mean"], self.schema["std"], self.data_key())
            smote = TileSmote(rare_class=self._rare_position(), **self.rare["smote"])
            synthetic = smote.make(source, self.cache_dir / "landslide")
            dataset = TileDataset(self.areas, table, self.splits, light, synthetic)
        dataset.tiles.write_csv(next(iter(self.targets().values())).parent / f"train_tiles-{self.data_key()}.csv")
        return dataset

    def _rare_position(self) -> int:
        return self.classes.index(self.rare["class"])  # type: ignore[index]

    def data_key(self) -> str:
        """Names rasters, settings and splits: other data, another key."""
        assert self.schema is not None
        made = [(target / "channels.json").read_text() for target in self.targets().values()]
        content = json.dumps([made, self.labels, self.tiles, self.schema["splits"]], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    # --- loaders ---

    def train_dataloader(self) -> DataLoader[Any]:
        """Tiles drawn so that the rare class has its share."""
        dataset = self.train_dataset()
        draws = int(self.loader["tiles_per_epoch"] or len(dataset))
        sampler: Any = RandomSampler(dataset, replacement=draws > len(dataset), num_samples=draws)
        if self.rare and self.rare["sampler"]:
            counts = dataset.tiles.counts
            sampler = rare_class_sampler(counts, self._rare_position(), draws=draws, **self.rare["sampler"])
        own = {"sampler": sampler, "seed": self.seed, "data_key": self.data_key(), "drop_last": True}
        return self.make_loader(dataset, ResumableDataLoader, batch_size=int(self.loader["batch_size"]), **own)

    def val_dataloader(self) -> DataLoader[Any]:
        """The labelled pixels of val, each once, its tiles shared out over the processes."""
        assert self.splits is not None
        dataset = TileDataset(self.areas, self.table("val"), self.splits)
        return self.shared_loader(dataset, int(self.loader["batch_size"]))


class GeneratedLandslideDataModule(GeneratedMixin, LandslideDataModule):
    """The same on generated terrain, for demonstrations and tests; see :func:`write_generated_landslides`."""

    def is_written(self) -> bool:
        """Never: what is there is looked at area by area."""
        return False

    def write(self, **options: Any) -> None:
        """Writes the areas that are not there yet."""
        from .generated import write_generated_landslides

        write_generated_landslides(self.root, **options)
