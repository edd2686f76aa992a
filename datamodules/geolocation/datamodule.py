"""The data module of image geolocation, where every picture is a file."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..base import TaskDataModule
from ..errors import StagewiseError
from ..images import photometric
from ..loaders import ResumableDataLoader
from ..samplers import GroupBalancedBatchSampler
from . import feature_cache as cache
from .photo_dataset import FeatureDataset, PhotoDataset, collate_batch
from .photo_splits import PhotoSplits
from .regions import check_settings, quotas
from .shard_pictures import ShardPictures

log = logging.getLogger(__name__)
_EVAL_BATCH = 128
DEFAULT_LOADER: dict[str, Any] = {
    "batch_size": 64,
    "batches_per_epoch": 1300,
    "exhausted": "cycle",
    "balance": "sampler",
    "num_workers": 0,
}
IMAGE = ("px", "root", "area", "ratio", "jitter", "gamma", "noise")
CHECKS: dict[str, Any] = {"images": True, "place_gap_km": 0.1}


class PhotoDataModule(TaskDataModule):
    """CSVs with pictures -> balanced train batches, validation and test batches, and the geography of train.

    Args:
        root: folder with ``train.csv``, ``val.csv`` and any further split.
        regions: name -> ``{quota, tau_km, offset_scale, max_radius_km}`` in the order of the ids; None reads the
            names from ``train.csv`` and takes the defaults.
        cells: ``{path: cell_metadata.csv}`` or the arguments of :func:`build_cells`; a ``cell_metadata.csv`` in
            ``root`` is used unless a path says otherwise.
        loader: ``{batch_size, batches_per_epoch, exhausted, balance, num_workers}``; ``balance`` is ``sampler``
            (quotas) or ``weights`` (the natural mix, for weighted losses).
        image: ``{px, root, area, ratio, jitter, gamma, noise}``.
        on_bad_rows: ``raise`` or ``drop``.
        checks: ``{images, place_gap_km}``: decode every picture before training; the smallest distance between a
            train row and a row of another split.
        feature_cache: ``{views}``: augmented views of each train picture in the cache of frozen encoders' outputs;
            0 runs the encoders at every step.
        cache_dir: for built cell tables and cached features.
        seed: of the run.
    """

    def __init__(
        self,
        root: str,
        regions: dict[str, dict[str, Any]] | None = None,
        cells: dict[str, Any] | None = None,
        loader: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        on_bad_rows: str = "raise",
        checks: dict[str, Any] | None = None,
        feature_cache: dict[str, Any] | None = None,
        cache_dir: str = ".cache/stagewise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_settings(regions)
        if on_bad_rows not in ("raise", "drop"):
            raise StagewiseError(f"`on_bad_rows` must be 'raise' or 'drop', got '{on_bad_rows}'.")
        for name, given, known in (
            ("loader", loader, DEFAULT_LOADER),
            ("image", image, IMAGE),
            ("checks", checks, CHECKS),
        ):
            if unknown := sorted(set(given or {}) - set(known)):
                raise StagewiseError(f"`{name}` has unknown key(s) {unknown}; known: {', '.join(known)}.")
        self.root = Path(root)
        self.loader = DEFAULT_LOADER | (loader or {})
        self.image, self.cache_dir = {"px": 224, "root": None} | (image or {}), Path(cache_dir)
        self.splits = PhotoSplits(
            self.root,
            regions or {},
            dict(cells or {}),
            self.image["root"],
            on_bad_rows,
            CHECKS | (checks or {}),
            self.cache_dir,
        )
        self.views, self.seed = int((feature_cache or {}).get("views", 0)), seed
        self.test_split = "test"
        self._features: dict[str, cache.Features] = {}

    # --- tables ---

    @property
    def geography(self) -> dict[str, Any] | None:
        """Region names, cells and settings, as plain numbers and lists; None before ``setup``."""
        return self.splits.geography

    @geography.setter
    def geography(self, value: dict[str, Any]) -> None:
        """Adopts a checkpoint's geography, so that its cells are used and nothing is fitted."""
        self.splits.geography = value

    def setup(self, stage: str) -> None:
        """Reads and checks train, and val for a fit; further splits are read when asked for."""
        for name in ("train", "val") if stage in ("fit", "validate") else ("train",):
            self.splits.get(name)
        if stage == "fit":
            self.mix()  # one that cannot be is refused before encoders run over all pictures
            self.check_processes()

    # --- samples ---

    def dataset(self, name: str) -> PhotoDataset:
        """The pictures of a split, with their cells."""
        crops = {k: tuple(self.image[k]) for k in ("area", "ratio") if k in self.image}
        table = self.splits.get(name)
        options: dict[str, Any] = {"seed": self.seed, "shards": self.shards(name), **crops}
        return PhotoDataset(table, self.splits.cell_of(name), int(self.image["px"]), **options)

    def shards(self, name: str) -> ShardPictures | None:
        """Where the pictures of a split are, if not in files of their own."""
        return None

    def sampler(self) -> GroupBalancedBatchSampler:
        """Batches of the recipe's mix, or of the natural one where ``balance`` is ``weights``."""
        return GroupBalancedBatchSampler(**self.mix())

    def mix(self) -> dict[str, Any]:
        """The sampler's arguments."""
        region, size = self.splits.get("train").region, int(self.loader["batch_size"])
        if self.loader["balance"] == "weights":
            groups, share = np.zeros_like(region), {0: size}
        elif self.loader["balance"] == "sampler":
            counts = np.bincount(region, minlength=len(self.splits.region_names))
            groups, share = region, quotas(self.splits.region_names, counts, self.splits.regions, size)
        else:
            raise StagewiseError(f"loader.balance must be 'sampler' or 'weights', got '{self.loader['balance']}'.")
        length = int(self.loader["batches_per_epoch"] or max(1, len(region) // size))
        order = {"exhausted": self.loader["exhausted"], "seed": self.seed, "keyed": True}
        return {"groups": groups, "quotas": share, "batches_per_epoch": length, **order}

    def shares(self) -> dict[str, int]:
        """The regions' quotas, or the batch of a natural mix."""
        if self.loader["balance"] == "weights":
            return super().shares()
        names = self.splits.region_names
        return {f"the quota of '{names[region]}'": quota for region, quota in self.mix()["quotas"].items()}

    def make_loader(self, dataset: Any, kind: Any = DataLoader, **options: Any) -> DataLoader[Any]:
        """A loader that leaves the collation of pictures to the data set."""
        return super().make_loader(dataset, kind, collate_fn=collate_batch, **options)

    def _with_features(self, name: str, key: str | None = None) -> Any:
        features = self._features.get(key or name)
        return FeatureDataset(self.dataset(name), features) if features else self.dataset(name)

    def train_dataloader(self) -> DataLoader[Any]:
        """Balanced batches, reshuffled every epoch."""
        options = {"batch_sampler": self.sampler(), "seed": self.seed, "data_key": self.data_key()}
        return self.make_loader(self._with_features("train"), kind=ResumableDataLoader, **options)

    def data_key(self) -> str:
        """Names the rows of train and val: other data, another key."""
        return " ".join(self.splits.get(name).content_key() for name in ("train", "val"))

    def val_dataloader(self) -> DataLoader[Any]:
        """The whole of val, in order, shared out over the processes."""
        return self.shared_loader(self._with_features("val"), _EVAL_BATCH)

    def reference_dataloader(self) -> DataLoader[Any]:
        """The whole of train without augmentation: what retrieval and the baselines look things up in."""
        return self.make_loader(self._with_features("train", "reference"), batch_size=_EVAL_BATCH)

    def test_dataloader(self) -> DataLoader[Any]:
        """The split ``test_split``, in order."""
        return self.split_dataloader(self.test_split)

    def split_dataloader(self, name: str) -> DataLoader[Any]:
        """Any split by name, in order."""
        return self.make_loader(self.dataset(name), batch_size=_EVAL_BATCH)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 -> float in [0, 1]; photometric augmentation of training batches."""
        if "image" in batch and batch["image"].dtype == torch.uint8:
            image = batch["image"].float() / 255
            if "draw" in batch:
                generator = torch.Generator().manual_seed((self.seed << 32) + int(batch["draw"][0]))
                options = {k: self.image[k] for k in ("jitter", "gamma", "noise") if k in self.image}
                image = photometric(image, generator, **options)
            batch = {**batch, "image": image}
        return batch

    # --- cached features ---

    def cache_features(self, encode: cache.Encode, weights_key: str, device: torch.device) -> None:
        """Runs the frozen encoders once over train, val and the plain train pictures, or opens what is cached.

        Args:
            encode: batch -> name -> (B, D).
            weights_key: hash of the encoders' weights.
            device: where ``encode`` runs.
        """
        plans: dict[str, tuple[str, int]] = {
            "train": ("train", self.views),
            "val": ("val", 1),
            "reference": ("train", 1),
        }
        for name, (split, views) in plans.items():
            dataset, augmented = self.dataset(split), name == "train"
            transform = json.dumps([self.image, self.seed, augmented], sort_keys=True, default=str)
            tag = hashlib.blake2b(
                f"{self.root.absolute()} {weights_key} {transform} {views}".encode(), digest_size=8
            ).hexdigest()
            key = {"weights": weights_key, "transform": transform, "data": self.pictures_key(split)}
            passes = self._passes(dataset, augmented, device)
            folder = self.cache_dir / "features" / f"{name}-{tag}"
            self._features[name] = cache.load_or_make(folder, key, views, len(dataset), passes, encode)

    def pictures_key(self, name: str) -> str:
        """Names the pictures of a split: other pictures, another key."""
        return cache.data_key(self.splits.get(name))

    def _passes(self, dataset: PhotoDataset, augmented: bool, device: torch.device) -> Callable[[int], Iterable[Any]]:
        def batches(view: int) -> Iterable[dict[str, Tensor]]:
            rows = range(len(dataset))
            keys: list[Any] = [(row, view * len(dataset) + row) for row in rows] if augmented else list(rows)
            for batch in self.make_loader(dataset, sampler=keys, batch_size=_EVAL_BATCH):
                yield self.on_after_batch_transfer({k: v.to(device) for k, v in batch.items()}, 0)

        return batches
