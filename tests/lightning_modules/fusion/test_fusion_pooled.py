import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from stagewise.datamodules.errors import DatasetNotFoundError, StagewiseError
from stagewise.lightning_modules.fusion.pooled import pool_runs
from stagewise.lightning_modules.fusion.row_file import read_rows, write_rows

CLASSES = ["L", "M", "H"]


def write_run(folder, fold, rows=30, prefix="", patients="", modalities=("metadata", "image", "fusion")):
    rng = np.random.default_rng(fold)
    label = rng.integers(0, 3, rows)
    answers = {
        name: np.exp((1 + k) * np.eye(3)[label] + rng.normal(size=(rows, 3))) for k, name in enumerate(modalities)
    }
    answers = {name: p / p.sum(1, keepdims=True) for name, p in answers.items()}
    rules = {"average": answers["fusion"], "tuned": answers["fusion"][:, ::-1]} if "fusion" in answers else {}
    ids = np.array([f"{prefix}{fold}-{i}" for i in range(rows)])
    group = np.array([f"{patients or fold}-{i // 3}" for i in range(rows)])
    target = folder / f"run{fold}" / "evaluation_test"
    target.mkdir(parents=True)
    rows = {"ids": ids, "group": group, "label": label}
    write_rows(target / "rows.csv", rows, answers, CLASSES, fold, "test", rules)
    (target / "metrics.json").write_text(json.dumps({"test/train_rows": 60.0}))
    return str(target.parent), label, answers


def test_the_pooled_kappa_is_that_of_all_rows_together(tmp_path):
    runs = [write_run(tmp_path, fold) for fold in range(3)]
    metrics, text = pool_runs([run[0] for run in runs], str(tmp_path / "out"), draws=50)
    label = np.concatenate([run[1] for run in runs])
    for name in ("metadata", "image", "fusion"):
        answer = np.concatenate([run[2][name].argmax(1) for run in runs])
        assert metrics[f"pooled/{name}/kappa"] == pytest.approx(cohen_kappa_score(label, answer))
        each = [cohen_kappa_score(run[1], run[2][name].argmax(1)) for run in runs]
        assert metrics[f"pooled/fold/{name}/kappa/mean"] == pytest.approx(np.mean(each))
        assert metrics[f"pooled/fold/{name}/kappa/sd"] == pytest.approx(np.std(each, ddof=1))
    assert metrics["pooled/rows"] == 90 and metrics["pooled/patients"] == 30
    assert 0 < metrics["pooled/fold/lead/best_single/kappa/p"] <= 1
    assert "test rows of 3 folds: 90 rows of 30 patients" in text and "mean (sd)" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"confusion_fusion.png", "reliability.png", "modalities.png"}
    assert written >= {"pooled_rows.csv", "pooled.json", "pooled.txt", *pictures}
    assert len((tmp_path / "out" / "pooled_rows.csv").read_text().splitlines()) == 91


def test_each_rule_is_pooled_with_its_lead_over_the_single_modalities(tmp_path):
    runs = [write_run(tmp_path, fold) for fold in range(2)]
    metrics, text = pool_runs([run[0] for run in runs], str(tmp_path / "out"), draws=50)
    label = np.concatenate([run[1] for run in runs])
    said = {name: np.concatenate([run[2][name] for run in runs]).argmax(1) for name in ("metadata", "image", "fusion")}
    kappa = {name: cohen_kappa_score(label, answer) for name, answer in {**said, "tuned": 2 - said["fusion"]}.items()}
    assert metrics["pooled/rule/tuned/kappa"] == pytest.approx(kappa["tuned"])
    for single, best in (("metadata", "metadata"), ("best_single", max(("metadata", "image"), key=kappa.get))):
        lead = f"pooled/rule/tuned/lead/{single}/kappa"
        assert metrics[lead] == pytest.approx(kappa["tuned"] - kappa[best])
        assert metrics[f"{lead}/ci_low"] < metrics[lead] < metrics[f"{lead}/ci_high"]
    rule, model = ("pooled/rule/average/lead/metadata/kappa", "pooled/lead/metadata/kappa")
    assert (
        all(metrics[f"{rule}{end}"] == metrics[f"{model}{end}"] for end in ("", "/se", "/p")) and metrics[f"{rule}/se"]
    )
    assert "pooled/kappa" in metrics and metrics["pooled/kappa"] == pytest.approx(kappa["fusion"])
    assert "under each rule" in text and "rule/tuned:L" in (tmp_path / "out" / "pooled_rows.csv").read_text()


def test_rows_come_back_as_they_were_written(tmp_path):
    _, label, answers = write_run(tmp_path, 2)
    found = read_rows(tmp_path / "run2" / "evaluation_test" / "rows.csv")
    assert found.classes == tuple(CLASSES) and list(found.answers) == list(answers)
    assert np.array_equal(found.label, label) and set(found.fold) == {"2"}
    assert all(np.allclose(found.answers[name], p, atol=1e-6) for name, p in answers.items())
    assert list(found.rules) == ["average", "tuned"]
    assert np.allclose(found.rules["tuned"], answers["fusion"][:, ::-1], atol=1e-6)


def test_runs_that_are_no_folds_of_one_model_are_refused(tmp_path):
    first = write_run(tmp_path / "a", 0)[0]
    out = str(tmp_path / "out")
    with pytest.raises(StagewiseError, match="row '0-0' was tested by two"):
        pool_runs([first, write_run(tmp_path / "b", 0)[0]], out)
    with pytest.raises(StagewiseError, match="a patient's rows were tested by two"):
        pool_runs([first, write_run(tmp_path / "c", 1, patients="0")[0]], out)
    with pytest.raises(StagewiseError, match="another modality"):
        pool_runs([first, write_run(tmp_path / "d", 1, modalities=("metadata",))[0]], out)
    with pytest.raises(DatasetNotFoundError, match="no evaluation of its test rows"):
        pool_runs([first, str(tmp_path / "nowhere")], out)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StagewiseError, match=r"is no rows\.csv"):
        read_rows(tmp_path / "other.csv")
