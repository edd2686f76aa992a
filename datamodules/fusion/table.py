"""Rows of metadata and the pictures that belong to them, as arrays."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Corners = tuple[float, float, float, float]  # left, top, right, bottom in pixels
UNKNOWN = -1
OF_ROW = ("ids", "group", "label", "numbers", "categories")


@dataclass(frozen=True)
class FusionTable:
    """N rows, each with its metadata and any number of pictures.

    Args:
        ids: (N,) names of the rows, each once.
        group: (N,) patient of each row, "" where unknown, only when predicting.
        label: (N,) class, -1 where unknown, only when predicting.
        numbers: (N, Fn) NaN is missing.
        number_names: of the Fn columns.
        categories: (N, Fc) as spelt in the file without outer spaces, "" is missing.
        category_names: of the Fc columns.
        pictures: of each row the paths, none for a row without picture.
        boxes: of each picture of each row its box in pixels, None for the whole picture.
        classes: K names, in their order.

    >>> table = FusionTable.of(["a", "b"], ["p", "p"], [1, 0], classes=["L", "H"], numbers={"age": [60, np.nan]})
    >>> table.subset([1]).ids.tolist(), table.class_count.tolist(), table.numbers.shape
    (['b'], [1, 1], (2, 1))
    """

    ids: NDArray[np.str_]
    group: NDArray[np.str_]
    label: NDArray[np.int64]
    numbers: NDArray[np.float64]
    number_names: tuple[str, ...]
    categories: NDArray[np.str_]
    category_names: tuple[str, ...]
    pictures: tuple[tuple[str, ...], ...]
    boxes: tuple[tuple[Corners | None, ...], ...]
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        group: Sequence[str],
        label: ArrayLike,
        *,
        classes: Sequence[str],
        numbers: Mapping[str, ArrayLike] | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
        pictures: Sequence[Sequence[str]] | None = None,
        boxes: Sequence[Sequence[Corners | None]] | None = None,
    ) -> "FusionTable":
        """From plain columns; without ``pictures`` no row has one, without ``boxes`` each picture counts whole."""
        count, numbers, categories = len(ids), numbers or {}, categories or {}
        paths = tuple(tuple(map(str, own)) for own in pictures or [()] * count)
        columns = [np.asarray(column, np.float64) for column in numbers.values()]
        names = [np.asarray(column, np.str_) for column in categories.values()]
        return cls(
            np.asarray(ids, np.str_).reshape(count),
            np.asarray(group, np.str_).reshape(count),
            np.asarray(label, np.int64).reshape(count),
            np.stack(columns, 1) if columns else np.zeros((count, 0)),
            tuple(numbers),
            np.stack(names, 1) if names else np.zeros((count, 0), "U1"),
            tuple(categories),
            paths,
            tuple(tuple(own) for own in boxes) if boxes else tuple((None,) * len(own) for own in paths),
            tuple(classes),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def class_count(self) -> NDArray[np.int64]:
        """(K,) rows of each class; rows of unknown label count nowhere."""
        return np.bincount(self.label[self.label >= 0], minlength=len(self.classes))

    def subset(self, rows: ArrayLike) -> "FusionTable":
        """The given rows, in their order.

        Args:
            rows: positions, or a mask of all rows.
        """
        chosen = np.arange(len(self))[np.asarray(rows)] if len(self) and np.size(rows) else np.zeros(0, np.int64)
        of_row = {name: getattr(self, name)[chosen] for name in OF_ROW}
        pictures, boxes = (tuple(own[i] for i in chosen) for own in (self.pictures, self.boxes))
        return replace(self, pictures=pictures, boxes=boxes, **of_row)

    def with_columns(
        self,
        numbers: NDArray[np.float64],
        number_names: Sequence[str],
        categories: NDArray[np.str_],
        category_names: Sequence[str],
    ) -> "FusionTable":
        """The same rows with these (N, Fn) numbers and (N, Fc) categories."""
        made = replace(self, numbers=numbers, number_names=tuple(number_names))
        return replace(made, categories=categories, category_names=tuple(category_names))

    def content_key(self) -> str:
        """Names the rows: other values, labels, columns, pictures, boxes or order, another key.

        Of a picture only the file's name counts, so that the data may move to another folder.
        """
        names: list[Any] = [self.ids.tolist(), self.group.tolist(), self.number_names, self.category_names]
        names += [self.categories.tolist(), self.classes, self.boxes]
        names += [[[Path(path).name for path in own] for own in self.pictures]]
        digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8)
        for array in (self.label, self.numbers):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
