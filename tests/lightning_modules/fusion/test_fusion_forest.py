import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.fusion.table import FusionTable
from stagewise.lightning_modules.fusion.forest import MetadataForest, as_rows, class_shares, pipeline_of


@pytest.mark.parametrize("weighting", ["balanced", "none", "oversample"])
def test_the_arrays_answer_as_the_fitted_pipeline_does(table, weighting):
    forest = MetadataForest(trees=20, weighting=weighting, seed=1).fit(table)
    pipeline = pipeline_of(forest.options, table).fit(as_rows(table), table.label)
    expected = pipeline[-1].forests_[0].predict_proba(pipeline["columns"].transform(as_rows(table)))
    assert np.allclose(forest.probabilities(table), expected, atol=1e-6)


def test_balanced_weights_are_scikit_learns(table):
    from sklearn.ensemble import RandomForestClassifier

    rare = table.subset(np.flatnonzero((table.label != 2) | (np.arange(len(table)) % 4 == 0)))
    forest = MetadataForest(trees=10).fit(rare)
    pipeline = pipeline_of(forest.options, rare).fit(as_rows(rare), rare.label)
    features = pipeline["columns"].transform(as_rows(rare))
    peer = RandomForestClassifier(10, min_samples_leaf=3, class_weight="balanced", random_state=0)
    assert np.allclose(forest.probabilities(rare), peer.fit(features, rare.label).predict_proba(features), atol=1e-6)


def test_a_state_goes_through_a_checkpoint_and_answers_the_same(table):
    forest, file = MetadataForest(trees=10).fit(table), io.BytesIO()
    torch.save(forest.state(), file)
    file.seek(0)
    again = MetadataForest.from_state(torch.load(file, weights_only=True))
    assert np.array_equal(again.probabilities(table), forest.probabilities(table))


def test_ordinal_probabilities_sum_to_one_and_never_fall_below_zero(table):
    p = MetadataForest(trees=10, ordinal=True).fit(table).probabilities(table)
    assert np.allclose(p.sum(1), 1, atol=1e-6) and (p >= 0).all()
    assert (p.argmax(1) == table.label).mean() > 0.5


def test_crossing_forests_are_made_monotone():
    p = class_shares(np.random.default_rng(0).random((50, 4)))
    above = p[:, ::-1].cumsum(1)[:, ::-1]
    assert np.allclose(p.sum(1), 1) and (np.diff(above, axis=1) <= 1e-12).all()


@pytest.mark.parametrize("ordinal", [False, True])
def test_a_class_that_is_absent_keeps_its_column(table, ordinal):
    without = table.subset(table.label != 1)
    p = MetadataForest(trees=5, ordinal=ordinal).fit(without).probabilities(table)
    assert p.shape == (len(table), 3) and np.allclose(p.sum(1), 1, atol=1e-6)
    assert (p[:, 1] < 1e-6).all() or ordinal


def test_missing_values_and_unseen_categories_are_answered_and_named(table):
    forest = MetadataForest(trees=10).fit(table)
    new = FusionTable.of(
        ["a", "b", "c"],
        ["", "", ""],
        [-1, -1, -1],
        classes=table.classes,
        numbers={"age": [np.nan, 1, np.nan], "size": [np.nan, np.nan, np.nan]},
        categories={"kind": ["burn", "Diabtic", ""]},
    )
    assert forest.unseen(new) == [["kind=burn"], [], []]
    p = forest.probabilities(new)
    assert np.allclose(p[:2].sum(1), 1, atol=1e-6)
    assert np.isnan(p[2]).all()  # nothing is known of that row


def test_columns_of_another_table_are_refused(table):
    forest = MetadataForest(trees=2).fit(table)
    with pytest.raises(StagewiseError, match="number_names are"):
        forest.probabilities(replace(table, number_names=("age", "weight")))


@pytest.mark.parametrize("kind", ["numbers", "categories"])
def test_columns_of_one_kind_alone_are_enough(table, kind):
    empty = {"numbers": np.zeros((len(table), 0)), "number_names": ()}
    if kind == "numbers":
        empty = {"categories": np.zeros((len(table), 0), "U1"), "category_names": ()}
    own = replace(table, **empty)
    p = MetadataForest(trees=5).fit(own).probabilities(own)
    known = ~np.isnan(p).any(1)
    assert known.sum() > 100 and np.allclose(p[known].sum(1), 1, atol=1e-6)


def test_what_cannot_be_learned_from_is_refused(table):
    with pytest.raises(StagewiseError, match="needs metadata"):
        MetadataForest().fit(FusionTable.of(["a"], ["p"], [0], classes=["x", "y"]))
    with pytest.raises(StagewiseError, match="one class"):
        MetadataForest().fit(table.subset(table.label == 0))
    with pytest.raises(StagewiseError, match="weighting must be one of"):
        MetadataForest(weighting="heavy")
    with pytest.raises(StagewiseError, match=r"call fit\(table\) first"):
        MetadataForest().probabilities(table)
