"""The ways to divide areas into train, val, calibration and test."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .block_assignment import SPLITS, Cells, assign, assign_folds, count_codes, make_blocks

METHODS = ("blocks", "area", "kmeans", "random")
SHARES = {"val": 0.15, "calibration": 0.15, "test": 0.2}
USUAL_BLOCKS = 24  # enough to balance the classes; smaller blocks would lose more to the buffer


@dataclass(frozen=True)
class SplitSettings:
    """How to divide; see :meth:`SpatialSplits.make` for each.

    Raises:
        StagewiseError: a value that makes no sense, alone or with the others.
    """

    cell_px: int
    tile_px: int
    pixel_size_m: float
    method: str = "blocks"
    block_cells: int | None = None
    buffer_px: int | None = None
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    fold: int | None = None
    folds: int = 5
    test_area: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_method()
        wrong = set(self.shares) - set(SPLITS[1:]) or {k for k, share in self.shares.items() if not 0 <= share < 1}
        if wrong or sum(self.shares.values()) >= 1:
            raise StagewiseError(
                f"`shares` must be shares from 0 to below 1 for {SPLITS[1:]} that leave a rest for train, "
                f"got {self.shares}."
            )

    def _check_sizes(self) -> None:
        for name in ("cell_px", "tile_px", "pixel_size_m", "block_cells"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise StagewiseError(f"`{name}` must be above 0, got {value}.")
        if self.buffer_px is not None and self.buffer_px < self.tile_px and self.method != "random":
            raise StagewiseError(
                f"`buffer_px` is {self.buffer_px}, less than a tile of {self.tile_px} pixels: tiles of one split would "
                "reach into another; give at least the tile's side, or smaller tiles."
            )

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise StagewiseError(f"`method` must be one of {METHODS}, got '{self.method}'.")
        if self.fold is None and self.method == "kmeans":
            raise StagewiseError(
                f"`method='kmeans'` needs `fold`, 0 to {self.folds - 1}: the cluster that is the test."
            )
        if self.test_area is not None and self.method != "area":
            raise StagewiseError(f"`test_area` is for the method 'area', got method '{self.method}'.")
        if self.fold is not None and self.method not in ("blocks", "kmeans"):
            raise StagewiseError(f"`fold` is for the methods 'blocks' and 'kmeans', got method '{self.method}'.")
        if self.fold is not None and not (0 <= self.fold < self.folds and self.folds >= 2):
            raise StagewiseError(f"`fold` must be 0 to {self.folds - 1} of at least 2 `folds`, got {self.fold}.")

    @property
    def reach(self) -> int:
        """Cells between which the buffer lies: pixels of cells further apart are at least ``buffer_px`` apart.

        >>> SplitSettings(cell_px=8, tile_px=32, pixel_size_m=10.0).reach
        4
        """
        return 0 if self.method == "random" else math.ceil(((self.buffer_px or self.tile_px) - 1) / self.cell_px)

    @property
    def wanted(self) -> NDArray[np.float64]:
        """(4,) share of each split."""
        evaluation = [float(self.shares.get(name, 0)) for name in SPLITS[1:]]
        return np.array([1 - sum(evaluation), *evaluation])


def make_codes(cells: Cells, settings: SplitSettings) -> tuple[dict[str, NDArray[np.uint8]], float]:
    """Divides areas.

    Args:
        cells: area -> (R,C,K) labelled pixels of each class in each cell.
        settings: how.

    Returns:
        Area -> (R,C) code of each cell, and the share of labelled pixels that the buffer took.

    Raises:
        StagewiseError: nothing is labelled, or too little to divide it so.
    """
    if not any(cell.any() for cell in cells.values()):
        raise StagewiseError(f"no pixel of {sorted(cells)} has a label; look at the areas' labels and their nodata.")
    side = block_side(cells, settings)
    given = given_test(cells, side, settings)
    blocks = make_blocks(cells, side, given)
    test = np.zeros(len(blocks), bool)
    for area, part in given.items():
        numbers = blocks.number[area][part == 1]
        test[numbers[numbers >= 0]] = True
    _check_enough(len(blocks) - int(test.sum()), side, settings, bool(test.any()))
    if settings.method == "random":
        split = _at_random(len(blocks), settings)
    else:
        split = assign(blocks, settings.wanted, test, settings.reach, settings.seed)
    codes = blocks.codes(split, settings.reach)
    kept = sum(int(count_codes(codes[area], cell).sum()) for area, cell in cells.items())
    return codes, 1 - kept / int(blocks.counts.sum())


def block_side(cells: Cells, settings: SplitSettings) -> int:
    """Cells along a block: what was asked for, one tile at random, or the most that leave enough labelled blocks.

    >>> cells = {"a": np.ones((60, 40, 2), int)}
    >>> block_side(cells, SplitSettings(cell_px=8, tile_px=32, pixel_size_m=10.0))
    10
    """
    tile = math.ceil(settings.tile_px / settings.cell_px)
    if settings.method == "random":
        return tile
    side = settings.block_cells or max(max(cell.shape[:2]) for cell in cells.values())
    while settings.block_cells is None and side > tile and len(make_blocks(cells, side)) < USUAL_BLOCKS:
        side = max(tile, side - math.ceil(side / 10))
    return side


def given_test(cells: Cells, side: int, settings: SplitSettings) -> Cells:
    """Area -> (R,C), 1 for the cells that are the test in any case, else 0; no area where the shares decide.

    Raises:
        StagewiseError: an unknown area, or a method that does not suit the number of areas.
    """
    if settings.method == "area":
        chosen = _test_area(cells, settings.test_area)
        return {area: np.full(cell.shape[:2], int(area == chosen)) for area, cell in cells.items()}
    if settings.fold is None:
        return {}
    folds = cell_folds(cells, side, settings)
    return {area: (fold == settings.fold).astype(np.int64) for area, fold in folds.items()}


def cell_folds(cells: Cells, side: int, settings: SplitSettings) -> Cells:
    """Area -> (R,C) fold of each labelled cell, -1 elsewhere; the same whichever fold is asked for.

    Raises:
        StagewiseError: fewer blocks or cells than folds, or k-means over several areas.
    """
    if settings.method == "kmeans":
        return kmeans_folds(cells, settings.folds, settings.cell_px * settings.pixel_size_m, settings.seed)
    blocks = make_blocks(cells, side)
    if len(blocks) < settings.folds:
        raise StagewiseError(
            f"{len(blocks)} labelled blocks of {side * settings.cell_px} pixels are too few for {settings.folds} "
            "`folds`; make `block_cells` or `folds` smaller."
        )
    fold = assign_folds(blocks, settings.folds, settings.seed)
    return {area: np.where(number >= 0, fold[number], -1) for area, number in blocks.number.items()}


def kmeans_folds(cells: Cells, folds: int, cell_m: float, seed: int) -> Cells:
    """The usual spatial folds: k-means on the coordinates of the labelled places, each place once.

    ``KMeans(n_clusters=folds, n_init=10, random_state=seed)`` on the centres of the labelled cells, in the order of
    the raster. Published folds that were made so from a list of points are met up to what k-means makes of another
    order of the same points, and of the rounding to cells.

    Args:
        cells: the one area -> (R,C,K) labelled pixels of each class in each cell.
        folds: number of clusters.
        cell_m: side of a cell in metres.
        seed: of k-means.

    Returns:
        The area -> (R,C) cluster of each labelled cell, -1 elsewhere.

    Raises:
        StagewiseError: several areas, or fewer labelled cells than folds.

    >>> two = np.zeros((1, 9, 1), int)
    >>> two[0, [0, 1, 7, 8]] = 1
    >>> fold = kmeans_folds({"a": two}, folds=2, cell_m=10.0, seed=0)["a"][0]
    >>> bool(fold[0] == fold[1] != fold[7] == fold[8]), int(fold[4])
    (True, -1)
    """
    from sklearn.cluster import KMeans

    if len(cells) != 1:
        raise StagewiseError(f"`method='kmeans'` is for one area, got {sorted(cells)}; take 'area' or 'blocks'.")
    ((area, cell),) = cells.items()
    labelled = cell.any(axis=2)
    row, column = np.nonzero(labelled)
    if len(row) < folds:
        raise StagewiseError(
            f"{len(row)} labelled cells are too few for {folds} `folds`; make `cell_px` or `folds` smaller."
        )
    metres = np.stack([column + 0.5, -row - 0.5], axis=1) * cell_m
    fold = np.full(labelled.shape, -1)
    fold[labelled] = KMeans(n_clusters=folds, n_init=10, random_state=seed).fit_predict(metres)
    return {area: fold}


def _test_area(cells: Cells, name: str | None) -> str:
    if name is None or name not in cells or len(cells) < 2:
        known = sorted(cells)
        raise StagewiseError(f"`method='area'` needs two areas or more, and `test_area` one of {known}, got {name!r}.")
    if not cells[name].any():
        raise StagewiseError(f"`test_area` {name!r} has no labelled pixel.")
    return name


def _check_enough(blocks: int, side: int, settings: SplitSettings, tested: bool) -> None:
    names = [name for name, share in zip(SPLITS, settings.wanted) if share and not (tested and name == "test")]
    if blocks < len(names):
        raise StagewiseError(
            f"{blocks} labelled blocks of {side * settings.cell_px} pixels are too few for {', '.join(names)}; "
            "make `block_cells` smaller, set a share to 0, or label more places."
        )


def _at_random(blocks: int, settings: SplitSettings) -> NDArray[np.uint8]:
    ends = np.round(np.cumsum(settings.wanted) * blocks)
    place = np.random.default_rng(settings.seed).permutation(blocks)
    return np.searchsorted(ends, place, side="right").astype(np.uint8)
