"""Objects of a table as samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import StagewiseError
from .crop_store import CropStore
from .crops import jiggle, mark_box
from .table import DrainTable

Key = int | tuple[int, int]  # a row, or a position in `rows` and the number of the draw
INPUTS = ("crop", "whole")


class DrainDataset(Dataset[dict[str, Any]]):
    """One dict an object; see ``stagewise.datamodules`` for the vocabulary.

    A plain row gives the object as it is; a (position, draw) pair a mirrored, zoomed and shifted one that is a function
    of (seed, draw). Label, position, context and box features are those of the picture as it was taken. The second view
    is mirrored with the first and else stays as it is.

    Args:
        table: a split.
        store: crops of the whole folder.
        input: ``crop``, or ``whole`` for the picture without any mark of the box: an ablation.
        view: adds the whole picture with the box drawn.
        geometry: ``{flip, zoom, shift}``: probability of mirroring; half-width of the zoom around 1; largest shift as a
            share of the side.
        rows: (M,) rows that the pairs' positions point to, some of them more than once; None is each row once.
        seed: of the run.

    Raises:
        StagewiseError: an unknown ``input``, or a view of the box beside a picture that must not show it.
    """

    def __init__(
        self,
        table: DrainTable,
        store: CropStore,
        input: str = "crop",
        view: bool = False,
        geometry: Mapping[str, float] | None = None,
        rows: NDArray[np.int64] | None = None,
        seed: int = 0,
    ) -> None:
        if input not in INPUTS or (input == "whole" and view):
            raise StagewiseError(
                f"image.input must be one of {INPUTS}, and 'whole' goes without `view`; got '{input}', view={view}."
            )
        self.table, self.store, self.input, self.view, self.seed = table, store, input, view, seed
        self.geometry = {"flip": 0.0, "zoom": 0.0, "shift": 0.0} | dict(geometry or {})
        self.rows = np.arange(len(table)) if rows is None else rows
        self.features = table.features()
        self._columns = {
            "label": table.label,
            "box_type": table.types,
            "position": table.position(),
            "context": table.context(),
            "picture": table.picture,
        }

    def __len__(self) -> int:
        return len(self.rows)

    def labels(self, row: int) -> dict[str, Any]:
        """Everything of a sample but its pixels."""
        known = {name: int(column[row]) for name, column in self._columns.items()}
        return {**known, "metadata": torch.from_numpy(self.features[row].copy()), "sample_id": row}

    def pixels(self, row: int) -> dict[str, Tensor]:
        """uint8 (3, S, S) ``image``, and ``view`` where it is on."""
        table, picture = self.table, int(self.table.picture[row])
        number = int(table.picture_id[picture])
        if self.input == "whole":
            return {"image": self.store.whole(number)}
        made = {"image": self.store.crop(int(table.object_id[row]))}
        if self.view:
            size = (int(table.width[picture]), int(table.height[picture]))
            made["view"] = mark_box(self.store.whole(number), table.boxes[row], size)
        return made

    def __getitem__(self, key: Key) -> dict[str, Any]:
        if not isinstance(key, tuple):
            return {**self.pixels(int(self.rows[key])), **self.labels(int(self.rows[key]))}
        row, draw = int(self.rows[key[0]]), int(key[1])
        seen = self.pixels(row)
        flip, zoom, shift = self._moves(draw)
        seen["image"] = jiggle(seen["image"], flip, zoom, shift)
        if "view" in seen:
            seen["view"] = jiggle(seen["view"], flip)
        return {**seen, **self.labels(row), "draw": draw}

    def _moves(self, draw: int) -> tuple[bool, float, tuple[float, float]]:
        """What is done to a draw; a pure function of (seed, draw)."""
        u = np.random.Generator(np.random.Philox(key=[self.seed, draw])).random(4)
        zoom, (x, y) = 1 + self.geometry["zoom"] * (2 * u[1] - 1), self.geometry["shift"] * (2 * u[2:] - 1)
        return bool(u[0] < self.geometry["flip"]), float(zoom), (float(x), float(y))
