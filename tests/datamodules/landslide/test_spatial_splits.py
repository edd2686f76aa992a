import io
import logging

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stagewise.datamodules.errors import SplitLeakError, StagewiseError
from stagewise.datamodules.landslide.block_assignment import BUFFER, greedy, keep_apart, make_blocks
from stagewise.datamodules.landslide.spatial_splits import SPLITS, SpatialSplits
from stagewise.datamodules.landslide.split_making import SplitSettings, block_side, cell_folds
from stagewise.datamodules.landslide.tiles import TileTable

CELL, TILE = 4, 14  # a tile that is no multiple of a cell
SEEDS = range(2)


def area(seed, rows=30, columns=36, classes=3):
    """Labelled pixels of each class in each cell: a common, a rare and a middling class in patches, with gaps."""
    rng = np.random.default_rng(seed)
    height = gaussian_filter(rng.normal(size=(rows, columns)), 2)
    gap = gaussian_filter(rng.normal(size=(rows, columns)), 1.5)
    level = np.digitize(height, np.quantile(height, [0.7, 0.85] if classes == 3 else [0.7]))
    level = np.array([0, 2, 1])[level] if classes == 3 else level
    pixels = rng.integers(1, CELL**2, (rows, columns)) * (gap > np.quantile(gap, 0.25))
    return np.where(level[..., None] == np.arange(classes), pixels[..., None], 0)


def make(cells, **options):
    return SpatialSplits.make(cells, **{"cell_px": CELL, "tile_px": TILE, "pixel_size_m": 10.0, **options})


def two(seed=0):
    return {"a": area(seed), "b": area(seed + 50, 28, 24)}


@pytest.fixture(scope="module")
def splits():
    return make(two())


def pixels_of(splits, name, split):
    rows, columns = splits.codes[name].shape
    return splits.mask(name, (0, 0, rows * CELL, columns * CELL), split)


def distance(one, other):
    """Least Chebyshev distance between pixels of two masks, by brute force."""
    a, b = np.argwhere(one), np.argwhere(other)
    return min((np.abs(b - pixel).max(axis=1).min() for pixel in a), default=np.inf) if len(b) else np.inf


def table(row, col, split="train", tile_px=TILE, name="a"):
    row, col = np.atleast_1d(row), np.atleast_1d(col)
    names, ids = np.full(len(row), name), np.arange(len(row)).astype(str)
    counts = np.ones((len(row), 3), int)
    return TileTable(
        split, tile_px, names, row, col, counts, ids, np.full(len(row), "real"), np.full((len(row), 2), "")
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options", [{}, {"fold": 2}, {"method": "area", "test_area": "b"}, {"buffer_px": 19, "block_cells": 9}]
)
def test_no_pixel_of_a_split_lies_within_the_buffer_of_another(seed, options):
    splits = make(two(seed), seed=seed, **options)
    for name in splits.codes:
        masks = [pixels_of(splits, name, split) for split in SPLITS]
        for i, one in enumerate(masks):
            edge = one & ~(np.pad(one, 1)[:-2, 1:-1] & np.pad(one, 1)[2:, 1:-1] & np.pad(one, 1)[1:-1, 2:])
            assert all(distance(edge, other) >= options.get("buffer_px", TILE) for other in masks[i + 1 :])


@pytest.mark.parametrize("seed", SEEDS)
def test_it_takes_no_more_than_the_buffer(seed):
    codes = np.random.default_rng(seed).choice([0, 1, 2, 3, BUFFER], (12, 14), p=[0.08, 0.05, 0.05, 0.05, 0.77])
    kept = keep_apart(codes.astype(np.uint8), 2)
    for row, col in np.argwhere(codes < 3):
        near = kept[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3]
        assert (kept[row, col] == BUFFER) == bool(((near > codes[row, col]) & (near != BUFFER)).any())
    assert np.array_equal(codes == 3, kept == 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_only_labelled_cells_belong_to_a_split_and_the_counts_are_theirs(seed):
    cells = two(seed)
    splits = make(cells, seed=seed)
    for i, split in enumerate(SPLITS):
        assert splits.counts[split] == sum(cells[n][splits.codes[n] == i].sum(axis=0) for n in cells).tolist()
    assert all((splits.codes[name][~cell.any(axis=2)] == BUFFER).all() for name, cell in cells.items())
    total = sum(cell.sum() for cell in cells.values())
    assert splits.lost == pytest.approx(1 - sum(map(sum, splits.counts.values())) / total)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_split_gets_its_share_of_every_class(seed):
    cells = {name: area(seed + i, 50, 50) for i, name in enumerate("abcd")}
    counts = np.array(list(make(cells, seed=seed).counts.values()))
    shares = counts / counts.sum(axis=0)
    assert np.abs(shares - np.array([0.5, 0.15, 0.15, 0.2])[:, None]).max() < 0.1


def test_balance_and_loss_are_better_than_those_of_blocks_at_random():
    cells = {name: area(i, 60, 60) for i, name in enumerate("ab")}
    splits, wanted = make(cells), np.array([0.5, 0.15, 0.15, 0.2])[:, None]
    blocks = make_blocks(cells, splits.settings["block_cells"] or 12)
    total = blocks.counts.sum(axis=0)

    def deviation(counts):
        return np.abs(np.array(counts) / total / wanted - 1).mean()

    at_random = []
    for seed in range(20):
        split = np.random.default_rng(seed).choice(4, len(blocks), p=wanted[:, 0]).astype(np.uint8)
        codes = blocks.codes(split, 4)
        at_random.append([[cells[n][codes[n] == i].sum(axis=0) for n in cells] for i in range(4)])
    at_random = [np.sum(np.array(counts), axis=1) for counts in at_random]
    assert deviation(list(splits.counts.values())) < min(map(deviation, at_random))
    assert splits.lost < min(1 - counts.sum() / total.sum() for counts in at_random)


def test_greedy_divides_the_rarest_class_first():
    counts = np.array([[100, 0], [100, 0], [90, 4], [90, 4], [100, 0], [100, 0]])
    for seed in range(10):
        split = greedy(counts, np.full((2, 1), 0.5) * counts.sum(axis=0), np.random.default_rng(seed))
        assert split[2] != split[3] and np.bincount(split).tolist() == [3, 3]


def test_the_same_seed_makes_the_same_splits_and_another_one_others(splits):
    first, again, other = splits, make(two()), make(two(), seed=2)
    assert all(np.array_equal(first.codes[name], again.codes[name]) for name in "ab")
    assert any(not np.array_equal(first.codes[name], other.codes[name]) for name in "ab")


@pytest.mark.parametrize("method", ["blocks", "kmeans"])
def test_each_labelled_cell_is_test_in_exactly_one_fold(method):
    cells = {"a": area(0)} if method == "kmeans" else two()
    shares = {"val": 0.2, "calibration": 0, "test": 0.2}
    folds = [make(cells, method=method, fold=k, folds=3, shares=shares, block_cells=6) for k in range(3)]
    for name, cell in cells.items():
        times = sum((splits.codes[name] == 3).astype(int) for splits in folds)
        assert np.array_equal(times, cell.any(axis=2).astype(int))


@pytest.mark.parametrize("seed", SEEDS)
def test_folds_are_balanced_by_class_and_do_not_cut_blocks(seed):
    cells = two(seed)
    settings = SplitSettings(CELL, TILE, 10.0, fold=0, folds=4, seed=seed)
    side = block_side(cells, settings)
    fold = cell_folds(cells, side, settings)
    counts = np.array([sum(cells[n][fold[n] == k].sum(axis=0) for n in cells) for k in range(4)])
    assert np.abs(counts / counts.sum(axis=0) - 0.25).max() < 0.05
    blocks = make_blocks(cells, side)
    for name, number in blocks.number.items():
        assert all(len(np.unique(fold[name][number == block])) == 1 for block in np.unique(number[number >= 0]))


def test_kmeans_folds_are_those_of_scikit_learn_on_the_coordinates():
    from sklearn.cluster import KMeans

    cell = (np.random.default_rng(0).random((40, 40, 2)) < 0.02).astype(int)
    settings = SplitSettings(CELL, TILE, 10.0, method="kmeans", fold=0, seed=3)
    ours = cell_folds({"a": cell}, 6, settings)["a"]
    row, column = np.nonzero(cell.any(axis=2))
    metres = np.stack([715_000 + 40.0 * column, 9_558_000 - 40.0 * row], axis=1)
    theirs = KMeans(n_clusters=5, n_init=10, random_state=3).fit_predict(metres - metres.mean(axis=0))
    assert ours[row, column].tolist() == theirs.tolist()


def test_one_area_left_out_is_the_test_and_nothing_else_is():
    cells = two()
    splits = make(cells, method="area", test_area="b")
    assert set(np.unique(splits.codes["b"])) <= {3, BUFFER} and (splits.codes["a"] != 3).all()
    assert splits.counts["test"] == cells["b"].sum(axis=(0, 1)).tolist()
    assert all(sum(splits.counts[name]) for name in ("train", "val", "calibration"))


def test_the_mask_is_that_of_each_pixels_cell_and_false_outside(splits):
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for _ in range(20):
            row, col = rng.integers(-20, 120), rng.integers(-20, 100)
            mask = splits.mask("b", (row, col, 17, 23), split)
            for i, j in rng.integers(0, 17, (10, 2)):
                r, c = (row + i) // CELL, (col + j) // CELL
                inside = 0 <= r < 28 and 0 <= c < 24
                assert mask[i, j] == (inside and splits.codes["b"][r, c] == SPLITS.index(split))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_window_with_a_pixel_of_its_split_passes_and_any_other_is_refused(seed):
    splits = make(two(seed), seed=seed)
    rng = np.random.default_rng(seed)
    seen = set()
    for split in SPLITS:
        own = pixels_of(splits, "a", split)
        foreign = sum(pixels_of(splits, "a", other) for other in SPLITS if other != split) > 0
        for row, col in rng.integers(-TILE + 1, 120, (40, 2)):
            window = (slice(max(row, 0), max(row + TILE, 0)), slice(max(col, 0), max(col + TILE, 0)))
            leaks = bool(foreign[window].any())
            assert not (leaks and own[window].any())
            seen.add(leaks)
            if leaks:
                with pytest.raises(SplitLeakError, match=rf"{split} tile of 14 .* row {row}, column {col} of area 'a'"):
                    splits.check_tiles(table(row, col, split))
            else:
                splits.check_tiles(table(row, col, split))
    assert seen == {True, False}


def test_half_overlapped_tiles_of_a_larger_side_leak_and_the_error_says_into_what(splits):
    row, col = np.argwhere(pixels_of(splits, "a", "train"))[0]
    grid = np.arange(-100, 120, 50)
    rows, cols = (part.ravel() for part in np.meshgrid(grid, grid))
    with pytest.raises(
        SplitLeakError, match=r"reaches into .*(val|calibration|test).*and so do \d+ more; .*tile_px=100"
    ):
        splits.check_tiles(table(np.append(rows, row - 50), np.append(cols, col - 50), tile_px=100))


def test_the_random_split_is_leaky_says_so_loudly_and_only_it_does(splits, caplog):
    with caplog.at_level(logging.WARNING):
        leaky = make(two(), method="random")
    assert leaky.leaky and "LEAKY" in caplog.text and leaky.lost == 0
    codes = leaky.codes["b"]
    assert ((codes[1:] == 0) & (codes[:-1] != 0) & (codes[:-1] != BUFFER)).any()  # neighbours of other splits
    everywhere = np.arange(0, 100, 7)
    leaky.check_tiles(table(everywhere, everywhere))
    caplog.clear()
    assert not SpatialSplits.from_plain(splits.to_plain()).leaky and "LEAKY" not in caplog.text
    assert SpatialSplits.from_plain(leaky.to_plain()).leaky and "LEAKY" in caplog.text


def test_the_random_split_meets_its_shares_in_tiles():
    splits = make({"a": np.ones((80, 80, 2), int)}, method="random", tile_px=16)
    assert [sum(count) / 12800 for count in splits.counts.values()] == pytest.approx([0.5, 0.15, 0.15, 0.2], abs=0.005)


@pytest.mark.parametrize("method", ["blocks", "random"])
def test_a_safe_checkpoint_brings_the_splits_back(method):
    splits = make(two(), method=method)
    file = io.BytesIO()
    torch.save(splits.to_plain(), file)
    file.seek(0)
    again = SpatialSplits.from_plain(torch.load(file, weights_only=True))
    assert all(np.array_equal(again.codes[name], splits.codes[name]) for name in "ab")
    assert (again.counts, again.settings, again.leaky) == (splits.counts, splits.settings, splits.leaky)
    window = (-5, 3, 40, 50)
    assert np.array_equal(again.mask("a", window, "train"), splits.mask("a", window, "train"))
    assert again.to_plain() == splits.to_plain()


def test_the_plain_form_is_small():
    splits = make({"a": area(0, 250, 250)}, method="random")
    assert len(str(splits.to_plain())) < 250 * 250 / 4


def test_the_log_says_each_share_and_what_the_buffer_took(caplog):
    with caplog.at_level(logging.INFO):
        splits = make(two())
    assert f"the buffer took {splits.lost:.1%} of the labelled pixels" in caplog.text
    total = np.sum(list(splits.counts.values()), axis=0)
    assert all(f"{name}: {sum(splits.counts[name])} labelled" in caplog.text for name in SPLITS)
    assert f"{splits.counts['val'][1] / total[1]:.1%}" in caplog.text


def test_an_evaluation_split_without_a_class_is_a_warning(caplog):
    cell = area(0)
    cell[..., 1] = 0
    cell[4, 4] = [0, 5, 0]  # one cell of the class, which train gets
    with caplog.at_level(logging.WARNING):
        splits = make({"a": cell}, block_cells=6, shares={"val": 0.2, "calibration": 0, "test": 0.2})
    assert splits.counts["train"][1] == 5 and "test has no labelled pixel of the classes [2]" in caplog.text
    assert "calibration" not in caplog.text


def test_a_split_with_share_0_does_not_exist():
    splits = make(two(), shares={"val": 0.2, "test": 0.2})
    assert sum(splits.counts["calibration"]) == 0 and sum(splits.counts["val"]) > 0


def test_two_classes_work_as_well():
    splits = make({"a": area(0, classes=2)}, block_cells=8)
    assert splits.classes == 2 and all(sum(count) for count in splits.counts.values())


def one_class():
    cells = two()
    for cell in cells.values():
        cell[..., 1] = 0
    return cells


ONE_CELL = np.eye(30, 30, dtype=int)[..., None] * (np.arange(30) < 2)[:, None, None] * np.ones(2, int)


@pytest.mark.parametrize(
    ("cells", "options", "words"),
    [
        (one_class(), {}, r"train has no labelled pixel of the classes \[2\]"),
        ({"a": np.zeros((9, 9, 3), int)}, {}, r"no pixel of \['a'\] has a label"),
        (
            {"a": ONE_CELL},
            {"block_cells": 1},
            "2 labelled blocks of 4 pixels are too few for train, val, calibration, test",
        ),
        ({"a": ONE_CELL}, {"block_cells": 1, "fold": 0}, "2 labelled blocks of 4 pixels are too few for 5 `folds`"),
        ({"a": ONE_CELL}, {"method": "kmeans", "fold": 0}, "2 labelled cells are too few for 5"),
        ({"a": np.ones((6, 6, 2), int)}, {"block_cells": 1}, "has no labelled pixel left outside the buffer"),
        (two(), {"buffer_px": TILE - 1}, "`buffer_px` is 13, less than a tile of 14"),
        (two(), {"method": "stripes"}, "`method` must be one of .*'stripes'"),
        (two(), {"method": "kmeans"}, "needs `fold`"),
        (two(), {"method": "kmeans", "fold": 0}, r"for one area, got \['a', 'b'\]"),
        (two(), {"method": "area"}, r"`test_area` one of \['a', 'b'\], got None"),
        (two(), {"method": "area", "test_area": "c"}, "got 'c'"),
        ({"a": area(0)}, {"method": "area", "test_area": "a"}, "two areas or more"),
        (two(), {"test_area": "a"}, "`test_area` is for the method 'area'"),
        (two(), {"fold": 5}, "`fold` must be 0 to 4"),
        (two(), {"fold": 0, "method": "random"}, "`fold` is for the methods"),
        (two(), {"shares": {"val": 0.5, "test": 0.5}}, "`shares` must be"),
        (two(), {"shares": {"train": 0.5}}, "`shares` must be"),
        (two(), {"cell_px": 0}, "`cell_px` must be above 0"),
    ],
)
def test_what_cannot_be_divided_is_refused(cells, options, words):
    with pytest.raises(StagewiseError, match=words):
        make(cells, **options)


def test_an_unknown_area_or_split_is_named(splits):
    with pytest.raises(StagewiseError, match=r"\['a', 'b'\], not 'c'"):
        splits.mask("c", (0, 0, 1, 1), "train")
    with pytest.raises(StagewiseError, match="got 'tset'"):
        splits.mask("a", (0, 0, 1, 1), "tset")
