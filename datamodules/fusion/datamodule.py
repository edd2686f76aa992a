"""The data module of fusion: metadata and pictures of the same rows."""

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
from ..errors import StagewiseError
from ..loaders import ResumableDataLoader
from ..samplers import GroupBalancedBatchSampler
from ..settings import settings_of
from .dataset import MOVES, FusionDataset
from .folds import check_options, make_splits, split_by_ids
from .leaks import warn_of_leaks
from .picture_store import PictureStore, depth_of, open_pictures
from .pictures import as_float
from .reader import read_table
from .schema import SEEN, describe
from .settings import KNOWN, check_classes, check_columns, check_image, check_loader
from .table import FusionTable

log = logging.getLogger(__name__)
_EVAL_BATCH = 64


class FusionDataModule(TaskDataModule):
    """A table with pictures -> rows in splits by patient, crops, and what a model must know of them.

    Args:
        root: folder of the table and the pictures.
        classes: names of the label, in their order.
        files: ``{table, boxes}``, and ``columns``: ``{id, group, label, image, drop, categories}`` of
            :func:`~.reader.read_table`.
        columns: see ``files``.
        fold: that is the test.
        splits: ``{folds, seed, val_share, by}`` of :func:`~.folds.make_splits`.
        image: ``{px, channels, colormap, margin}`` of :func:`~.pictures.cut_picture`; ``{flip, shift, zoom}`` of
            :class:`FusionDataset`; ``brightness``: half-width of a factor around 1, 0 where temperature counts.
        loader: ``{batch_size, num_workers}``.
        permute_labels: shuffles the labels over the rows before anything else, only to see that nothing can be learnt.
        run: ``cache_dir`` for the crops; ``seed`` of the run: order, augmentation and the shuffle of labels.

    Raises:
        StagewiseError: an unknown key, fewer than two classes, or image settings that do not go together.
    """

    def __init__(
        self,
        root: str,
        classes: list[str],
        files: dict[str, Any] | None = None,
        columns: dict[str, Any] | None = None,
        fold: int = 0,
        splits: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        loader: dict[str, Any] | None = None,
        permute_labels: bool = False,
        **run: Any,
    ) -> None:
        super().__init__()
        own = settings_of("datamodule", run, KNOWN["datamodule"])
        self.root, self.cache_dir, self.seed = Path(root), Path(own["cache_dir"]), int(own["seed"])
        self.classes, self.fold, self.permute_labels = list(classes), fold, permute_labels
        self.files, self.columns, self.split_options, self.image, self.loader = (
            settings_of(name, given, KNOWN[name])
            for name, given in dict(files=files, columns=columns, splits=splits, image=image, loader=loader).items()
        )
        check_classes(self.classes)
        check_image(self.image)
        check_columns(self.columns)
        check_loader(self.loader)
        check_options(fold=fold, **self.split_options)
        self.shuffle_seed, self.test_split = self.seed, "test"
        self.schema: dict[str, Any] | None = None
        self.splits: dict[str, FusionTable] = {}
        self.store: PictureStore | None = None

    # --- tables ---

    def setup(self, stage: str) -> None:
        """Reads the table, cuts the pictures that are not there yet, and makes the splits or a checkpoint's."""
        if self.splits:
            return
        table = self._read()
        self.image = {"bits": depth_of(table)} | self.image  # a checkpoint's stays
        if self.schema is None:
            self.splits = make_splits(table, fold=self.fold, **self.split_options)
            self.schema = describe(self.splits, table, self._options())
        else:
            self.splits = split_by_ids(table, self.schema["splits"]["ids"], self.schema["leaky"])
        self.store = open_pictures(table, self.cache_dir, {key: self.image[key] for key in SEEN})
        sizes = (f"{name} {len(part)} rows of {len(set(part.group))} patients" for name, part in self.splits.items())
        log.info("fusion: fold %d: %s", self.fold, "; ".join(sizes))
        self.check_processes()

    def adopt(self, schema: dict[str, Any]) -> None:
        """Takes a checkpoint's classes, columns, splits and crops, so that nothing is chosen anew."""
        self.schema, self.splits = schema, {}
        self.classes, self.fold = list(schema["classes"]), schema["fold"]
        self.columns, self.split_options = dict(schema["columns"]), dict(schema["splits"]["options"])
        self.image |= schema["image"]
        self.permute_labels, self.shuffle_seed = schema["permuted"], schema["seed"]

    def _read(self) -> FusionTable:
        """The whole table; where asked for, with shuffled labels."""
        table = read_table(self.root, self.files, self.columns, self.classes, like=self.schema)
        if self.permute_labels:
            log.warning("fusion: permute_labels=true: the labels are shuffled, nothing can be learnt from them")
            order = np.random.default_rng(self.shuffle_seed).permutation(len(table))
            return replace(table, label=table.label[order])
        if self.schema is None:
            warn_of_leaks(table)
        return table

    def _options(self) -> dict[str, Any]:
        made = {"files": self.files, "columns": self.columns, "image": self.image, "splits": self.split_options}
        return {**made, "fold": self.fold, "permuted": self.permute_labels, "seed": self.shuffle_seed}

    @property
    def class_count(self) -> NDArray[np.int64]:
        """(K,) train rows of each class."""
        if self.schema is None:
            raise StagewiseError("the classes are counted in `setup`; call it first.")
        return np.array(self.schema["class_count"], np.int64)

    def table(self, name: str) -> FusionTable:
        """The rows of a split.

        Raises:
            StagewiseError: there is no such split; names those that there are.
        """
        if name not in self.splits:
            raise StagewiseError(
                f"there is no split '{name}'; splits: {', '.join(self.splits) or 'none before setup'}."
            )
        return self.splits[name]

    # --- samples ---

    def dataset(self, name: str, training: bool = False) -> FusionDataset:
        """The pictures of a split, or, for training, draws of its rows."""
        table = self.table(name)
        assert self.store is not None
        moves = {key: float(self.image[key]) for key in MOVES} if training else None
        return FusionDataset(table, self.store, self.image, moves, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """One picture of each row, drawn and augmented, reshuffled every pass."""
        rows, size = len(self.table("train")), int(self.loader["batch_size"])
        if size > rows:
            raise StagewiseError(f"loader.batch_size is {size}, but train has {rows} rows; take at most as many.")
        one_group = np.zeros(rows, np.int64)
        sampler = GroupBalancedBatchSampler(one_group, {0: size}, max(1, rows // size), seed=self.seed, keyed=True)
        own = {"batch_sampler": sampler, "seed": self.seed, "data_key": self.data_key()}
        return self.make_loader(self.dataset("train", training=True), ResumableDataLoader, **own)

    def data_key(self) -> str:
        """Names train and val and what is shown of them: other data, another key."""
        tables = [self.table(name).content_key() for name in ("train", "val")]
        content = [tables, {key: self.image[key] for key in (*SEEN, *MOVES, "brightness")}]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    def val_dataloader(self) -> DataLoader[Any]:
        """All pictures of val, in order, shared out over the processes."""
        return self.shared_loader(self.dataset("val"), _EVAL_BATCH)

    def test_dataloader(self) -> DataLoader[Any]:
        """All pictures of the split ``test_split``, in order."""
        return self.split_dataloader(self.test_split)

    def split_dataloader(self, name: str) -> DataLoader[Any]:
        """Any split by name, in order and without augmentation."""
        return self.make_loader(self.dataset(name), batch_size=_EVAL_BATCH)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Integers -> float in [0, 1], by a fixed scale; brightness of training batches where it is asked for."""
        image = as_float(batch["image"])
        half = float(self.image["brightness"])
        if "draw" in batch and half > 0:
            generator = torch.Generator().manual_seed((self.seed << 32) + int(batch["draw"][0]))
            factor = 1 + half * (2 * torch.rand(len(image), 1, 1, 1, generator=generator) - 1)
            image = (image * factor.to(image.device)).clamp(0, 1)
        return {**batch, "image": image}


class GeneratedFusionDataModule(GeneratedMixin, FusionDataModule):
    """The same on a generated clinic, for demonstrations and tests; see :func:`write_generated_clinic`."""

    def is_written(self) -> bool:
        """Whether there is a table."""
        return (self.root / self.files["table"]).is_file()

    def write(self, **options: Any) -> None:
        """Writes table, boxes and pictures."""
        from .generated import write_generated_clinic

        write_generated_clinic(self.root, **options)
