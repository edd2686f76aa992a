"""The data module of drain conditions."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ..base import GeneratedMixin, TaskDataModule
from ..errors import BadRowsError, StagewiseError
from ..images import photometric
from ..loaders import ResumableDataLoader
from ..samplers import GroupBalancedBatchSampler
from ..settings import settings_of
from .crop_store import CropStore, open_crops
from .dataset import DrainDataset
from .imbalance import corrections_of
from .locations import DEFAULT_FILE, locate
from .oversampling import class_targets, repeated_rows
from .schema import SEEN, describe
from .splits import make_splits, split_by_lists
from .table import DrainTable
from .yolo import label_path, read_yolo, report

log = logging.getLogger(__name__)
KNOWN: dict[str, dict[str, Any]] = {
    "locations": {"file": None, "pattern": None},
    "splits": {"method": "location", "fold": 0, "folds": 5, "val_share": 0.15, "seed": 0, "leaky": False},
    "image": {"px": 224, "input": "crop", "margin": 0.1, "pad": "mean", "view": False, "min_px": 4}
    | {"flip": 0.5, "zoom": 0.1, "shift": 0.04, "jitter": [0.15, 0.15, 0.15, 0.01], "gamma": [0.9, 1.1], "noise": 0.01},
    "loader": {"batch_size": 16, "batches_per_epoch": None, "num_workers": 4},
    "rare": {"correction": "none", "min_per_class": 200, "blocked_share": 0.25},
}
MOVES, LIGHT = ("flip", "zoom", "shift"), ("jitter", "gamma", "noise")
_EVAL_BATCH = 64


class DrainDataModule(TaskDataModule):
    """A YOLO folder -> objects with their crops, in splits by location, and what a model must know of them.

    Args:
        root: folder with ``data.yaml``, pictures and labels.
        locations: ``{file, pattern}`` of :func:`~.locations.locate`: where each picture was taken.
        splits: ``{method, fold, folds, val_share, seed, leaky}`` of :func:`~.splits.make_splits`.
        image: ``{px, input, margin, pad, view, min_px}``: of the crops, and the least side of a box; ``{flip, zoom,
            shift}`` of :class:`DrainDataset`; ``{jitter, gamma, noise}`` of :func:`photometric`.
        loader: ``{batch_size, batches_per_epoch, num_workers}``; None batches are one pass over train.
        rare: ``{correction, min_per_class, blocked_share}``: a correction that holds ``oversample`` repeats the rare
            objects as :func:`~.oversampling.class_targets` says; others are the loss's.
        strict: data that cannot be used is an error instead of being dropped and counted.
        cache_dir: for the crops.
        seed: of the run: order and augmentation.

    Raises:
        StagewiseError: an unknown key or correction; in ``setup``, no object at all.
    """

    def __init__(
        self,
        root: str,
        locations: dict[str, Any] | None = None,
        splits: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        loader: dict[str, Any] | None = None,
        rare: dict[str, Any] | None = None,
        strict: bool = False,
        cache_dir: str = ".cache/stagewise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.strict, self.cache_dir, self.seed = Path(root), strict, Path(cache_dir), seed
        self.locations, self.split_options = (
            settings_of("locations", locations, KNOWN["locations"]),
            settings_of("splits", splits, KNOWN["splits"]),
        )
        self.image, self.loader, self.rare = (
            settings_of("image", image, KNOWN["image"]),
            settings_of("loader", loader, KNOWN["loader"]),
            settings_of("rare", rare, KNOWN["rare"]),
        )
        self.corrections = corrections_of(self.rare["correction"])
        self.test_split = "test"
        self.schema: dict[str, Any] | None = None
        self.splits: dict[str, DrainTable] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.store: CropStore | None = None

    # --- tables ---

    def setup(self, stage: str) -> None:
        """Reads the folder, cuts the crops that are not there yet, and makes the splits or a checkpoint's."""
        if self.splits:
            return
        table, fold_of = self._read()
        if self.schema is None or self.schema["leaky"]:
            self.splits = make_splits(table, fold_of, **self.split_options)
        else:
            self.splits = split_by_lists(table, self.schema["splits"]["locations"])
        self.schema = self.schema or describe(self.splits, self.split_options, self.image)
        sizes = (f"{name} {len(part)} objects in {len(part.paths)} pictures" for name, part in self.splits.items())
        log.info("drains: %s", "; ".join(sizes))
        self.check_processes()

    def adopt(self, schema: dict[str, Any]) -> None:
        """Takes a checkpoint's splits, statistics and crops, so that nothing is fitted."""
        self.schema, self.splits = schema, {}
        self.image |= schema["image"]
        self.split_options |= schema["splits"]["options"]

    def _read(self) -> tuple[DrainTable, dict[str, int] | None]:
        """The whole folder without what cannot be used."""
        folder = read_yolo(self.root, strict=self.strict, min_px=float(self.image["min_px"]))
        table, fold_of = self._locate(folder.table)
        whole = self.image["input"] == "whole"
        shown = {key: self.image[key] for key in ("px", "margin", "pad")}
        self.store = open_crops(table, self.cache_dir, crops=not whole, wholes=whole or self.image["view"], **shown)
        broken = tuple(why.removesuffix(".") for why in self.store.broken.values())
        self.notes = folder.notes | ({"pictures that do not decode": broken} if broken else {})
        report({"pictures that do not decode": broken}, self.strict)
        kept = table.subset([number not in self.store.broken for number in range(len(table.paths))])
        if not len(kept):
            first = table.paths[0]
            raise BadRowsError(
                f"no picture with an object is left; rows of '{first}' belong into '{label_path(first)}'."
            )
        return kept, fold_of

    def _locate(self, table: DrainTable) -> tuple[DrainTable, dict[str, int] | None]:
        told = any(self.locations.values()) or (self.root / DEFAULT_FILE).is_file()
        if self.split_options["method"] == "folder" and self.split_options["leaky"] and not told:
            return replace(table, location=np.array([Path(path).stem for path in table.paths], np.str_)), None
        return locate(table, self.root, **self.locations)

    @property
    def class_count(self) -> NDArray[np.int64]:
        """(9,) train objects of each class, without repeats."""
        if self.schema is None:
            raise StagewiseError("the classes are counted in `setup`; call it first.")
        return np.array(self.schema["class_count"], np.int64)

    def table(self, name: str) -> DrainTable:
        """The pictures and objects of a split.

        Raises:
            StagewiseError: there is no such split; names those that there are.
        """
        if name not in self.splits:
            raise StagewiseError(
                f"there is no split '{name}'; splits: {', '.join(self.splits) or 'none before setup'}."
            )
        return self.splits[name]

    # --- samples ---

    def dataset(self, name: str, rows: NDArray[np.int64] | None = None) -> DrainDataset:
        """The objects of a split; ``rows`` repeats some of them."""
        table = self.table(name)
        assert self.store is not None
        moves = {key: float(self.image[key]) for key in MOVES}
        return DrainDataset(table, self.store, self.image["input"], self.image["view"], moves, rows, self.seed)

    def train_rows(self) -> NDArray[np.int64]:
        """(M,) rows of train that one pass shows; rare ones more than once where they are oversampled."""
        labels, counts = self.table("train").label, self.table("train").class_count
        targets = counts
        if "oversample" in self.corrections:
            targets = class_targets(counts, int(self.rare["min_per_class"]), float(self.rare["blocked_share"]))
        log.info("drains: imbalance correction %s; draws of each class a pass: %s", self.rare["correction"], targets)
        return repeated_rows(labels, targets, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented objects, reshuffled every pass."""
        rows, size = self.train_rows(), int(self.loader["batch_size"])
        length = int(self.loader["batches_per_epoch"] or max(1, len(rows) // size))
        one_group = np.zeros(len(rows), np.int64)
        sampler = GroupBalancedBatchSampler(one_group, {0: size}, length, seed=self.seed, keyed=True)
        own = {"batch_sampler": sampler, "seed": self.seed, "data_key": self.data_key()}
        return self.make_loader(self.dataset("train", rows), ResumableDataLoader, **own)

    def data_key(self) -> str:
        """Names train and val and what is shown of them: other data, another key."""
        tables = [self.table(name).content_key() for name in ("train", "val")]
        content = [tables, {key: self.image[key] for key in (*SEEN, *MOVES)}, self.rare]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    def val_dataloader(self) -> DataLoader[Any]:
        """The whole of val, in order, shared out over the processes."""
        return self.shared_loader(self.dataset("val"), _EVAL_BATCH)

    def test_dataloader(self) -> DataLoader[Any]:
        """The split ``test_split``, in order."""
        return self.split_dataloader(self.test_split)

    def split_dataloader(self, name: str) -> DataLoader[Any]:
        """Any split by name, in order and without augmentation."""
        return self.make_loader(self.dataset(name), batch_size=_EVAL_BATCH)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 -> float in [0, 1]; photometric augmentation of training batches, the same light in both views."""
        batch = dict(batch)
        for name in ("image", "view"):
            if name not in batch or batch[name].dtype != torch.uint8:
                continue
            batch[name] = batch[name].float() / 255
            if "draw" in batch:
                generator = torch.Generator().manual_seed((self.seed << 32) + int(batch["draw"][0]))
                batch[name] = photometric(batch[name], generator, **{key: self.image[key] for key in LIGHT})
        return batch


class GeneratedDrainDataModule(GeneratedMixin, DrainDataModule):
    """The same on generated pictures, for demonstrations and tests; see :func:`write_generated_drains`."""

    def is_written(self) -> bool:
        """Whether there is a YOLO folder."""
        return (self.root / "data.yaml").is_file()

    def write(self, **options: Any) -> None:
        """Writes pictures, labels and locations."""
        from .generated import write_generated_drains

        write_generated_drains(self.root, **options)

    def caption_pairs(self, count: int, seed: int, px: int) -> tuple[NDArray[np.uint8], list[str]]:
        """Crops and captions of another generated world; see :func:`~.generated_captions.caption_pairs`."""
        from .generated_captions import caption_pairs

        return caption_pairs(count, seed, px=px, margin=float(self.image["margin"]), pad=self.image["pad"])
