import csv
import logging

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


def test_a_run_that_fails_closes_its_log(tiny, tmp_path):
    module = tiny.TinyModule([3.0])
    module.training_step = lambda *batch: 1 / 0
    report = RunReport(str(tmp_path), "tiny", "val/score", "min", {"score": "score"}, logger_name="stagewise.test")
    with pytest.raises(ZeroDivisionError):
        tiny.fit(tmp_path, module, [report])
    logging.getLogger("stagewise.test").info("of the next run")
    assert (tmp_path / "log.txt").read_text() == ""
