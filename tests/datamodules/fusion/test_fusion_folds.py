"""Folds by patient, and columns that give the label away."""

import numpy as np
import pytest

from stagewise.datamodules.errors import SplitLeakError, StagewiseError
from stagewise.datamodules.fusion.folds import check_disjoint, ids_of, make_splits, split_by_ids
from stagewise.datamodules.fusion.leaks import telling_columns, warn_of_leaks
from stagewise.datamodules.fusion.table import FusionTable

CLASSES = ["low", "mid", "high"]


def rows(patients=60, seed=0, **columns):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    label = rng.choice(3, len(group), p=[0.3, 0.5, 0.2])
    names = [f"p{i:03d}" for i in group]
    made = {name: make(label, rng) for name, make in columns.items()}
    numbers = {name: column for name, column in made.items() if column.dtype.kind == "f"}
    categories = {name: column.tolist() for name, column in made.items() if column.dtype.kind == "U"}
    ids = [f"r{i}" for i in range(len(group))]
    return FusionTable.of(ids, names, label, classes=CLASSES, numbers=numbers, categories=categories)


@pytest.mark.parametrize("folds", [3, 5])
def test_each_row_is_tested_once_and_no_patient_is_in_two_splits(folds):
    table, tested = rows(), []
    for fold in range(folds):
        splits = make_splits(table, fold=fold, folds=folds)
        groups = [set(part.group.tolist()) for part in splits.values()]
        assert len(set().union(*groups)) == sum(map(len, groups)) == 60
        assert sum(map(len, splits.values())) == len(table)
        outside = len(table) - len(splits["test"])
        assert 0.12 < len(splits["val"]) / outside < 0.28
        for part in splits.values():
            share = part.class_count / len(part)
            np.testing.assert_allclose(share, table.class_count / len(table), atol=0.13)
        tested += splits["test"].ids.tolist()
    assert sorted(tested) == sorted(table.ids.tolist())


def test_folds_are_a_function_of_the_seed():
    table = rows()
    assert ids_of(make_splits(table)) == ids_of(make_splits(table))
    assert ids_of(make_splits(table)) != ids_of(make_splits(table, seed=1))


def test_rows_are_split_where_it_is_said_and_it_is_told(caplog):
    splits = make_splits(rows(), by="row")
    with pytest.raises(SplitLeakError, match=r"are in two splits: 'p0\d\d' \((train, )?(val|train), (val|test)"):
        check_disjoint(splits)
    assert "splits.by=row" in caplog.text and "too well" in caplog.text


def test_a_patient_in_two_splits_is_refused():
    splits = make_splits(rows())
    splits["val"] = splits["test"].subset([0])
    patient = splits["test"].group[0]
    with pytest.raises(SplitLeakError, match=rf"1 patient.*'{patient}' \(val, test\).*group column"):
        check_disjoint(splits)


def test_a_class_that_a_split_lacks_is_named_with_its_fold():
    table = rows()
    label = np.where(table.label == 2, 1, table.label)
    label[:2] = 2
    rare = FusionTable.of(table.ids.tolist(), table.group.tolist(), label, classes=CLASSES)
    with pytest.raises(StagewiseError, match=r"fold \d: \w+ has no row of the class high; take fewer .*folds"):
        for fold in range(3):
            make_splits(rare, fold=fold)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fold": 3}, r"datamodule\.fold must be a number from 0 to 2, got 3"),
        ({"folds": 61}, "there are 60 groups"),
        ({"folds": 1}, "at least 2"),
        ({"val_share": 0.0}, "val_share"),
        ({"by": "visit"}, "one of group, row, got 'visit'"),
    ],
)
def test_options_that_mean_nothing(options, words):
    with pytest.raises(StagewiseError, match=words):
        make_splits(rows(), **options)


def test_a_checkpoints_rows_come_back_and_others_are_new(caplog):
    table = rows()
    splits = make_splits(table)
    lists = ids_of(splits)
    again = split_by_ids(table.subset(np.random.default_rng(0).permutation(len(table))), lists)
    assert {name: sorted(ids) for name, ids in ids_of(again).items()} == {n: sorted(i) for n, i in lists.items()}
    first_patient = table.group == table.group[0]
    known = {name: [i for i in ids if i not in table.ids[first_patient]] for name, ids in lists.items()}
    assert set(split_by_ids(table, known)["new"].group) == {table.group[0]}
    many = next(g for g in set(table.group.tolist()) if (table.group == g).sum() > 1)
    one = table.ids[table.group == many][0]
    fewer = split_by_ids(table, {name: [i for i in ids if i != one] for name, ids in lists.items()})
    assert "new" not in fewer and "1 new row(s) of patients that the checkpoint knew are left out" in caplog.text


def test_a_checkpoints_patient_that_moved_into_two_splits_is_refused():
    table = rows()
    splits = make_splits(table)
    group = table.group.copy()
    group[table.ids == splits["test"].ids[0]] = splits["train"].group[0]
    moved = FusionTable.of(table.ids.tolist(), group.tolist(), table.label, classes=CLASSES)
    with pytest.raises(SplitLeakError):
        split_by_ids(moved, ids_of(splits))


# --- columns that tell ---


def test_columns_that_predict_perfectly_are_found_and_no_others(caplog):
    table = rows(
        price=lambda label, rng: label + rng.uniform(0, 0.9, len(label)),
        price_with_gaps=lambda label, rng: np.where(rng.random(len(label)) < 0.005, np.nan, label * 1.0),
        good=lambda label, rng: label + rng.normal(0, 0.7, len(label)),
        noise=lambda label, rng: rng.normal(size=len(label)),
        constant=lambda label, rng: np.zeros(len(label)),
        stage=lambda label, rng: np.array(["I", "II", "iii"])[label],
        ward=lambda label, rng: rng.choice(["a", "b"], len(label)),
    )
    assert telling_columns(table) == ["price", "price_with_gaps", "stage"]
    warn_of_leaks(table)
    assert "leak suspected: the column 'price'" in caplog.text and "datamodule.columns.drop=[stage]" in caplog.text


def test_a_column_that_only_names_the_patient_does_not_tell():
    table = rows()
    label = np.random.default_rng(1).choice(3, 60)[np.unique(table.group, return_inverse=True)[1]]
    number = np.unique(table.group, return_inverse=True)[1].astype(float)
    same = FusionTable.of(table.ids.tolist(), table.group.tolist(), label, classes=CLASSES, numbers={"zip": number})
    assert telling_columns(same) == []
