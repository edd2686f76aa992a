"""New rows, read and cropped just as those that a model was trained on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DatasetNotFoundError
from .dataset import FusionDataset
from .pictures import cut_picture
from .reader import read_table
from .table import Corners, FusionTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewRows:
    """Rows without split.

    Args:
        table: label -1 where the file does not say it.
        dataset: their items, each picture one, uncached.
    """

    table: FusionTable
    dataset: FusionDataset


@dataclass(frozen=True)
class Cutter:
    """Picture and box -> pixels, cut anew each time; a worker can take it along.

    Args:
        settings: of :func:`cut_picture`.
    """

    settings: Mapping[str, Any]

    def __call__(self, path: str, box: Corners | None) -> Tensor:
        """(C, px, px) of one picture."""
        return cut_picture(path, box, self.settings)


def read_new(source: str | Path, schema: Mapping[str, Any]) -> NewRows:
    """Reads a CSV of new rows; a missing picture, column or value leaves the row in, and is logged.

    Args:
        source: the CSV; its pictures, and the file of boxes where the model was trained with one, lie relative to its
            folder.
        schema: of the data module, or of a checkpoint.

    Raises:
        DatasetNotFoundError: there is no such CSV.
        BadRowsError: ids are missing or there twice, a number is none, or a box is outside its picture.
    """
    path = Path(source)
    if not path.is_file():
        raise DatasetNotFoundError(f"no CSV '{path}'; pass input=FILE.csv, a table with the columns of the training.")
    boxes = schema["files"]["boxes"]
    if boxes and not (path.parent / boxes).is_file():
        log.warning("fusion: no '%s': pictures count whole, but the model learnt from crops", path.parent / boxes)
        boxes = None
    files = {"table": path.name, "boxes": boxes}
    table = read_table(path.parent, files, schema["columns"], schema["classes"], labelled=False, like=schema)
    return NewRows(table, FusionDataset(table, Cutter(schema["image"]), schema["image"]))
