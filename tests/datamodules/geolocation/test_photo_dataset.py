import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stagewise.datamodules.geolocation.photo_dataset import FeatureDataset, PhotoDataset, collate_batch
from stagewise.datamodules.geolocation.photo_table import read_photo_table
from stagewise.datamodules.images import centre_box, crop, read_image

VIEWS, DIM = 4, 5


@pytest.fixture
def photos(country):
    table, _, _ = read_photo_table(country.write() / "train.csv", None)
    cell = np.random.default_rng(0).integers(0, 9, len(table))

    def make(**options):
        return PhotoDataset(table, cell, **({"image_px": 16, "seed": 5} | options))

    return make


@pytest.fixture
def features(photos):
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.normal(size=(VIEWS, 60, DIM)).astype(np.float16) for name in ("clip_features", "scene_features")
    }
    return FeatureDataset(photos(), arrays)


def test_a_plain_row_is_the_centre_crop_with_its_labels(photos, country):
    dataset = photos()
    assert len(dataset) == 60
    for row in (0, 17, 59):
        sample, source = dataset[row], country.rows["train"][row]
        image = read_image(country.picture("train", row))
        assert torch.equal(sample["image"], crop(image, centre_box(24, 32), 16))
        assert sample["lat_lon_deg"].tolist() == pytest.approx([source["latitude"], source["longitude"]], abs=1e-5)
        assert (sample["label"], sample["cell"]) == (source["province_id"], dataset.cell[row])
        assert sample["sample_id"] == row and "draw" not in sample


def test_a_drawn_row_is_random_but_a_function_of_row_and_draw(photos):
    dataset, again = photos(), photos()
    views = [dataset[3, draw]["image"] for draw in range(12)]
    torch.manual_seed(99), np.random.seed(99)
    assert all(torch.equal(view, again[3, draw]["image"]) for draw, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) > 8
    assert not torch.equal(photos(seed=6)[3, 0]["image"], views[0])
    sample = dataset[3, 7]
    assert sample["draw"] == 7 and sample["image"].shape == (3, 16, 16)
    plain = dataset[3]
    assert all(torch.as_tensor(sample[k]).equal(torch.as_tensor(plain[k])) for k in ("lat_lon_deg", "label", "cell"))


def test_the_whole_square_is_the_only_crop_of_full_area(photos):
    dataset = photos(area=(1.0, 1.0), ratio=(1.0, 1.0))
    image = read_image(dataset.table.image_path(0))
    possible = {crop(image, (0, left, 24, 24), 16).numpy().tobytes() for left in range(9)}
    assert {dataset[0, draw]["image"].numpy().tobytes() for draw in range(60)} <= possible


def test_batches_hold_no_float64_and_the_documented_types(photos, features):
    keys = [(row, 100 + row) for row in range(8)]
    pictures = next(iter(DataLoader(photos(), sampler=keys, batch_size=8, collate_fn=collate_batch)))
    cached = next(iter(DataLoader(features, sampler=keys, batch_size=8, collate_fn=collate_batch)))
    assert pictures["image"].dtype == torch.uint8 and pictures["image"].shape == (8, 3, 16, 16)
    assert pictures["draw"].tolist() == [100 + row for row in range(8)] and pictures["draw"].dtype == torch.int64
    for batch in (pictures, cached):
        assert batch["lat_lon_deg"].dtype == torch.float32 and batch["lat_lon_deg"].shape == (8, 2)
        assert {batch[k].dtype for k in ("label", "cell", "sample_id")} == {torch.int64}
        assert all(value.dtype != torch.float64 for value in batch.values())
    assert {cached[k].dtype for k in features.features} == {torch.float32}
    assert all(torch.equal(pictures[k], cached[k]) for k in ("lat_lon_deg", "label", "cell", "sample_id"))


def test_a_batch_of_features_equals_gathering_row_by_row(features):
    rng = np.random.default_rng(2)
    keys = [(int(rng.integers(60)), int(rng.integers(10**9))) for _ in range(50)]
    together = features.__getitems__(keys)
    for i, key in enumerate(keys):
        alone = features.__getitems__([key])
        assert all(torch.equal(together[name][i], alone[name][0]) for name in together)
        for name, array in features.features.items():
            stored = torch.from_numpy(array[:, key[0]].astype(np.float32))
            assert (together[name][i] == stored).all(1).any()  # one of this row's own views
    same_view = [
        [int((array[:, row].astype(np.float32) == together[name][i].numpy()).all(1).argmax())
         for name, array in features.features.items()]
        for i, (row, _) in enumerate(keys)
    ]  # fmt: skip
    assert all(clip == scene for clip, scene in same_view)


def test_plain_rows_take_the_first_view(features):
    batch = features.__getitems__([4, 9])
    assert torch.equal(batch["clip_features"], torch.from_numpy(features.features["clip_features"][0, [4, 9]]).float())


@pytest.mark.parametrize("stride", [1, 8, 64, 1000])
@pytest.mark.parametrize("views", [2, 3, 4, 7])
def test_views_are_used_evenly_whatever_the_stride_of_the_draws(photos, stride, views):
    array = np.tile(np.arange(views, dtype=np.float16)[:, None, None], (1, 60, 1))
    dataset = FeatureDataset(photos(), {"clip_features": array})
    used = dataset.__getitems__([(0, 17 + stride * i) for i in range(4000)])["clip_features"].flatten().long()
    share = torch.bincount(used, minlength=views) / 4000
    assert (share - 1 / views).abs().max() < 0.1 / views


@pytest.mark.parametrize("key", [np.int64(5), 5])
def test_numpy_rows_work_like_plain_ones(photos, features, key):
    assert torch.equal(photos()[key]["image"], photos()[5]["image"])
    assert features.__getitems__([key])["sample_id"].tolist() == [5]
