"""The data module of image geolocation."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import DatasetNotFoundError, StagewiseError
from ..images import photometric
from ..loaders import ResumableDataLoader
from ..samplers import GroupBalancedBatchSampler
from . import feature_cache as cache
from .photo_dataset import FeatureDataset, PhotoDataset, collate_batch
from .photo_splits import PhotoSplits
from .regions import check_settings, quotas

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


class GeolocationDataModule(L.LightningDataModule):
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

    # --- samples ---

    def dataset(self, name: str) -> PhotoDataset:
        """The pictures of a split, with their cells."""
        crops = {k: tuple(self.image[k]) for k in ("area", "ratio") if k in self.image}
        table = self.splits.get(name)
        return PhotoDataset(table, self.splits.cell_of(name), int(self.image["px"]), seed=self.seed, **crops)

    def sampler(self) -> GroupBalancedBatchSampler:
        """Batches of the recipe's mix, or of the natural one where ``balance`` is ``weights``."""
        region, size = self.splits.get("train").region, int(self.loader["batch_size"])
        if self.loader["balance"] == "weights":
            groups, share = np.zeros(len(region), np.int64), {0: size}
        elif self.loader["balance"] == "sampler":
            counts = np.bincount(region, minlength=len(self.splits.region_names))
            groups, share = region, quotas(self.splits.region_names, counts, self.splits.regions, size)
        else:
            raise StagewiseError(f"loader.balance must be 'sampler' or 'weights', got '{self.loader['balance']}'.")
        length = int(self.loader["batches_per_epoch"] or max(1, len(region) // size))
        return GroupBalancedBatchSampler(groups, share, length, self.loader["exhausted"], self.seed, keyed=True)

    def _loader(self, dataset: Any, kind: Any = DataLoader, **options: Any) -> DataLoader[Any]:
        workers = int(self.loader["num_workers"])
        pinned = torch.cuda.is_available()
        loader: DataLoader[Any] = kind(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            collate_fn=collate_batch,
            **options,
        )
        return loader

    def _with_features(self, name: str, key: str | None = None) -> Any:
        features = self._features.get(key or name)
        return FeatureDataset(self.dataset(name), features) if features else self.dataset(name)

    def train_dataloader(self) -> DataLoader[Any]:
        """Balanced batches, reshuffled every epoch."""
        dataset, key = self._with_features("train"), self.splits.get("train").content_key()
        options = {"batch_sampler": self.sampler(), "seed": self.seed, "data_key": key}
        return self._loader(dataset, kind=ResumableDataLoader, **options)

    def val_dataloader(self) -> DataLoader[Any]:
        """The whole of val, in order."""
        return self._loader(self._with_features("val"), batch_size=_EVAL_BATCH)

    def reference_dataloader(self) -> DataLoader[Any]:
        """The whole of train without augmentation: what retrieval and the baselines look things up in."""
        return self._loader(self._with_features("train", "reference"), batch_size=_EVAL_BATCH)

    def test_dataloader(self) -> DataLoader[Any]:
        """The split ``test_split``, in order."""
        return self.split_dataloader(self.test_split)

    def split_dataloader(self, name: str) -> DataLoader[Any]:
        """Any split by name, in order."""
        return self._loader(self.dataset(name), batch_size=_EVAL_BATCH)

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
            key = {"weights": weights_key, "transform": transform, "data": cache.data_key(dataset.table)}
            passes = self._passes(dataset, augmented, device)
            folder = self.cache_dir / "features" / f"{name}-{tag}"
            self._features[name] = cache.load_or_make(folder, key, views, len(dataset), passes, encode)

    def _passes(self, dataset: PhotoDataset, augmented: bool, device: torch.device) -> Callable[[int], Iterable[Any]]:
        def batches(view: int) -> Iterable[dict[str, Tensor]]:
            rows = range(len(dataset))
            keys: list[Any] = [(row, view * len(dataset) + row) for row in rows] if augmented else list(rows)
            for batch in self._loader(dataset, sampler=keys, batch_size=_EVAL_BATCH):
                yield self.on_after_batch_transfer({k: v.to(device) for k, v in batch.items()}, 0)

        return batches


class GeneratedGeolocationDataModule(GeolocationDataModule):
    """The same on generated data, for demonstrations and tests.

    Args:
        generated: ``{root, …}`` and arguments of :func:`write_generated_country`. The data is written when ``root``
            is that folder and holds none; any other ``root`` must exist, so a mistyped path is an error.
        options: of :class:`GeolocationDataModule`.
    """

    def __init__(self, root: str, generated: dict[str, Any], **options: Any) -> None:
        super().__init__(root, **options)
        self.generated = dict(generated)

    def prepare_data(self) -> None:
        """Writes the generated country once."""
        from .generated import write_generated_country

        options = dict(self.generated)
        target = options.pop("root")
        if os.path.abspath(target) != os.path.abspath(self.root):
            if not self.root.is_dir():
                raise DatasetNotFoundError(f"no folder root='{self.root}'; pass datamodule.root=FOLDER with train.csv.")
        elif not (self.root / "train.csv").is_file():
            log.info("writing the generated country to %s", self.root)
            write_generated_country(self.root, **options)
        if not (self.root / "cell_metadata.csv").is_file() and os.path.abspath(target) == os.path.abspath(self.root):
            self.splits.write_cells(self.root / "cell_metadata.csv")
