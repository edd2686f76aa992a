"""Answers new rows: both branches where a row has both, else the one that it has, and the file says which."""

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ...datamodules.errors import StagewiseError
from ...datamodules.fusion.new_rows import NewRows, read_new
from ...datamodules.fusion.pictures import as_float
from ...datamodules.fusion.table import FusionTable
from .answers import answer_items, rows_of
from .forest import MetadataForest

if TYPE_CHECKING:
    from .module import FusionModule

log = logging.getLogger(__name__)
FILE = "predictions.csv"
_BATCH = 64


def predict_rows(module: "FusionModule", source: str, target: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Answers the rows of a CSV; a missing picture or cell is no fault.

    Args:
        module: in eval mode, on its device.
        source: CSV with the columns of the training, pictures relative to its folder; label and group may be absent.
        target: folder for ``predictions.csv``.
        limit: rows at most.

    Returns:
        For each row ``id``, ``phase``, ``p_CLASS``, ``used`` (both, metadata, image, or neither: then the classes'
        shares in train answer) and ``note`` (categories that no train row had).

    Raises:
        StagewiseError: a file without rows, or none that can be answered; a limit below 1; a target that is a file.
    """
    if Path(target).is_file():
        raise StagewiseError(f"output='{target}' is a file; pass a folder.")
    new = read_new(source, module.schema)
    count = len(new.table) if limit is None else min(limit, len(new.table))
    if count < 1:
        raise StagewiseError(f"input='{source}' has no row to answer (options.limit={limit}); pass a table with rows.")
    table = new.table.subset(np.arange(count))
    metadata = module.metadata_of("new", table)
    rows = rows_of(module.network, answer_items(module, _batches(module, new, count), metadata), metadata, table)
    answers = _described(module, table, rows)
    if all(one["used"] == "neither" for one in answers):
        columns = [module.schema["columns"]["image"]] if module.network.picture is not None else []
        columns += [*table.number_names, *table.category_names] if module.forest is not None else []
        raise StagewiseError(f"no row of input='{source}' has a value that the model reads: {', '.join(columns)}.")
    _write(Path(target), answers)
    log.info("answered by: %s", dict(Counter(one["used"] for one in answers)))
    return answers


def _batches(module: "FusionModule", new: NewRows, count: int) -> Iterator[dict[str, Tensor]]:
    items = np.flatnonzero(new.dataset.row_of_item < count).tolist()
    for batch in DataLoader(Subset(new.dataset, items), batch_size=_BATCH):
        on_device = {name: value.to(module.device) for name, value in batch.items()}
        yield {**on_device, "image": as_float(on_device["image"])}


def _described(module: "FusionModule", table: FusionTable, rows: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    classes, p = module.schema["classes"], rows["probability"]
    notes: list[list[str]] = [[] for _ in range(len(table))]
    if module.forest is not None:
        notes = MetadataForest.from_state(module.forest["state"]).unseen(table)
    found = []
    for i, own in enumerate(table.ids.tolist()):
        numbers = {f"p_{name}": round(float(value), 6) for name, value in zip(classes, p[i])}
        used = _used(*(not np.isnan(rows[name][i]).any() for name in ("metadata", "picture")))
        note = f"unseen: {', '.join(notes[i])}" if notes[i] else ""
        found.append({"id": own, "phase": classes[int(p[i].argmax())], **numbers, "used": used, "note": note})
    return found


def _used(metadata: bool, image: bool) -> str:
    """What a row was answered by.

    >>> _used(True, True), _used(True, False), _used(False, True), _used(False, False)
    ('both', 'metadata', 'image', 'neither')
    """
    return {(True, True): "both", (True, False): "metadata", (False, True): "image"}.get((metadata, image), "neither")


def _write(target: Path, answers: list[dict[str, Any]]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    part = target / f".{FILE}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, list(answers[0]))
        lines.writeheader()
        lines.writerows(answers)
    part.replace(target / FILE)
