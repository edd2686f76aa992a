"""The one object that knows which pixel belongs to which split."""

import base64
import logging
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SplitLeakError, StagewiseError
from .block_assignment import BUFFER, SPLITS, Cells, count_codes
from .prepared import Window
from .split_making import SplitSettings, make_codes

if TYPE_CHECKING:
    from .tiles import TileTable

log = logging.getLogger(__name__)


class SpatialSplits:
    """Train, val, calibration and test as parts of areas, at least a tile's side away from each other.

    Made by :meth:`make`; a checkpoint carries :meth:`to_plain`.

    Args:
        codes: area -> (R,C) split of each square cell: position in ``SPLITS``, ``BUFFER`` where there is no label or
            where the buffer took it.
        counts: (4,K) labelled pixels of each class in each split.
        settings: plain values of :class:`SplitSettings`.
        lost: share of the labelled pixels that the buffer took.
    """

    def __init__(
        self, codes: dict[str, NDArray[np.uint8]], counts: NDArray[np.int64], settings: dict[str, Any], lost: float
    ) -> None:
        self.codes, self.lost, self.settings = codes, lost, settings
        self.counts = dict(zip(SPLITS, counts.tolist()))
        self.cell_px, self.tile_px = int(settings["cell_px"]), int(settings["tile_px"])
        if self.leaky:
            log.warning(
                "LEAKY SPLIT: method='random' puts neighbouring tiles into train and test, without a buffer. Its "
                "scores are too good to be true and only there to be compared with those of method='blocks'."
            )

    @classmethod
    def make(
        cls,
        label_counts: Mapping[str, NDArray[np.integer]],
        cell_px: int,
        tile_px: int,
        pixel_size_m: float,
        **settings: Any,
    ) -> "SpatialSplits":
        """Divides labelled areas.

        Args:
            label_counts: area -> (R,C,K) labelled pixels of each class in each cell; see ``tiles.label_counts``.
            cell_px: side of a cell.
            tile_px: side of a tile.
            pixel_size_m: side of a pixel in metres.
            **settings: ``method``: ``blocks``; ``area`` (leave one area out); ``kmeans`` (folds by k-means on the
                coordinates of the labelled cells); ``random`` (leaky on purpose: single tiles, no buffer).
                ``block_cells``: side of a block, None is as large as leaves enough of them. ``buffer_px``: distance
                between splits, None is ``tile_px``. ``shares``: of the labelled pixels, ``{"val": 0.15,
                "calibration": 0.15, "test": 0.2}``; 0 leaves a split out. ``fold``: this one of ``folds`` is the test
                and the others are divided; None goes by the shares. ``test_area``: with ``area``. ``seed``.

        Raises:
            StagewiseError: settings that make no sense, too few labelled blocks, a split without labels, a class
                that train lacks.

        >>> splits = SpatialSplits.make({"a": np.ones((60, 40, 2), int)}, cell_px=8, tile_px=32, pixel_size_m=10.0)
        >>> splits.leaky, splits.codes["a"].shape, sorted(splits.counts)
        (False, (60, 40), ['calibration', 'test', 'train', 'val'])
        """
        chosen = SplitSettings(int(cell_px), int(tile_px), float(pixel_size_m), **settings)
        cells: Cells = {area: np.asarray(cell, np.int64) for area, cell in label_counts.items()}
        codes, lost = make_codes(cells, chosen)
        counts = np.sum([count_codes(codes[area], cell) for area, cell in cells.items()], axis=0)
        splits = cls(codes, counts, dict(vars(chosen)), lost)
        splits._check_classes([name for name, share in zip(SPLITS, chosen.wanted) if share])
        log.info("%s", splits)
        return splits

    @property
    def leaky(self) -> bool:
        """Whether the splits touch each other on purpose."""
        return bool(self.settings["method"] == "random")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.counts["train"])

    def __str__(self) -> str:
        total = np.sum(list(self.counts.values()), axis=0)
        lines = [f"Splits by {self.settings['method']}; the buffer took {self.lost:.1%} of the labelled pixels."]
        for name, count in self.counts.items():
            shares = ", ".join(f"{share:.1%}" for share in np.divide(count, np.maximum(total, 1)))
            lines.append(f"  {name}: {sum(count)} labelled pixels, of each class {shares}")
        return "\n".join(lines)

    def mask(self, area: str, window: Window, split: str) -> NDArray[np.bool_]:
        """(rows, columns) which pixels of a window are the split's; none outside the area.

        Raises:
            StagewiseError: an unknown area or split.
        """
        codes, code = self._codes(area), split_code(split)
        row, column, rows, columns = window
        lines = np.arange(row, row + rows) // self.cell_px + 1
        across = np.arange(column, column + columns) // self.cell_px + 1
        framed = np.pad(codes == code, 1)
        height, width = framed.shape
        return framed[np.ix_(lines.clip(0, height - 1), across.clip(0, width - 1))]

    def has(self, area: str, split: str) -> bool:
        """Whether an area has labelled pixels of a split."""
        return bool((self._codes(area) == split_code(split)).any())

    def check_tiles(self, tiles: "TileTable") -> None:
        """Refuses tiles of a split that reach into a cell of another.

        Raises:
            SplitLeakError: names the first such tile, its area and the other split.
        """
        if self.leaky:
            return
        for area in map(str, np.unique(tiles.area)):
            own = tiles.area == area
            row, col = tiles.row[own], tiles.col[own]
            leaks = np.flatnonzero(self._touches_another(tiles.split, area, row, col, tiles.tile_px))
            if len(leaks):
                window = (int(row[leaks[0]]), int(col[leaks[0]]), tiles.tile_px, tiles.tile_px)
                others = [name for name in SPLITS if name != tiles.split and self.mask(area, window, name).any()]
                raise SplitLeakError(
                    f"the {tiles.split} tile of {tiles.tile_px} pixels at row {window[0]}, column {window[1]} of area "
                    f"'{area}' reaches into {' and '.join(others)}, and so do {len(leaks) - 1} more; make the splits "
                    f"with `tile_px={tiles.tile_px}` or a wider buffer."
                )

    def _touches_another(
        self, split: str, area: str, row: NDArray[np.int64], col: NDArray[np.int64], side: int
    ) -> NDArray[np.bool_]:
        codes = self._codes(area)
        other = (codes != split_code(split)) & (codes != BUFFER)
        total = np.pad(other.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        top, left = ((first // self.cell_px).clip(0, n) for first, n in zip((row, col), codes.shape))
        ends = (row + side - 1) // self.cell_px + 1, (col + side - 1) // self.cell_px + 1
        bottom, right = (end.clip(0, n) for end, n in zip(ends, codes.shape))
        return total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left] > 0

    def _codes(self, area: str) -> NDArray[np.uint8]:
        if area not in self.codes:
            raise StagewiseError(f"the splits know the areas {sorted(self.codes)}, not '{area}'.")
        return self.codes[area]

    def _check_classes(self, used: list[str]) -> None:
        remedy = "make `block_cells` or the buffer smaller (and with it the tile), or change `shares` or `seed`"
        for name in used:
            absent = [k + 1 for k, count in enumerate(self.counts[name]) if not count]
            if len(absent) == self.classes:
                raise StagewiseError(f"{name} has no labelled pixel left outside the buffer; {remedy}.")
            if absent and name == "train":
                raise StagewiseError(
                    f"train has no labelled pixel of the classes {absent} (of 1 to {self.classes}, as in labels.tif); "
                    f"look whether they are labelled at all; if so, {remedy}."
                )
            if absent:
                log.warning("%s has no labelled pixel of the classes %s (of 1 to %d).", name, absent, self.classes)

    def to_plain(self) -> dict[str, Any]:
        """Numbers and strings that make the same splits again, small enough for a checkpoint."""
        areas = {
            area: {"shape": list(code.shape), "codes": base64.b64encode(zlib.compress(code.tobytes(), 9)).decode()}
            for area, code in self.codes.items()
        }
        return {"settings": dict(self.settings), "counts": dict(self.counts), "lost": self.lost, "areas": areas}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "SpatialSplits":
        """The splits of :meth:`to_plain`.

        >>> splits = SpatialSplits.make({"a": np.ones((60, 40, 2), int)}, cell_px=8, tile_px=32, pixel_size_m=10.0)
        >>> again = SpatialSplits.from_plain(splits.to_plain())
        >>> np.array_equal(again.codes["a"], splits.codes["a"]), again.counts == splits.counts
        (True, True)
        """
        codes = {
            area: np.frombuffer(zlib.decompress(base64.b64decode(entry["codes"])), np.uint8).reshape(entry["shape"])
            for area, entry in plain["areas"].items()
        }
        counts = np.array([plain["counts"][name] for name in SPLITS])
        return cls(codes, counts, dict(plain["settings"]), plain["lost"])


def split_code(split: str) -> int:
    """Position of a split in ``SPLITS``.

    >>> split_code("test")
    3
    """
    if split not in SPLITS:
        raise StagewiseError(f"a split is one of {SPLITS}, got '{split}'.")
    return SPLITS.index(split)
