"""Pictures and the objects in them, as arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .boxes import FEATURES, Boxes, box_features, context_of, position_of
from .vocabulary import CLASSES, TYPE_OF_CLASS

OF_OBJECT = ("boxes", "label", "object_id")
OF_PICTURE = ("width", "height", "split", "location", "picture_id")


@dataclass(frozen=True)
class DrainTable:
    """N objects in P pictures; each object points to its picture.

    Args:
        boxes: (N, 4) ``cx, cy, w, h`` as shares of the picture.
        label: (N,) class 0..8.
        picture: (N,) position of the object's picture, ascending.
        object_id: (N,) number of the object in the whole folder; a part of the folder keeps it.
        paths: of the P pictures.
        width: (P,) pixels, after the turn that EXIF asks for.
        height: (P,) pixels.
        split: (P,) name of the split.
        location: (P,) name of the place, "" where none was read.
        picture_id: (P,) number of the picture in the whole folder.

    >>> boxes = [[0.5, 0.9, 1, 0.1], [0.2, 0.5, 0.1, 0.6]]
    >>> table = DrainTable.of(boxes, [1, 5], [0, 1], ["a.jpg", "b.jpg"], [(8, 6), (8, 6)])
    >>> second = table.subset([1])
    >>> len(second), second.label.tolist(), second.picture.tolist(), second.picture_id.tolist()
    (1, [5], [0], [1])
    """

    boxes: Boxes
    label: NDArray[np.int64]
    picture: NDArray[np.int64]
    object_id: NDArray[np.int64]
    paths: tuple[str, ...]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    split: NDArray[np.str_]
    location: NDArray[np.str_]
    picture_id: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        boxes: ArrayLike,
        label: ArrayLike,
        picture: ArrayLike,
        paths: Sequence[str | Path],
        sizes: Sequence[tuple[int, int]],
        split: Sequence[str] | None = None,
    ) -> "DrainTable":
        """A whole folder; ``sizes`` are width and height, the split is ``train`` unless ``split`` says."""
        label, w_h = np.asarray(label, np.int64), np.asarray(sizes, np.int64).reshape(-1, 2)
        return cls(
            np.asarray(boxes, np.float64).reshape(-1, 4),
            label,
            np.asarray(picture, np.int64),
            np.arange(len(label)),
            tuple(map(str, paths)),
            w_h[:, 0],
            w_h[:, 1],
            np.array(["train"] * len(paths) if split is None else list(split), np.str_),
            np.full(len(paths), "", np.str_),
            np.arange(len(paths)),
        )

    def __len__(self) -> int:
        return len(self.label)

    @property
    def types(self) -> NDArray[np.int64]:
        """(N,) type 0..3, which the detector knows."""
        return TYPE_OF_CLASS[self.label]

    @property
    def class_count(self) -> NDArray[np.int64]:
        """(9,) objects of each class."""
        return np.bincount(self.label, minlength=len(CLASSES))

    def subset(self, pictures: ArrayLike) -> "DrainTable":
        """The given pictures, in their order, with their objects.

        Args:
            pictures: positions, or a mask of all pictures.
        """
        chosen = np.arange(len(self.paths))[np.asarray(pictures)] if len(self.paths) else np.zeros(0, np.int64)
        position = np.full(len(self.paths), -1)
        position[chosen] = np.arange(len(chosen))
        kept = np.flatnonzero(position[self.picture] >= 0)
        kept = kept[np.argsort(position[self.picture[kept]], kind="stable")]
        of_picture = {name: getattr(self, name)[chosen] for name in OF_PICTURE}
        of_object = {name: getattr(self, name)[kept] for name in OF_OBJECT}
        paths = tuple(self.paths[i] for i in chosen)
        return replace(self, paths=paths, picture=position[self.picture[kept]], **of_picture, **of_object)

    def objects_of(self) -> list[NDArray[np.int64]]:
        """Of each picture the positions of its objects."""
        ends = np.cumsum(np.bincount(self.picture, minlength=len(self.paths)))
        return np.split(np.arange(len(self)), ends[:-1]) if len(ends) else []

    def position(self) -> NDArray[np.int64]:
        """(N,) top, middle or bottom of the picture."""
        return position_of(self.boxes)

    def context(self) -> NDArray[np.int64]:
        """(N,) bit mask of the types of the other objects in the picture."""
        parts = [context_of(self.types[own]) for own in self.objects_of()]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def features(self) -> NDArray[np.float32]:
        """(N, F) of :func:`box_features`."""
        sizes = zip(self.width, self.height)
        parts = [box_features(self.boxes[own], self.types[own], size) for own, size in zip(self.objects_of(), sizes)]
        return np.concatenate([np.zeros((0, len(FEATURES)), np.float32), *parts])

    def content_key(self) -> str:
        """Names the rows: other boxes, labels, pictures or order, another key."""
        digest = hashlib.blake2b("\0".join(Path(path).name for path in self.paths).encode(), digest_size=8)
        for field in fields(self):
            if field.name not in ("paths", "split", "location"):
                digest.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
        return digest.hexdigest()
