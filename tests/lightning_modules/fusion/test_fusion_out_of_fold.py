import logging

import numpy as np
import pytest

from stagewise.datamodules.errors import SplitLeakError, StagewiseError
from stagewise.lightning_modules.fusion import out_of_fold as module
from stagewise.lightning_modules.fusion.forest import MetadataForest
from stagewise.lightning_modules.fusion.out_of_fold import check_out_of_fold, forest_probabilities
from stagewise.lightning_modules.fusion.scores import kappa_of

OPTIONS = {"trees": 15}


def halves(table):
    mine = np.isin(table.group, np.unique(table.group)[::4])
    return {"train": table.subset(~mine), "val": table.subset(mine)}


def test_no_row_is_answered_by_a_forest_that_saw_its_patient(table, tmp_path, monkeypatch):
    asked = []

    class Spy(MetadataForest):
        def fit(self, rows):
            self.groups = set(rows.group.tolist())
            return super().fit(rows)

        def probabilities(self, rows):
            asked.append((getattr(self, "groups", None), set(rows.group.tolist()), len(rows)))
            return super().probabilities(rows)

    monkeypatch.setattr(module, "MetadataForest", Spy)
    tables = halves(table)
    module.out_of_fold(tables["train"], OPTIONS)
    assert sum(count for _, _, count in asked) == len(tables["train"])
    assert len(asked) == 5 and all(not learned & own for learned, own, _ in asked)


def test_val_is_answered_by_the_forest_of_all_train_rows(table, tmp_path):
    tables = halves(table)
    found = forest_probabilities(tables, tmp_path, **OPTIONS)
    expected = MetadataForest(**OPTIONS).fit(tables["train"]).probabilities(tables["val"])
    assert np.array_equal(found["probability"]["val"].numpy(), expected)


def test_in_sample_probabilities_flatter_and_are_refused(table, tmp_path, caplog):
    tables = halves(table)
    honest = forest_probabilities(tables, tmp_path, **OPTIONS)["probability"]["train"].numpy()
    own = MetadataForest(**OPTIONS).fit(tables["train"]).probabilities(tables["train"])
    label = tables["train"].label
    assert kappa_of(own, label) > kappa_of(honest, label) + 0.2
    check_out_of_fold(honest, own)
    with pytest.raises(SplitLeakError, match="in sample"):
        check_out_of_fold(own, own)
    with caplog.at_level(logging.WARNING):
        trap = forest_probabilities(tables, tmp_path, probabilities="in_sample", **OPTIONS)
    assert np.array_equal(trap["probability"]["train"].numpy(), own) and "IN SAMPLE" in caplog.text


def test_a_cache_of_in_sample_answers_is_refused(table, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "out_of_fold", lambda rows, options, folds: MetadataForest(**options).fit(rows).probabilities(rows)
    )
    with pytest.raises(SplitLeakError, match="probabilities=out_of_fold"):
        forest_probabilities(halves(table), tmp_path, **OPTIONS)


def test_the_second_call_fits_nothing_and_other_rows_or_options_do(table, tmp_path, monkeypatch):
    tables, fits = halves(table), []
    first = forest_probabilities(tables, tmp_path, **OPTIONS)
    plain = MetadataForest.fit
    monkeypatch.setattr(MetadataForest, "fit", lambda self, rows: (fits.append(1), plain(self, rows))[1])
    again = forest_probabilities(tables, tmp_path, **OPTIONS)
    assert not fits
    assert all(np.array_equal(first["probability"][n], again["probability"][n]) for n in tables)
    forest_probabilities(tables, tmp_path, **OPTIONS, min_samples_leaf=5)
    assert len(fits) == 6
    forest_probabilities({**tables, "train": tables["train"].subset(np.arange(60))}, tmp_path, **OPTIONS)
    assert len(fits) == 12


def test_a_damaged_cache_is_made_anew(table, tmp_path, caplog):
    tables = halves(table)
    first = forest_probabilities(tables, tmp_path, **OPTIONS)
    (path,) = (tmp_path / "fusion").glob("forest-*.pt")
    path.write_bytes(path.read_bytes()[:100])
    again = forest_probabilities(tables, tmp_path, **OPTIONS)
    assert "is damaged" in caplog.text
    assert np.array_equal(first["probability"]["train"], again["probability"]["train"])


def test_one_patient_has_no_out_of_fold(table, tmp_path):
    alone = table.subset(table.group == table.group[0])
    with pytest.raises(StagewiseError, match=r"patients of train|one class"):
        module.out_of_fold(alone, OPTIONS)
    with pytest.raises(StagewiseError, match="must be one of out_of_fold, in_sample"):
        forest_probabilities(halves(table), tmp_path, probabilities="both")
