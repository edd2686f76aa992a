"""The data module: batches, oversampling, what a checkpoint keeps, and the real pictures."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stagewise.datamodules import DrainDataModule
from stagewise.datamodules.drains.boxes import FEATURES
from stagewise.datamodules.drains.dataset import DrainDataset
from stagewise.datamodules.drains.oversampling import class_targets, repeated_rows
from stagewise.datamodules.drains.vocabulary import CLASS_NAMES, TYPE_OF_CLASS
from stagewise.datamodules.errors import BadRowsError, QuotaError, StagewiseError

SMALL = {"px": 32}


@pytest.fixture
def made(yolo, tmp_path):
    """A data module on pictures of six places, with any options."""
    yolo.places()

    def make(setup=True, **options):
        image, loader = (
            SMALL | options.pop("image", {}),
            {"num_workers": 0, "batch_size": 4} | options.pop("loader", {}),
        )
        splits = {"folds": 3} | options.pop("splits", {})
        data = DrainDataModule(
            str(yolo.root), image=image, loader=loader, splits=splits, cache_dir=str(tmp_path / "cache"), **options
        )
        if setup:
            data.setup("fit")
        return data

    return make


def test_a_batch_holds_what_the_vocabulary_says(made):
    data = made(image={"view": True})
    batch = next(iter(data.train_dataloader()))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    image, number = ((4, 3, 32, 32), torch.uint8), ((4,), torch.int64)
    assert shapes == {
        "image": image,
        "view": image,
        "metadata": ((4, len(FEATURES)), torch.float32),
        **dict.fromkeys(("label", "box_type", "position", "context", "sample_id", "picture", "draw"), number),
    }
    assert set(next(iter(data.val_dataloader()))) == set(shapes) - {"draw"}
    assert batch["box_type"].tolist() == TYPE_OF_CLASS[batch["label"]].tolist()


def test_every_row_of_a_split_comes_once_in_order_and_is_its_row(made):
    data = made()
    for name in ("train", "val", "test"):
        batches = list(data.split_dataloader(name))
        joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        table = data.table(name)
        assert joined["sample_id"].tolist() == list(range(len(table)))
        assert joined["label"].tolist() == table.label.tolist()
        assert joined["context"].tolist() == table.context().tolist()
        np.testing.assert_array_equal(joined["metadata"], table.features())


def test_the_whole_picture_ablation_shows_the_same_pixels_for_all_objects_of_a_picture(made):
    data = made(image={"input": "whole"})
    dataset = data.dataset("val")
    first = [row for row in range(len(dataset)) if data.table("val").picture[row] == 0]
    assert len(first) == 9 and all(torch.equal(dataset[row]["image"], dataset[0]["image"]) for row in first)
    assert not torch.equal(dataset[len(first)]["image"], dataset[0]["image"])
    with pytest.raises(StagewiseError, match="'whole' goes without `view`"):
        made(image={"input": "whole", "view": True}).dataset("val")


def test_a_view_shows_which_object_is_meant(made):
    dataset = made(image={"view": True}).dataset("val")
    views = [dataset[row]["view"] for row in range(9)]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_nothing_beside_the_pixels_tells_the_condition(made):
    table = made().table("train")
    condition_changed = np.array([1, 2, 0, 4, 3, 6, 7, 5, 8])[table.label]
    other = replace(table, label=condition_changed)
    assert (other.types == table.types).all() and (other.label != table.label).any()
    for ask in ("features", "context", "position"):
        np.testing.assert_array_equal(getattr(other, ask)(), getattr(table, ask)())


# --- draws ---


def same(one, two):
    return all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)


def test_a_draw_is_a_function_of_seed_and_number(made):
    data = made(image={"view": True})
    dataset, again = data.dataset("train"), data.dataset("train")
    for draw in range(8):
        assert same(dataset[3, draw], again[3, draw])
    pictures = [dataset[3, draw]["image"] for draw in range(8)]
    assert sum(torch.equal(pictures[0], other) for other in pictures) == 1
    other_seed = made(seed=1).dataset("train")
    assert any(not torch.equal(other_seed[3, draw]["image"], pictures[draw]) for draw in range(8))


def test_a_flip_changes_the_pixels_and_nothing_else(made):
    data = made(image={"view": True})
    plain = data.dataset("train")
    flipping = DrainDataset(data.table("train"), data.store, view=True, geometry={"flip": 1.0})
    for row in range(len(plain)):
        kept, turned = plain[row], flipping[row, row]
        assert torch.equal(turned["image"], kept["image"].flip(-1)) and torch.equal(
            turned["view"], kept["view"].flip(-1)
        )
        assert same({k: v for k, v in kept.items() if k not in ("image", "view")}, turned)


def test_half_of_the_draws_are_mirrored(made):
    data = made()
    dataset = DrainDataset(data.table("train"), data.store, geometry={"flip": 0.5})
    mirrored = [torch.equal(dataset[0, draw]["image"], dataset[0]["image"].flip(-1)) for draw in range(200)]
    assert 75 < sum(mirrored) < 125


def test_light_changes_in_training_only_and_is_the_same_again(made):
    data = made(image={"view": True})
    batch = next(iter(data.train_dataloader()))
    lit, again = data.on_after_batch_transfer(batch, 0), data.on_after_batch_transfer(batch, 0)
    plain = batch["image"].float() / 255
    assert torch.equal(lit["image"], again["image"]) and not torch.allclose(lit["image"], plain, atol=0.01)
    assert 0 <= lit["view"].min() and lit["view"].max() <= 1 and lit["view"].dtype == torch.float32
    val = next(iter(data.val_dataloader()))
    assert torch.equal(data.on_after_batch_transfer(val, 0)["image"], val["image"].float() / 255)


def test_a_run_goes_on_with_the_very_batches_it_would_have_seen(made):
    whole = list(made(rare={"correction": "oversample", "min_per_class": 12}).train_dataloader())
    loader = made(rare={"correction": "oversample", "min_per_class": 12}).train_dataloader()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    resumed = made(rare={"correction": "oversample", "min_per_class": 12}).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert len(rest) == len(whole) - 3 and all(same(a, b) for a, b in zip(rest, whole[3:]))
    other = made(rare={"correction": "oversample", "min_per_class": 13}).train_dataloader()
    with pytest.raises(StagewiseError, match="other data"):
        other.load_state_dict(loader.state_dict())


# --- rare classes ---


@pytest.mark.parametrize("counts", [[52, 78, 76, 153, 366, 257, 97, 148, 238], [5] * 9, [900, 1, 1, 1, 1, 1, 1, 1, 1]])
def test_targets_are_met_and_no_object_is_left_out(counts):
    labels = np.repeat(np.arange(9), counts)
    targets = class_targets(counts, 200, 0.25)
    assert (targets >= np.maximum(counts, 200)).all() and targets[[1, 6]].sum() / targets.sum() >= 0.2499
    repeats = np.bincount(repeated_rows(labels, targets), minlength=len(labels))
    assert np.bincount(labels, repeats).tolist() == targets.tolist()
    for label in range(9):
        own = repeats[labels == label]
        assert own.min() >= 1 and own.max() - own.min() <= 1


def test_what_is_common_enough_stays_and_a_class_without_objects_stays_empty():
    counts = [300, 400, 300, 300, 300, 300, 400, 300, 300]
    assert class_targets(counts, 200, 0.25).tolist() == counts
    assert class_targets([0, 0, 50, 0, 0, 0, 0, 0, 0], 200, 0.25).tolist() == [0, 0, 200, 0, 0, 0, 0, 0, 0]
    for wrong in ((-1, 0.25), (200, 1.0)):
        with pytest.raises(QuotaError, match="min_per_class >= 0 and blocked_share"):
            class_targets(counts, *wrong)


def test_a_pass_has_the_draws_that_were_asked_for(made, caplog):
    data = made(rare={"correction": "oversample", "min_per_class": 20, "blocked_share": 0.4}, loader={"batch_size": 1})
    with caplog.at_level(logging.INFO):
        loader = data.train_dataloader()
    drawn = torch.cat([batch["label"] for batch in loader]).bincount(minlength=9)
    assert drawn.min() >= 20 and drawn[[1, 6]].sum() / drawn.sum() >= 0.4
    assert "imbalance correction oversample" in caplog.text
    plain = torch.cat([batch["label"] for batch in made(loader={"batch_size": 1}).train_dataloader()])
    assert plain.bincount(minlength=9).tolist() == data.class_count.tolist()


# --- what a checkpoint keeps ---


def test_the_schema_is_plain_and_fitted_on_train_only(made):
    data = made()
    schema = data.schema
    assert json.loads(json.dumps(schema)) == schema
    features = data.table("train").features()
    np.testing.assert_allclose(schema["feature_mean"], features.mean(0), atol=1e-5)
    deviation = np.array(schema["feature_std"])
    np.testing.assert_allclose(deviation, np.where(features.std(0) > 1e-5, features.std(0), 1), atol=1e-5)
    assert (deviation == 1).any()  # all boxes of these pictures have one size, which no network should see blown up
    assert schema["class_count"] == data.table("train").class_count.tolist() and schema["classes"] == list(CLASS_NAMES)
    named = [set(own) for own in schema["splits"]["locations"].values()]
    assert len(set().union(*named)) == sum(map(len, named)) == 6


def test_an_adopted_schema_gives_splits_statistics_and_crops_again(made):
    first = made(image={"margin": 0.3, "pad": "context"}, splits={"fold": 2, "seed": 5})
    later = made(setup=False)
    later.adopt(first.schema)
    later.setup("test")
    assert later.schema == first.schema and later.class_count.tolist() == first.class_count.tolist()
    for name in first.splits:
        assert later.table(name).paths == first.table(name).paths
    assert same(later.dataset("test")[0], first.dataset("test")[0])


# --- what cannot be used ---


def test_a_picture_that_breaks_off_is_dropped_and_counted_or_refused(made, yolo, caplog):
    path = yolo.root / "images" / "p0_0.png"
    path.write_bytes(path.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING):
        data = made()
    assert "1 pictures that do not decode" in caplog.text
    assert sum(len(part.paths) for part in data.splits.values()) == 11 and len(data.notes) == 1
    with pytest.raises(BadRowsError, match=r"p0_0\.png.*truncated"):
        made(strict=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rare": {"corection": "none"}}, r"`rare` has unknown key\(s\) \['corection'\]; known: correction"),
        ({"rare": {"correction": "oversmaple"}}, "the correction of the imbalance is 'oversmaple'"),
        ({"image": {"vertical": True}}, "`image` has unknown key"),
    ],
)
def test_settings_that_mean_nothing_are_refused(made, options, words):
    with pytest.raises(StagewiseError, match=words):
        made(**options)


def test_a_split_that_is_not_there_names_those_that_are(made):
    with pytest.raises(StagewiseError, match="no split 'field'; splits: train, val, test"):
        made().split_dataloader("field")
    with pytest.raises(StagewiseError, match="none before setup"):
        made(setup=False).table("train")


def test_folders_without_any_location_need_leaky_said(made, yolo):
    (yolo.root / "locations.csv").unlink()
    with pytest.raises(StagewiseError, match=r"nothing says where the pictures"):
        made(splits={"method": "folder"})
    data = made(splits={"method": "folder", "leaky": True})
    assert data.schema["leaky"] and data.schema["fold"] is None and set(data.splits) == {"train", "val"}
    again = made(setup=False)
    again.adopt(data.schema)
    again.setup("fit")
    assert {name: part.paths for name, part in again.splits.items()} == {n: p.paths for n, p in data.splits.items()}


@pytest.mark.data
def test_the_real_pictures(tmp_path):
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "drains"
    if not folder.is_dir():
        pytest.skip("the real data are not beside the checkout")
    options = {"image": {"px": 32}, "loader": {"num_workers": 0}, "cache_dir": str(tmp_path)}
    tested = []
    for fold in (0, 1, 3, 4):  # the file's folds; 2 lies in the part that is not shared
        data = DrainDataModule(str(folder), splits={"fold": fold}, **options)
        data.setup("fit")
        objects, pictures = (sum(f(part) for part in data.splits.values()) for f in (len, lambda part: len(part.paths)))
        assert (objects, pictures) == (931, 185)  # one of 932 is under 4 px
        lists = list(data.schema["splits"]["locations"].values())
        assert len(set().union(*lists)) == sum(map(len, lists)) == 16
        assert (data.table("val").class_count > 0).all() and 80 < len(data.table("val")) < 150
        tested += data.schema["splits"]["locations"]["test"]
    assert len(set(tested)) == len(tested) == 16
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, 3, 32, 32) and batch["metadata"].isfinite().all()
