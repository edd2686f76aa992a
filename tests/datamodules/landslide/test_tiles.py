import csv
import itertools

import numpy as np
import pytest

from stagewise.datamodules.errors import SplitLeakError, StagewiseError
from stagewise.datamodules.landslide import tiles as tiles_module
from stagewise.datamodules.landslide.channels import ChannelList
from stagewise.datamodules.landslide.prepared import CHANNELS_FILE, LABELS_FILE, PreparedArea
from stagewise.datamodules.landslide.spatial_splits import SPLITS, SpatialSplits
from stagewise.datamodules.landslide.tiles import eval_tiles, label_counts, train_tiles

rasterio = pytest.importorskip("rasterio")

CELL, TILE, STRIDE = 5, 16, 7
SIZES = {"north": (150, 131), "south": (97, 142)}


def write_area(folder, name, labels, channels=("slope",)):
    """An area on disk with these labels (0 is none) and one channel of noise."""
    (folder / name).mkdir(parents=True)
    rows, columns = labels.shape
    grid = {"driver": "GTiff", "height": rows, "width": columns, "crs": "EPSG:32717", "tiled": True}
    grid |= {"transform": rasterio.Affine(10, 0, 7e5, 0, -10, 9.5e6), "blockxsize": 64, "blockysize": 64}
    noise = np.random.default_rng(0).normal(size=(len(channels), rows, columns)).astype(np.float32)
    with rasterio.open(folder / name / CHANNELS_FILE, "w", dtype="float32", count=len(channels), **grid) as file:
        file.write(noise)
    with rasterio.open(folder / name / LABELS_FILE, "w", dtype="uint8", count=1, **grid) as file:
        file.write(labels.astype(np.uint8), 1)
    return PreparedArea(name, folder / name, ChannelList(channels))


@pytest.fixture(scope="session")
def labels():
    rng, made = np.random.default_rng(1), {}
    for name, (rows, columns) in SIZES.items():
        patches = np.kron(rng.integers(0, 4, (rows // 9 + 1, columns // 9 + 1)), np.ones((9, 9), int))
        made[name] = patches[:rows, :columns] * (rng.random((rows, columns)) < 0.4)
    return made


@pytest.fixture(scope="session")
def areas(labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("areas")
    return {name: write_area(folder, name, values) for name, values in labels.items()}


@pytest.fixture(scope="session")
def splits(areas):
    counts = {name: label_counts(area, CELL, 3) for name, area in areas.items()}
    return SpatialSplits.make(counts, CELL, TILE, 10.0, block_cells=8)


def whole(splits, labels, split):
    """Area -> its labels where they are the split's, else 0."""
    return {name: np.where(splits.mask(name, (0, 0, *v.shape), split), v, 0) for name, v in labels.items()}


def inside(values, row, col, side=TILE):
    return values[max(row, 0) : row + side, max(col, 0) : col + side]


@pytest.mark.parametrize("cell_px", [1, 5, 64, 400])
@pytest.mark.parametrize("chunk_px", [30, 1024])
def test_label_counts_are_those_of_each_cell(areas, labels, cell_px, chunk_px, monkeypatch):
    monkeypatch.setattr(tiles_module, "CHUNK_PX", chunk_px)
    for name, values in labels.items():
        counts = label_counts(areas[name], cell_px, 3)
        rows, columns = values.shape
        assert counts.shape == (-(-rows // cell_px), -(-columns // cell_px), 3)
        for r, c in itertools.product(range(0, counts.shape[0], 3), range(0, counts.shape[1], 3)):
            cell = inside(values, r * cell_px, c * cell_px, cell_px)
            assert counts[r, c].tolist() == [(cell == k).sum() for k in (1, 2, 3)]
        assert counts.sum() == (values > 0).sum()


def test_label_counts_read_a_piece_at_a_time(areas, monkeypatch):
    sizes = []
    read = PreparedArea.read_labels
    monkeypatch.setattr(PreparedArea, "read_labels", lambda self, w: (sizes.append(w[2] * w[3]), read(self, w))[1])
    monkeypatch.setattr(tiles_module, "CHUNK_PX", 40)
    label_counts(areas["north"], CELL, 3)
    assert max(sizes) <= 40 * 40


def test_an_area_without_labels_counts_nothing(areas, tmp_path, labels):
    area = write_area(tmp_path, "bare", labels["north"])
    (area.folder / LABELS_FILE).unlink()
    assert not label_counts(area, CELL, 3).any()


def test_train_tiles_are_the_windows_on_the_grid_with_train_pixels_and_count_only_those(areas, labels, splits):
    table = train_tiles(areas, splits, TILE, STRIDE)
    own = whole(splits, labels, "train")
    expected = {}
    for name, values in own.items():
        rows, columns = values.shape
        for row, col in itertools.product(range(0, rows, STRIDE), range(0, columns, STRIDE)):
            count = [int((inside(values, row, col) == k).sum()) for k in (1, 2, 3)]
            needed = row < rows - TILE + STRIDE and col < columns - TILE + STRIDE  # else it adds no pixel
            if sum(count) and needed:
                expected[name, row, col] = count
    found = {(str(a), int(r), int(c)): n for a, r, c, n in zip(table.area, table.row, table.col, table.counts.tolist())}
    assert found == expected and len(table) == len(expected) > 20


def test_train_tiles_cover_every_train_pixel(areas, labels, splits):
    table = train_tiles(areas, splits, TILE, STRIDE)
    left = whole(splits, labels, "train")
    for name, row, col in zip(table.area, table.row, table.col):
        inside(left[str(name)], row, col)[:] = 0
    assert not any(values.any() for values in left.values())


@pytest.mark.parametrize("least", [20, 60])
def test_train_tiles_hold_at_least_so_many_labels(areas, splits, least):
    every, some = (train_tiles(areas, splits, TILE, STRIDE, n) for n in (1, least))
    keep = every.counts.sum(axis=1) >= least
    assert some.id.tolist() == every.id[keep].tolist() and 0 < len(some) < len(every)


@pytest.mark.parametrize("split", SPLITS)
def test_eval_tiles_hold_each_labelled_pixel_exactly_once(areas, labels, splits, split):
    table = eval_tiles(areas, splits, split, TILE)
    seen = {name: np.zeros_like(values) for name, values in labels.items()}
    for name, row, col in zip(table.area, table.row, table.col):
        inside(seen[str(name)], row, col)[:] += 1
    own = whole(splits, labels, split)
    assert all((seen[name][values > 0] == 1).all() and seen[name].max() <= 1 for name, values in own.items())
    assert table.counts.sum(axis=0).tolist() == splits.counts[split]


@pytest.mark.parametrize("seed", range(3))
def test_no_evaluation_window_touches_a_train_pixel_nor_a_train_window_an_evaluated_one(areas, labels, seed):
    counts = {name: label_counts(area, CELL, 3) for name, area in areas.items()}
    splits = SpatialSplits.make(counts, CELL, TILE, 10.0, block_cells=8, seed=seed)
    tables = {split: eval_tiles(areas, splits, split, TILE) for split in SPLITS[1:]}
    tables["train"] = train_tiles(areas, splits, TILE, STRIDE)
    for split, other in itertools.permutations(SPLITS, 2):
        own = whole(splits, labels, other)
        windows = zip(tables[split].area, tables[split].row, tables[split].col)
        assert not any(inside(own[str(name)], row, col).any() for name, row, col in windows)


def test_a_tile_larger_than_the_buffer_is_a_leak(areas, splits):
    with pytest.raises(
        SplitLeakError, match=r"the train tile of 64 pixels at row \d+, column \d+ of area '(north|south)'"
    ):
        train_tiles(areas, splits, 64, 32)
    with pytest.raises(SplitLeakError, match=r"reaches into"):
        eval_tiles(areas, splits, "test", 64)


def test_ids_are_unique_and_rows_real(areas, splits):
    table = train_tiles(areas, splits, TILE, STRIDE)
    assert len(set(table.id)) == len(table) and set(table.source) == {"real"} and not (table.parents != "").any()
    assert table.window(3) == (table.row[3], table.col[3], TILE, TILE)
    assert all(type(number) is int for number in table.window(3))


def test_synthetic_tiles_come_behind_and_keep_their_parents(areas, splits):
    table = train_tiles(areas, splits, TILE, STRIDE)
    pairs = [(str(table.id[4]), str(table.id[7])), (str(table.id[2]), str(table.id[4]))]
    both = table.with_synthetic(["s-0", "s-1"], pairs, np.array([[1, 2, 3], [4, 5, 6]]))
    assert both.id[: len(table)].tolist() == table.id.tolist() and both.id[-2:].tolist() == ["s-0", "s-1"]
    assert both.counts[-2:].tolist() == [[1, 2, 3], [4, 5, 6]] and both.source[-2:].tolist() == ["synthetic"] * 2
    assert [tuple(pair) for pair in both.parents[-2:].tolist()] == pairs
    splits.check_tiles(both)
    assert len(table.with_synthetic([], [], np.empty((0, 3), int))) == len(table)


def test_synthetic_tiles_are_refused_outside_train_of_strangers_and_under_a_name_that_is_taken(areas, splits):
    train, test = train_tiles(areas, splits, TILE, STRIDE), eval_tiles(areas, splits, "test", TILE)
    one = np.ones((1, 3), int)
    with pytest.raises(StagewiseError, match="for train only, not for test"):
        test.with_synthetic(["s"], [(str(test.id[0]), str(test.id[1]))], one)
    stranger = next(name for name in test.id.tolist() if name not in train.id)
    with pytest.raises(StagewiseError, match=f"{stranger}.*no train tiles"):
        train.with_synthetic(["s"], [(str(train.id[0]), stranger)], one)
    with pytest.raises(StagewiseError, match=rf"'{train.id[0]}' is there 2 times"):
        train.with_synthetic([str(train.id[0])], [(str(train.id[0]), str(train.id[1]))], one)


def test_the_csv_has_a_row_a_tile_and_nothing_half_written(areas, splits, tmp_path, monkeypatch):
    table = train_tiles(areas, splits, TILE, STRIDE)
    path = tmp_path / "tiles.csv"
    table.write_csv(path)
    rows = list(csv.DictReader(path.open()))
    assert [row["id"] for row in rows] == table.id.tolist() and {row["split"] for row in rows} == {"train"}
    counts = [[int(row[f"class_{k}"]) for k in (1, 2, 3)] for row in rows]
    assert counts == table.counts.tolist() and int(rows[5]["row"]) == table.row[5]
    before = path.read_text()
    monkeypatch.setattr(tiles_module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        eval_tiles(areas, splits, "test", TILE).write_csv(path)
    assert path.read_text() == before


def test_a_label_that_is_no_class_is_named_with_its_area(areas, splits, tmp_path, labels):
    wrong = labels["north"].copy()
    wrong[wrong.shape[0] // 2] = 7
    area = write_area(tmp_path, "north", wrong)
    with pytest.raises(StagewiseError, match=r"area 'north' holds the value 7, but its classes are 1 to 3"):
        label_counts(area, CELL, 3)


def test_a_stride_with_gaps_and_a_table_without_rows_are_refused(areas, splits):
    with pytest.raises(StagewiseError, match=r"`stride_px` must be 1 to `tile_px`=16.*got 17"):
        train_tiles(areas, splits, TILE, 17)
    with pytest.raises(StagewiseError, match=r"no window of 16 pixels.*holds 999 labelled pixels of train"):
        train_tiles(areas, splits, TILE, STRIDE, min_labelled=999)
