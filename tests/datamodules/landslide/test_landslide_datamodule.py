"""From generated GeoTIFFs to batches, splits and a schema."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import torch

from stagewise.datamodules import GeneratedLandslideDataModule, LandslideDataModule
from stagewise.datamodules.landslide.generated import write_generated_landslides

SPLITS = {"shares": {"val": 0.15, "calibration": 0.15, "test": 0.2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("landslide")
    write_generated_landslides(root / "data", size_px=128, seed=0)
    return root


def made(folder, **options) -> LandslideDataModule:
    own = {
        "tiles": {"px": 16, "stride": 8},
        "channels": {"names": ["elevation", "slope", "aspect_sin", "aspect_cos", "red", "green", "blue"]},
        "splits": SPLITS,
        "rare": {"class": "medium", "sampler": {"target_share": 0.08}, "smote": None},
        "loader": {"batch_size": 4},
        "cache_dir": str(folder / "cache"),
    }
    return LandslideDataModule(str(folder / "data"), **{**own, **options})


@pytest.fixture(scope="module")
def ready(folder):
    datamodule = made(folder)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def test_batches_have_the_vocabulary_and_labels_of_their_split_alone(ready):
    batch = next(iter(ready.train_dataloader()))
    assert batch["image"].shape == (4, 7, 16, 16) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (4, 16, 16) and set(batch["mask"].unique().tolist()) <= {-1, 0, 1, 2}
    counted = sum(torch.bincount(b["mask"][b["mask"] >= 0], minlength=3) for b in ready.val_dataloader())
    valid = [np.isfinite(a.read_channels((0, 0, a.height, a.width))).all(0) for a in ready.areas.values()]
    wanted = np.zeros(3, int)
    for data, (name, area) in zip(valid, ready.areas.items(), strict=True):
        window = (0, 0, area.height, area.width)
        labels = area.read_labels(window)[ready.splits.mask(name, window, "val") & data]
        wanted += np.bincount(labels[labels >= 0], minlength=3)
    assert counted.tolist() == wanted.tolist() and wanted.sum() > 0


def test_the_schema_is_plain_and_another_module_can_adopt_it(ready, folder, tmp_path):
    torch.save(ready.schema, tmp_path / "schema.pt")
    schema = torch.load(tmp_path / "schema.pt", weights_only=True)
    assert json.loads(json.dumps(schema)) == json.loads(json.dumps(ready.schema))
    assert schema["class_count"] == ready.splits.counts["train"] and schema["pixel_size_m"] == 10.0
    other = made(folder, splits={**SPLITS, "seed": 5})
    other.adopt(schema)
    other.setup("test")
    assert all(np.array_equal(other.splits.codes[name], ready.splits.codes[name]) for name in ready.areas)


def test_the_splits_do_not_depend_on_the_runs_seed(folder, ready):
    other = made(folder, seed=123)
    other.setup("fit")
    assert all(np.array_equal(other.splits.codes[name], ready.splits.codes[name]) for name in ready.areas)
    first, second = (next(iter(d.train_dataloader()))["draw"].tolist() for d in (ready, other))
    assert first != second


def test_a_fold_and_an_area_can_be_the_test(folder):
    for options in ({"fold": 1}, {"splits": {**SPLITS, "method": "area", "test_area": "birch"}}):
        datamodule = made(folder, **options)
        datamodule.setup("fit")
        assert datamodule.splits.counts["test"] != [0, 0, 0]
    assert datamodule.splits.has("birch", "test") and not datamodule.splits.has("birch", "train")
    assert datamodule.splits.has("alder", "train") and not datamodule.splits.has("alder", "test")


def test_runs_that_start_at_once_share_a_cache(folder, ready, tmp_path):
    cache = str(tmp_path / "cache")
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(made(folder, cache_dir=cache).prepare_data) for _ in range(3)]
        for run in runs:
            run.result()
    datamodule = made(folder, cache_dir=cache)
    datamodule.setup("fit")
    for name, area in datamodule.areas.items():
        window, theirs = (0, 0, area.height, area.width), ready.areas[name]
        np.testing.assert_array_equal(area.read_channels(window), theirs.read_channels(window))
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_the_list_of_tiles_is_named_after_what_it_depends_on(folder, tmp_path):
    cache, names = str(tmp_path / "cache"), set()
    for seed in (0, 1):
        datamodule = made(folder, cache_dir=cache, splits={**SPLITS, "seed": seed})
        datamodule.prepare_data()
        datamodule.setup("fit")
        datamodule.train_dataset()
        names = {path.name for path in (tmp_path / "cache").rglob("train_tiles-*.csv")}
    assert len(names) == 2


def test_synthetic_tiles_stand_behind_the_real_ones(folder):
    smote = {"k": 2, "rich_share": 0.05, "target_share": 0.12}
    datamodule = made(folder, rare={"class": "medium", "smote": smote})
    datamodule.setup("fit")
    tiles = datamodule.train_dataset().tiles
    made_up = tiles.source == "synthetic"
    assert made_up.any() and not made_up[: np.argmax(made_up)].any()
    share = tiles.counts[:, 1].sum() / tiles.counts.sum()
    before = tiles.counts[~made_up]
    assert before[:, 1].sum() / before.sum() < share


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rare": {"class": "midium"}}, r"`rare\.class` is 'midium'"),
        ({"tiles": {"side": 4}}, r"`tiles` has unknown key\(s\) \['side'\]"),
        ({"channels": {"names": ["slope", "slope"]}}, "different names"),
    ],
)
def test_bad_options_are_refused(folder, options, words):
    with pytest.raises(ValueError, match=words):
        made(folder, **options)


def test_a_root_without_rasters_names_the_files(tmp_path):
    with pytest.raises(ValueError, match=r"no folder root='.*nowhere'; pass datamodule\.root"):
        made(tmp_path).__class__(str(tmp_path / "nowhere")).prepare_data()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds one of .*dtm\.tif"):
        LandslideDataModule(str(tmp_path / "empty")).prepare_data()


def test_areas_of_unlike_pixels_are_refused(folder, tmp_path):
    root = shutil.copytree(folder / "data", tmp_path / "data")
    with rasterio.open(root / "alder" / "dtm.tif", "r+") as raster:
        raster.transform = raster.transform @ rasterio.Affine.scale(0.5)
    with pytest.raises(ValueError, match=r"the areas' pixels differ: alder 5 m, birch 10 m; resample"):
        made(tmp_path).prepare_data()


def test_a_bad_label_file_is_told_before_the_channels_are_made(folder, tmp_path):
    root = shutil.copytree(folder / "data", tmp_path / "data")
    (root / "alder" / "labels.tif").write_text("none")
    with pytest.raises(ValueError, match=r"alder/labels\.tif cannot be read as a raster"):
        made(tmp_path).prepare_data()
    assert not list((tmp_path / "cache").rglob("*.tif*"))


def test_setup_before_prepare_says_so(folder, tmp_path):
    with pytest.raises(ValueError, match=r"was not prepared in .*prepare_data"):
        made(folder, cache_dir=str(tmp_path)).setup("fit")


def test_generated_terrain_is_written_into_its_own_folder_only(tmp_path):
    own = GeneratedLandslideDataModule(str(tmp_path / "typo"), {"root": str(tmp_path / "data"), "size_px": 64})
    with pytest.raises(ValueError, match="no folder root="):
        own.prepare_data()
    assert not (tmp_path / "data").exists()
