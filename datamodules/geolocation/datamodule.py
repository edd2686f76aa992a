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
from ..images import photometric, unreadable_images
from ..samplers import GroupBalancedBatchSampler
from . import feature_cache as cache
from .cell_builder import build_cells
from .geocells import CellTable
from .geodesy import spherical_mean
from .leaks import check_pictures, check_places
from .photo_dataset import FeatureDataset, PhotoDataset, collate_batch
from .photo_table import Faults, PhotoTable, read_photo_table
from .regions import check_settings, quotas

log = logging.getLogger(__name__)
_EVAL_BATCH = 128


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
        views: augmented views of each train picture in the feature cache; 0 runs the encoders at every step.
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
        self.root, self.regions, self.cells = Path(root), regions or {}, dict(cells or {})
        self.loader = {"batch_size": 64, "batches_per_epoch": 1300, "exhausted": "cycle", "balance": "sampler", "num_workers": 0}
        self.loader |= loader or {}
        self.image = {"px": 224, "root": None} | (image or {})
        self.on_bad_rows, self.checks = on_bad_rows, {"images": True, "place_gap_km": 0.1} | (checks or {})
        self.views, self.cache_dir, self.seed = int((feature_cache or {}).get("views", 0)), Path(cache_dir), seed
        self.geography: dict[str, Any] | None = None
        self.test_split = "test"
        self.tables: dict[str, PhotoTable] = {}
        self._features: dict[str, cache.Features] = {}

    # --- tables ---

    @property
    def region_names(self) -> list[str]:
        """Names in the order of their ids."""
        if self.geography is None:
            raise StagewiseError("the data module does not know its regions before `setup`; call setup('fit') first.")
        return list(self.geography["region_names"])

    def setup(self, stage: str) -> None:
        """Reads and checks train and val; builds or reads the cells. Test splits are read when asked for."""
        if self.tables:
            return
        names = self.region_names if self.geography else list(self.regions) or None
        train, names, faults = read_photo_table(self.root / "train.csv", names, self.image["root"])
        self.tables["train"] = self._clean(train, faults)
        if self.geography is None:
            self.geography = self._describe(self.tables["train"], names)
        self._drop_wrong_cells("train")
        if (self.root / "val.csv").is_file() or stage == "fit":
            self.split("val")

    def _describe(self, train: PhotoTable, names: list[str]) -> dict[str, Any]:
        """All that a network must know of the data; fitted on train only; plain numbers and lists."""
        centroid = spherical_mean(torch.from_numpy(train.lat_lon_deg), torch.ones(len(train)))
        settings = [self.regions.get(name, {}) for name in names]
        counts = np.bincount(train.region, minlength=len(names))
        return {
            "region_names": names,
            "count": counts.tolist(),
            "tau_km": [s.get("tau_km") for s in settings],
            "offset_scale": [float(s.get("offset_scale", 1.0)) for s in settings],
            "centroid_deg": centroid.tolist(),
            "region_centroid_deg": [_centroid(train, r) for r in range(len(names))],
            "cells": self._cell_table(train, names).as_dict(),
        }

    def _cell_table(self, train: PhotoTable, names: list[str]) -> CellTable:
        options = dict(self.cells)
        path = options.pop("path", None) or self.root / "cell_metadata.csv"
        if Path(path).is_file() or "path" in self.cells and self.cells["path"]:
            return CellTable.read_csv(path, names)
        radii = {i: float(s["max_radius_km"]) for i, n in enumerate(names) if "max_radius_km" in (s := self.regions.get(n, {}))}
        if radii:
            default = float(options.pop("max_radius_km", 50.0))
            options["max_radius_km"] = {i: radii.get(i, default) for i in range(len(names))}
        built = build_cells(train.lat_lon_deg, train.region, **options)
        log.info("built %d geocells from %d train rows", len(built), len(train))
        return built

    def split(self, name: str) -> PhotoTable:
        """Reads and checks one split; refuses places or pictures that it shares with train or another split read."""
        if name not in self.tables:
            table, _, faults = read_photo_table(self.root / f"{name}.csv", self.region_names, self.image["root"])
            self.tables[name] = self._clean(table, faults)
            self._drop_wrong_cells(name)
            check_places(self.tables["train"], self.tables[name], float(self.checks["place_gap_km"]))
            if self.checks["images"]:
                check_pictures({k: t.image_paths() for k, t in self.tables.items()})
        return self.tables[name]

    def _clean(self, table: PhotoTable, faults: Faults) -> PhotoTable:
        if self.checks["images"]:
            good = np.array([i for i in range(len(table)) if i not in faults], np.int64)
            paths = table.image_paths()
            bad = unreadable_images([paths[i] for i in good])
            faults = faults | {int(good[i]): f"image '{paths[good[i]]}': {why}" for i, why in bad.items()}
        return table.without(faults, self.on_bad_rows, log.warning)

    def _drop_wrong_cells(self, name: str) -> None:
        """A ``cell_id`` of the CSV must be in the table and belong to the row's region."""
        table, cells = self.tables[name], self.cell_table
        if table.cell_id is None or not (self.root / "cell_metadata.csv").is_file() and not self.cells.get("path"):
            return
        given = np.flatnonzero(table.cell_id >= 0)
        position = cells.position_of(table.cell_id[given])
        faults: Faults = {}
        for row, at in zip(given.tolist(), position.tolist()):
            if at < 0:
                faults[row] = f"cell_id {table.cell_id[row]} is not in the cell table"
            elif cells.region[at] != table.region[row]:
                own, other = self.region_names[table.region[row]], self.region_names[cells.region[at]]
                faults[row] = f"cell_id {table.cell_id[row]} belongs to '{other}', the row to '{own}'"
        self.tables[name] = table.without(faults, self.on_bad_rows, log.warning)

    @property
    def cell_table(self) -> CellTable:
        """The geocells of the geography."""
        return CellTable.from_dict((self.geography or {})["cells"])

    # --- samples ---

    def dataset(self, name: str) -> PhotoDataset:
        """The pictures of a split; rows without a valid ``cell_id`` get the nearest cell of their region."""
        table = self.split(name)
        cell = self.cell_table.assign(table.lat_lon_deg, table.region)
        if table.cell_id is not None:
            given = self.cell_table.position_of(table.cell_id)
            cell = np.where((table.cell_id >= 0) & (given >= 0), given, cell)
        crops = {k: tuple(self.image[k]) for k in ("area", "ratio") if k in self.image}
        return PhotoDataset(table, cell, int(self.image["px"]), seed=self.seed, **crops)

    def sampler(self) -> GroupBalancedBatchSampler:
        """Batches of the recipe's mix, or of the natural one where ``balance`` is ``none``."""
        region, size = self.split("train").region, int(self.loader["batch_size"])
        if self.loader["balance"] == "weights":
            groups, share = np.zeros(len(region), np.int64), {0: size}
        elif self.loader["balance"] == "sampler":
            counts = np.bincount(region, minlength=len(self.region_names))
            groups, share = region, quotas(self.region_names, counts, self.regions, size)
        else:
            raise StagewiseError(f"loader.balance must be 'sampler' or 'weights', got '{self.loader['balance']}'.")
        length, exhausted = int(self.loader["batches_per_epoch"]), self.loader["exhausted"]
        return GroupBalancedBatchSampler(groups, share, length, exhausted, self.seed, keyed=True)

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        workers = int(self.loader["num_workers"])
        pinned = torch.cuda.is_available()
        return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, pin_memory=pinned, collate_fn=collate_batch, **options)

    def _with_features(self, name: str, key: str | None = None) -> Any:
        features = self._features.get(key or name)
        return FeatureDataset(self.dataset(name), features) if features else self.dataset(name)

    def train_dataloader(self) -> DataLoader[Any]:
        """Balanced batches, reshuffled every epoch."""
        return self._loader(self._with_features("train"), batch_sampler=self.sampler())

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
        plans: dict[str, tuple[str, int]] = {"train": ("train", self.views), "val": ("val", 1), "reference": ("train", 1)}
        for name, (split, views) in plans.items():
            dataset, augmented = self.dataset(split), name == "train"
            transform = json.dumps([self.image, self.seed, augmented], sort_keys=True, default=str)
            tag = hashlib.blake2b(f"{self.root.absolute()} {weights_key} {transform} {views}".encode(), digest_size=8).hexdigest()
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


def _centroid(train: PhotoTable, region: int) -> list[float]:
    points = torch.from_numpy(train.lat_lon_deg[train.region == region])
    return spherical_mean(points, torch.ones(len(points))).tolist()


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
