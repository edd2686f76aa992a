"""Samples from areas on disk: which pixels have a class, what a draw decides, and where synthetic tiles may be."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide.augmentation import TileAugmentation
from stagewise.datamodules.landslide.channels import ChannelList
from stagewise.datamodules.landslide.prepared import PreparedArea
from stagewise.datamodules.landslide.spatial_splits import SpatialSplits
from stagewise.datamodules.landslide.tile_dataset import TileDataset
from stagewise.datamodules.landslide.tile_smote import TileSmote
from stagewise.datamodules.landslide.tiles import eval_tiles, label_counts, train_tiles
from stagewise.datamodules.loaders import ResumableDataLoader

rasterio = pytest.importorskip("rasterio")
CHANNELS = ChannelList(["slope", "aspect_sin", "aspect_cos", "red", "green", "blue"])
TILE, SHAPE = 16, (150, 130)


def write(path, bands, **profile):
    place = {"crs": "EPSG:32717", "transform": rasterio.transform.from_origin(6e5, 9.6e6, 10, 10)}
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **profile) as raster:
        raster.write(bands)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One area with holes in channels and labels; its arrays, splits and train tiles."""
    folder, rng = tmp_path_factory.mktemp("areas") / "hills", np.random.default_rng(0)
    folder.mkdir()
    channels = rng.normal(size=(len(CHANNELS), *SHAPE)).astype(np.float32)
    channels[0, ::7, ::5] = np.nan
    labels = rng.choice([0, 1, 2, 3], SHAPE, p=[0.3, 0.3, 0.2, 0.2]).astype(np.uint8)
    write(folder / "channels.tif", channels, nodata=np.nan)
    write(folder / "labels.tif", labels[None], nodata=0)
    # blocks that do not begin where tiles do: a tile holds pixels of the split and others
    areas = {"hills": PreparedArea("hills", folder, CHANNELS)}
    splits = SpatialSplits.make({"hills": label_counts(areas["hills"], 4, 3)}, 4, TILE, 10.0, block_cells=6)
    return areas, splits, train_tiles(areas, splits, TILE, TILE // 2), channels, labels


def batches(loader):
    return [{name: value.clone() for name, value in batch.items()} for batch in loader]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_pixel_has_a_class_where_it_is_labelled_in_the_split_with_data(world, split):
    areas, splits, _, channels, labels = world
    tiles = eval_tiles(areas, splits, split, TILE)
    dataset = TileDataset(areas, tiles, splits)
    own = splits.mask("hills", (0, 0, *SHAPE), split) & ~np.isnan(channels).any(0)
    expected = np.pad(np.where(own, labels.astype(int) - 1, -1), ((0, TILE), (0, TILE)), constant_values=-1)
    padded = np.pad(channels, ((0, 0), (0, TILE), (0, TILE)), constant_values=np.nan)
    seen = 0
    for i in range(len(dataset)):
        sample, (row, col, *_) = dataset[i], tiles.window(i)
        here = slice(row, row + TILE), slice(col, col + TILE)
        np.testing.assert_array_equal(sample["mask"], expected[here])
        np.testing.assert_array_equal(sample["image"], padded[:, *here])
        seen += int((sample["mask"] >= 0).sum())
    assert seen == (expected >= 0).sum() > 0


def test_a_batch_is_what_the_vocabulary_says(world):
    areas, splits, tiles, *_ = world
    plain = next(iter(DataLoader(TileDataset(areas, tiles, splits), batch_size=3)))
    assert plain["image"].shape == (3, len(CHANNELS), TILE, TILE) and plain["image"].dtype == torch.float32
    assert plain["mask"].shape == (3, TILE, TILE) and plain["mask"].dtype == torch.int64
    assert plain["sample_id"].tolist() == [0, 1, 2] and "draw" not in plain
    augmented = TileDataset(areas, tiles, splits, TileAugmentation(CHANNELS))
    drawn = next(iter(DataLoader(augmented, batch_size=3)))
    assert drawn["draw"].dtype == torch.int64 and len(set(drawn["draw"].tolist())) == 3
    assert drawn["image"].dtype == torch.float32 and drawn["mask"].dtype == torch.int64


def test_augmentation_moves_pixels_and_classes_together(world):
    areas, splits, tiles, *_ = world
    plain, augmented = (TileDataset(areas, tiles, splits, a) for a in (None, TileAugmentation(CHANNELS)))
    torch.manual_seed(0)
    changed = 0
    for i in range(8):
        before, after = plain[i], augmented[i]
        for name in (before, after):  # slope moves and does not change, so it pairs with the class whatever the turn
            name["pairs"] = sorted(
                zip(name["image"][0].nan_to_num(-9).flatten().tolist(), name["mask"].flatten().tolist())
            )
        assert before["pairs"] == after["pairs"]
        changed += not torch.equal(before["mask"], after["mask"])
    assert changed >= 4


def test_a_loader_replays_the_draws_with_any_number_of_workers(world):
    areas, splits, tiles, *_ = world
    dataset = Subset(TileDataset(areas, tiles, splits, TileAugmentation(CHANNELS)), range(24))

    def loader(workers, seed=1):
        return ResumableDataLoader(dataset, batch_size=8, shuffle=True, seed=seed, num_workers=workers)

    first, again, other = batches(loader(0)), batches(loader(2)), batches(loader(0, seed=2))
    for a, b in zip(first, again, strict=True):
        for name in a:
            assert torch.equal(a[name].nan_to_num(-9), b[name].nan_to_num(-9)), name
    assert first[0]["draw"].tolist() != other[0]["draw"].tolist()


def test_synthetic_tiles_stand_behind_the_real_ones_in_train(world, tmp_path):
    areas, splits, tiles, *_ = world
    real = TileDataset(areas, tiles, splits)
    source = real.source([0.0] * 6, [1.0] * 6, key="test")
    share = tiles.counts[:, 1].sum() / tiles.counts.sum() + 0.02
    synthetic = TileSmote(rare_class=1, target_share=float(share), rich_share=0.32).make(source, tmp_path)
    dataset = TileDataset(areas, tiles, splits, synthetic=synthetic)
    assert len(dataset) == len(tiles) + len(synthetic) > len(tiles)
    np.testing.assert_array_equal(dataset[0]["mask"], real[0]["mask"])
    last = dataset[len(dataset) - 1]
    np.testing.assert_array_equal(last["image"], synthetic[len(synthetic) - 1][0])
    np.testing.assert_array_equal(last["mask"], synthetic[len(synthetic) - 1][1])
    assert dataset.tiles.counts[-1].tolist() == np.bincount(last["mask"][last["mask"] >= 0], minlength=3).tolist()
    assert dataset.tiles.id[-1] == synthetic.ids[-1]
    assert len(dataset.source([0.0] * 6, [1.0] * 6, "test").names) == len(tiles)  # never parents themselves


def test_synthetic_tiles_are_refused_outside_train_and_with_foreign_parents(world, tmp_path):
    areas, splits, tiles, *_ = world
    source = TileDataset(areas, tiles, splits).source([0.0] * 6, [1.0] * 6, key="test")
    share = tiles.counts[:, 1].sum() / tiles.counts.sum() + 0.02
    smote = TileSmote(rare_class=1, target_share=float(share), rich_share=0.32)
    val = eval_tiles(areas, splits, "val", TILE)
    with pytest.raises(StagewiseError, match="not for val"):
        TileDataset(areas, val, splits, synthetic=smote.make(source, tmp_path))
    with pytest.raises(StagewiseError, match="train tiles only, not of val"):
        TileDataset(areas, val, splits).source([0.0] * 6, [1.0] * 6, key="test")
    foreign = source._replace(names=[f"test_{name}" for name in source.names])
    with pytest.raises(StagewiseError, match=r"'test_hills_r.* no train tiles"):
        TileDataset(areas, tiles, splits, synthetic=smote.make(foreign, tmp_path))
