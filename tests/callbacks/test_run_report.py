import csv

import pytest

from stagewise.callbacks import RunReport


@pytest.mark.parametrize(
    "often", [{"check_val_every_n_epoch": 2}, {"check_val_every_n_epoch": None, "val_check_interval": 8}]
)
def test_an_epoch_without_an_evaluation_has_no_row_of_val(tiny, tmp_path, often):
    columns = {"train_loss": "loss", "score": "score"}
    report = RunReport(str(tmp_path), "tiny", "val/score", "min", columns)
    tiny.fit(tmp_path, tiny.TinyModule([3.0, 2.0]), [report], max_epochs=5, **often)
    with open(tmp_path / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["split"] == "train"] == ["1", "2", "3", "4", "5"]
    assert [(row["epoch"], row["score"]) for row in rows if row["split"] == "val"] == [("2", "3.0"), ("4", "2.0")]
