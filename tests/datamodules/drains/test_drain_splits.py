"""Locations and grouped splits: a location is never in two of them."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from stagewise.datamodules.drains.locations import locate
from stagewise.datamodules.drains.splits import by_name, locations_of, make_splits, split_by_lists
from stagewise.datamodules.drains.table import DrainTable
from stagewise.datamodules.drains.yolo import read_yolo
from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, SplitLeakError, StagewiseError


def skewed(places=20, seed=0):
    """Pictures at places of very different size, each with its own mix of classes."""
    rng = np.random.default_rng(seed)
    place = rng.choice(places, 300, p=rng.dirichlet(np.ones(places)))
    mix = rng.dirichlet(np.ones(9), places)
    label = np.concatenate([rng.choice(9, 4, p=mix[p]) for p in place])
    picture = np.repeat(np.arange(300), 4)
    boxes = np.tile([0.5, 0.5, 0.2, 0.2], (len(label), 1))
    table = DrainTable.of(boxes, label, picture, [f"{i:03d}.jpg" for i in range(300)], [(100, 100)] * 300)
    return replace(table, location=np.array([f"place{p}" for p in place]))


def pairwise_disjoint(splits):
    named = [set(own) for own in locations_of(splits).values()]
    return sum(map(len, named)) == len(set().union(*named))


@pytest.mark.parametrize("seed", range(4))
def test_no_location_is_shared_and_every_picture_is_somewhere(seed):
    table = skewed(seed=seed)
    for fold in range(5):
        splits = make_splits(table, fold=fold, seed=seed)
        assert list(splits) == ["train", "val", "test"] and pairwise_disjoint(splits)
        assert sorted(i for part in splits.values() for i in part.picture_id) == list(range(300))
        assert 0.05 < len(splits["val"]) / (len(splits["val"]) + len(splits["train"])) < 0.3


def test_each_location_is_the_test_of_exactly_one_fold():
    table = skewed()
    tested = [location for fold in range(5) for location in locations_of(make_splits(table, fold=fold))["test"]]
    assert sorted(tested) == sorted(set(table.location))


def test_the_same_seed_gives_the_same_splits_and_the_order_of_files_does_not_matter():
    table = skewed()
    first = locations_of(make_splits(table, seed=3))
    assert first == locations_of(make_splits(table, seed=3)) != locations_of(make_splits(table, seed=4))


def test_folds_of_the_file_are_kept():
    table = skewed()
    folds = {location: int(location[5:]) % 3 for location in table.location}
    for fold in range(3):
        test = locations_of(make_splits(table, folds, fold=fold))["test"]
        assert {folds[location] for location in test} == {fold}
    with pytest.raises(StagewiseError, match=r"splits\.fold is 7, but the folds are \[0, 1, 2\]"):
        make_splits(table, folds, fold=7)


def with_folders(table, places_of):
    """Folder splits: split -> numbers of its places."""
    split_of = {f"place{p}": name for name, places in places_of.items() for p in places}
    return replace(table, split=np.array([split_of[location] for location in table.location]))


def test_the_folders_splits_are_kept_and_valid_is_val():
    table = with_folders(skewed(), {"train": range(12), "valid": range(12, 16), "test": range(16, 20)})
    splits = make_splits(table, method="folder")
    assert {name: {int(p[5:]) for p in own} for name, own in locations_of(splits).items()} == {
        name: {int(p[5:]) for p in table.location} & set(places)
        for name, places in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 20)))
    }


def test_folders_without_val_get_one_from_train_only():
    table = with_folders(skewed(), {"train": range(15), "test": range(15, 20)})
    splits = make_splits(table, method="folder")
    assert pairwise_disjoint(splits) and len(splits["val"]) > 0
    assert set(splits["test"].picture_id) == set(np.flatnonzero(table.split == "test"))


def test_a_shared_location_is_refused_unless_it_is_said(caplog):
    table = with_folders(skewed(), {"train": range(12), "val": range(12, 16), "test": range(16, 20)})
    split = table.split.copy()
    at_0 = np.flatnonzero(table.location == table.location[0])
    split[at_0[0]] = "test" if split[at_0[0]] != "test" else "train"
    leaking = replace(table, split=split)
    with pytest.raises(SplitLeakError, match=rf"1 location\(s\) are in two splits.*'{table.location[0]}'.*leaky=true"):
        make_splits(leaking, method="folder")
    with caplog.at_level(logging.WARNING):
        splits = make_splits(leaking, method="folder", leaky=True)
    assert "leaky=true" in caplog.text and not pairwise_disjoint(splits)
    assert pairwise_disjoint(make_splits(leaking, method="location"))


def test_a_class_that_train_lacks_is_named():
    table = skewed()
    only = table.location[table.picture[0]]
    label = np.where(table.location[table.picture] == only, 6, np.where(table.label == 6, 5, table.label))
    folds = {location: int(location == only) for location in table.location}
    with pytest.raises(StagewiseError, match="train has no object of slope_drain blocked"):
        make_splits(replace(table, label=label), folds, fold=1)


def test_val_does_not_take_the_only_location_of_a_class():
    table = skewed()
    places, counts = np.unique(table.location[table.picture], return_counts=True)
    only = places[counts.argsort()[len(places) // 2]]
    label = np.where(table.label == 6, 5, table.label)
    label[np.flatnonzero(table.location[table.picture] == only)[0]] = 6
    folds = {location: int(location == places[(only == places).argmax() - 1]) for location in table.location}
    for seed in range(5):
        splits = make_splits(replace(table, label=label), folds, fold=1, seed=seed)
        assert only in locations_of(splits)["train"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "picture"}, "splits.method must be one of location, folder"),
        ({"val_share": 0}, "splits.val_share must be a share"),
        ({"folds": 50}, "50 folds need"),
        ({"fold": 5}, r"splits.fold is 5, but the folds are \[0, 1, 2, 3, 4\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, words):
    with pytest.raises(StagewiseError, match=words):
        make_splits(skewed(), **options)


def test_a_picture_in_two_folders_is_one_picture_for_location_folds(yolo):
    yolo.places()
    yolo.yaml(train="images", val="images")
    table, folds = locate(read_yolo(yolo.root).table, yolo.root)
    with pytest.raises(SplitLeakError):
        make_splits(table, folds, method="folder")
    splits = make_splits(table, folds, folds=3)
    assert sum(len(part.paths) for part in splits.values()) == 12 and pairwise_disjoint(splits)


def test_a_checkpoints_lists_give_its_splits_again_and_new_places_are_new():
    table = skewed()
    splits = make_splits(table)
    lists = locations_of(splits)
    again = split_by_lists(table, lists)
    assert all(np.array_equal(again[name].object_id, splits[name].object_id) for name in splits)
    moved = replace(table, location=np.char.add(table.location, "x"))
    assert list(split_by_lists(moved, lists)) == ["new"]


def test_a_split_without_any_object_is_refused():
    """A fold, or a folder of which the labels are not there: its score would be of nothing."""
    label, picture = list(range(9)) * 2, [0] * 9 + [1] * 9
    boxes, paths = [[0.5, 0.5, 0.2, 0.2]] * 18, ["a.jpg", "b.jpg", "c.jpg"]
    table = DrainTable.of(boxes, label, picture, paths, [(100, 100)] * 3, ["train", "val", "test"])
    with pytest.raises(StagewiseError, match=r"test has no object of toe_drain normal, .*choose another"):
        make_splits(table, method="folder", leaky=True)


def test_a_part_of_a_table_keeps_every_object_of_its_pictures():
    table = skewed()
    part = table.subset(np.arange(300)[::-7])
    for position, number in enumerate(part.picture_id):
        own = part.object_id[part.picture == position]
        assert own.tolist() == np.flatnonzero(table.picture == number).tolist()
        assert part.label[part.picture == position].tolist() == table.label[own].tolist()
    assert sum(len(p) for p in by_name(table).values()) == len(table)


# --- locations ---


def test_a_pattern_reads_the_location_from_the_stem(yolo):
    yolo.places()
    (yolo.root / "locations.csv").unlink()
    table = read_yolo(yolo.root).table
    located, folds = locate(table, yolo.root, pattern=r"^(p\d+)_")
    assert folds is None and sorted(set(located.location)) == [f"p{i}" for i in range(6)]
    with pytest.raises(BadRowsError, match=r"misses 10 picture\(s\): 'p1_0'"):
        locate(table, yolo.root, pattern=r"^(p0)")
    with pytest.raises(StagewiseError, match="has no group"):
        locate(table, yolo.root, pattern="p")
    with pytest.raises(StagewiseError, match="no regular expression"):
        locate(table, yolo.root, pattern="(p")
    with pytest.raises(StagewiseError, match=r"locations\.file=CSV.*locations\.pattern=REGEX"):
        locate(table, yolo.root)


def test_a_table_of_locations_is_checked(yolo):
    yolo.places(fold=lambda place: place % 2)
    table, path = read_yolo(yolo.root).table, yolo.root / "locations.csv"
    located, folds = locate(table, yolo.root, file="locations.csv")
    assert folds == {f"place{i}": i % 2 for i in range(6)} and located.location[0] == "place0"
    text = path.read_text()
    for changed, error, words in (
        (text.replace("p0_0,place0,0\n", ""), BadRowsError, r"lacks 1 picture\(s\): 'p0_0'"),
        (text.replace("p0_1,place0,0", "p0_1,place0,1"), SplitLeakError, r"csv:3: 'place0' is in the folds 0 and 1"),
        (text.replace("p0_1,place0,0", "p0_1,place0,x"), BadRowsError, r"csv:3: fold 'x' is no whole number"),
        (text.replace("p0_1,place0,0", "p0_1,,0"), BadRowsError, r"csv:3 has no stem or no location"),
        (text + "p0_0,place1,1\n", BadRowsError, r"'p0_0' is at 'place0' and at 'place1'"),
    ):
        path.write_text(changed)
        with pytest.raises(error, match=words):
            locate(table, yolo.root)
    with pytest.raises(DatasetNotFoundError, match=r"no file locations\.file="):
        locate(table, yolo.root, file="other.csv")
