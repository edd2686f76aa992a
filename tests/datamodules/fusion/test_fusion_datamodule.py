"""The data module: batches, draws, what a checkpoint keeps, new rows, and the real table."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from stagewise.datamodules import FusionDataModule
from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, StagewiseError
from stagewise.datamodules.fusion.leaks import telling_columns
from stagewise.datamodules.fusion.new_rows import read_new

CLASSES = ["low", "mid", "high"]


@pytest.fixture
def made(clinic, tmp_path):
    """A data module on the small clinic, with any options; r2 has two pictures and r3 none."""
    clinic.rows[2]["image"] = "images/2.png;images/3.png"
    clinic.rows[3]["image"] = ""
    clinic.write()

    def make(setup=True, **options):
        image = {"px": 16} | options.pop("image", {})
        splits = {"val_share": 0.25} | options.pop("splits", {})
        options = {"loader": {"num_workers": 0, "batch_size": 4}, "cache_dir": str(tmp_path / "cache")} | options
        data = FusionDataModule(str(clinic.root), CLASSES, image=image, splits=splits, **options)
        if setup:
            data.setup("fit")
        return data

    return make


def same(one, two):
    return all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)


def test_a_batch_holds_what_the_vocabulary_says(made):
    data = made()
    batch = next(iter(data.train_dataloader()))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((4, 3, 16, 16), torch.uint8),
        "has_image": ((4,), torch.bool),
        **dict.fromkeys(("label", "row", "sample_id", "draw"), ((4,), torch.int64)),
    }
    assert set(next(iter(data.val_dataloader()))) == set(shapes) - {"draw"}


def test_every_picture_of_every_row_is_one_item_in_order(made):
    data = made()
    joined = []
    for name in ("train", "val", "test"):
        table = data.table(name)
        batches = list(data.split_dataloader(name))
        all_of = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        assert all_of["sample_id"].tolist() == list(range(len(all_of["row"])))
        assert all_of["row"].tolist() == [r for r, own in enumerate(table.pictures) for _ in range(max(1, len(own)))]
        assert all_of["label"].tolist() == table.label[all_of["row"]].tolist()
        assert all_of["has_image"].tolist() == [bool(table.pictures[r]) for r in all_of["row"].tolist()]
        blank = all_of["image"].flatten(1).sum(1) == 0
        assert blank.tolist() == (~all_of["has_image"]).tolist()
        joined += table.ids[all_of["row"]].tolist()
    assert joined.count("r2") == 2 and joined.count("r3") == 1 and len(joined) == 37


def test_a_pass_shows_each_row_once_and_in_time_each_of_its_pictures(made):
    data = next(d for d in (made(fold=fold) for fold in range(3)) if "r2" in d.table("train").ids)
    loader = made(fold=data.fold, loader={"num_workers": 0, "batch_size": 1}).train_dataloader()
    table = data.table("train")
    assert sorted(torch.cat([batch["row"] for batch in loader]).tolist()) == list(range(len(table)))
    dataset, row = data.dataset("train", training=True), int(np.flatnonzero(table.ids == "r2")[0])
    assert {dataset[row, draw]["sample_id"] for draw in range(20)} == {dataset.first[row], dataset.first[row] + 1}
    assert len(dataset) == len(table)


def test_a_draw_is_a_function_of_seed_and_number(made):
    dataset, again, other = (made(**o).dataset("train", training=True) for o in ({}, {}, {"seed": 1}))
    pictured = next(r for r, own in enumerate(dataset.table.pictures) if own)
    for draw in range(5):
        assert same(dataset[pictured, draw], again[pictured, draw])
    images = [dataset[pictured, draw]["image"] for draw in range(5)]
    assert not torch.equal(images[0], images[1])
    assert any(not torch.equal(images[draw], other[pictured, draw]["image"]) for draw in range(5))


def test_a_batch_is_its_samples_one_by_one(made):
    data = next(d for d in (made(fold=fold) for fold in range(3)) if "r3" in d.table("train").ids)
    dataset = data.dataset("train", training=True)  # r3 has no picture
    keys = [(row, 7 * row) for row in range(len(dataset))]
    for together, alone in zip(dataset.__getitems__(keys), (dataset[key] for key in keys), strict=True):
        assert same(together, alone)


def test_a_run_goes_on_with_the_very_batches_it_would_have_seen(made):
    whole = list(made().train_dataloader())
    loader = made().train_dataloader()
    batches = iter(loader)
    next(batches)
    resumed = made().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert len(rest) == len(whole) - 1 > 0 and all(same(a, b) for a, b in zip(rest, whole[1:]))
    with pytest.raises(StagewiseError, match="other data"):
        made(image={"margin": 0.2}).train_dataloader().load_state_dict(loader.state_dict())


def test_pixels_become_shares_by_a_fixed_scale_and_brightness_is_asked_for(made):
    for options in ({}, {"brightness": 0.3}):
        data = made(image=options)
        train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
        plain = train["image"].float() / 255
        lit, again = data.on_after_batch_transfer(train, 0), data.on_after_batch_transfer(train, 0)
        assert torch.equal(lit["image"], again["image"])
        assert torch.equal(lit["image"], plain) == (not options) and lit["image"].max() <= 1
        assert torch.equal(data.on_after_batch_transfer(val, 0)["image"], val["image"].float() / 255)


def test_labels_are_shuffled_when_it_is_asked_for(made, caplog):
    plain, shuffled, again = made(), made(permute_labels=True), made(permute_labels=True)
    label_of = [{i: y for t in d.splits.values() for i, y in zip(t.ids, t.label)} for d in (plain, shuffled, again)]
    assert label_of[0] != label_of[1] == label_of[2] and shuffled.schema["permuted"]
    assert sorted(label_of[0].values()) == sorted(label_of[1].values())
    assert "permute_labels=true" in caplog.text
    later = made(setup=False, seed=5)
    later.adopt(shuffled.schema)
    later.setup("test")
    assert later.table("test").label.tolist() == shuffled.table("test").label.tolist()


# --- what a checkpoint keeps ---


def test_the_schema_is_plain(made):
    data = made(fold=1)
    schema = data.schema
    assert json.loads(json.dumps(schema)) == schema
    assert schema["classes"] == CLASSES and schema["fold"] == 1 and not schema["leaky"] and not schema["permuted"]
    assert schema["class_count"] == data.table("train").class_count.tolist() == data.class_count.tolist()
    assert schema["image"] == {"px": 16, "channels": 3, "colormap": None, "margin": 0.1, "bits": 8}
    assert schema["splits"]["ids"]["test"] == data.table("test").ids.tolist()
    assert made(splits={"by": "row"}).schema["leaky"]


def test_an_adopted_schema_gives_splits_columns_and_crops_again(made):
    first = made(fold=2, image={"margin": 0.3, "px": 24}, columns={"drop": ["kind"]}, splits={"seed": 3})
    later = made(setup=False)
    later.adopt(first.schema)
    later.setup("test")
    assert later.schema == first.schema and later.table("train").content_key() == first.table("train").content_key()
    assert same(later.dataset("test")[0], first.dataset("test")[0]) and later.data_key() == first.data_key()


def test_new_rows_are_cropped_as_those_of_the_training(made, clinic, caplog):
    files = clinic.boxes(("images/0.png", 4, 4, 20, 12))
    data = made(files=files)
    clinic.table("new.csv", clinic.rows[:4], ["id", "age", "image"])
    with caplog.at_level(logging.WARNING):
        new = read_new(clinic.root / "new.csv", data.schema)
    assert new.table.ids.tolist() == ["r0", "r1", "r2", "r3"] and (new.table.categories == "").all()
    name, row = next((n, int(np.flatnonzero(t.ids == "r0")[0])) for n, t in data.splits.items() if "r0" in t.ids)
    seen = data.dataset(name)
    assert torch.equal(new.dataset[0]["image"], seen[int(seen.first[row])]["image"])
    assert len(new.dataset) == 5 and not new.dataset[4]["has_image"] and new.dataset[0]["label"] == -1
    (clinic.root / "boxes.csv").unlink()
    read_new(clinic.root / "new.csv", data.schema)
    assert "pictures count whole" in caplog.text
    with pytest.raises(DatasetNotFoundError, match="pass input="):
        read_new(clinic.root / "none.csv", data.schema)


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"splits": {"fold": 1}}, r"`splits` has unknown key\(s\) \['fold'\]"),
        ({"cache": "x"}, r"unknown key\(s\) \['cache'\]"),
        ({"image": {"colormap": "jet"}}, "set image.channels=1"),
        ({"image": {"colormap": "jett", "channels": 1}}, "'jett', which matplotlib has not"),
        ({"image": {"channels": 2}}, "channels 1 or 3"),
        ({"image": {"zoom": 1.0}}, r"image\.zoom is a share"),
        ({"loader": {"batch_size": 0}}, r"loader\.batch_size must be a whole number of at least 1, got 0"),
        ({"columns": {"group": "label"}}, "'label' as label and as group"),
        ({"splits": {"folds": 1}}, r"splits\.folds must be a whole number of at least 2, got 1"),
        ({"fold": "a"}, r"datamodule\.fold must be a number from 0 to 2, got a"),
    ],
)
def test_settings_that_mean_nothing_are_refused(made, options, words):
    with pytest.raises(StagewiseError, match=words):
        made(setup=False, **options)


@pytest.mark.parametrize("classes", [["a"], ["a", "a"]])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(StagewiseError, match="two different names"):
        FusionDataModule("x", classes)


def test_a_batch_larger_than_train_is_refused(made):
    with pytest.raises(StagewiseError, match=r"batch_size is 4000, but train has \d+ rows"):
        made(loader={"batch_size": 4000, "num_workers": 0}).train_dataloader()


def test_no_picture_is_cut_of_a_table_that_cannot_be_split(made, tmp_path):
    with pytest.raises(StagewiseError, match="there are 18 groups; take at most as many"):
        made(splits={"folds": 19})
    assert not (tmp_path / "cache").exists()


def test_a_split_that_is_not_there_names_those_that_are(made):
    with pytest.raises(StagewiseError, match="no split 'field'; splits: train, val, test"):
        made().split_dataloader("field")
    with pytest.raises(StagewiseError, match="none before setup"):
        made(setup=False).table("train")
    with pytest.raises(StagewiseError, match="call it first"):
        _ = made(setup=False).class_count


def test_a_picture_that_breaks_off_stops_the_run(made, clinic):
    path = clinic.root / "images/7.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadRowsError, match=r"row 'r7' picture .*7\.png': truncated"):
        made()


@pytest.mark.data
def test_the_real_houses(tmp_path, caplog):
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "houses"
    if not folder.is_dir():
        pytest.skip("the real data are not beside the checkout")
    tested = []
    columns = {"group": "group", "categories": ["zipcode"]}
    options = {"image": {"px": 32}, "loader": {"num_workers": 0}, "cache_dir": str(tmp_path), "columns": columns}
    for fold in range(5):
        data = FusionDataModule(str(folder), ["L", "M", "H"], fold=fold, splits={"folds": 5}, **options)
        data.setup("fit")
        assert sum(map(len, data.splits.values())) == 535
        tested += data.schema["splits"]["ids"]["test"]
    assert len(set(tested)) == len(tested) == 535
    assert caplog.text.count("leak suspected") == 5 and "drop=[price_usd]" in caplog.text
    assert telling_columns(data.table("train")) == ["price_usd"]
    assert next(iter(data.train_dataloader()))["image"].shape == (16, 3, 32, 32)
