"""Fusion from end to end: forest, pictures alone, both stages, folds, evaluation and prediction on a generated clinic."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException

from stagewise import evaluate, predict, train
from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules import FusionModule
from stagewise.lightning_modules.fusion.forest import MetadataForest

SMALL = [
    "experiment=fusion_v5",
    "demo=fusion",
    "datamodule.generated.patients=45",
    "datamodule.image.px=32",
    "lightning_module.branch={name:test_resnet,model:null}",
    "lightning_module.forest.trees=10",
    "lightning_module.evaluation.draws=50",
    "plans.image.epochs=1",
    "plans.fusion.stages.open.epochs=1",
    "+trainer.enable_progress_bar=false",
]


def run(folder: Path, *overrides: str) -> float | None:
    paths = [f"paths.checkpoints={folder}/runs", f"paths.data={folder}/data", f"paths.cache={folder}/cache"]
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return train.run(compose("train", [*SMALL, *paths, *overrides]))


def program(name: str, **options: object):
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose(name, [f"{key}={value}" for key, value in options.items()])
    return {"evaluate": evaluate, "predict": predict}[name].run(cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fusion")
    assert -1 <= run(folder) <= 1
    return folder


@pytest.fixture(scope="module")
def best(trained) -> Path:
    return trained / "runs" / "fusion_v5" / "fusion_v5_best.ckpt"


def test_a_run_trains_the_pictures_first_and_then_two_stages(trained, best):
    (alone,) = (trained / "runs" / "fusion_image").glob("*/summary.json")
    assert json.loads(alone.read_text())["stopped_by"].startswith("epochs: stage 'alone'")
    assert not (alone.parent / "evaluation_test").exists()  # the fusion scores the pictures, on the same rows
    losses = [row["loss_total"] for row in csv.DictReader((alone.parent / "losses.csv").open())]
    assert len(losses) == 2 and all(0 < float(loss) < 10 for loss in losses)  # train and val
    frozen, opened = json.loads((best.parent / "stages" / "stages.json").read_text())["stages"]
    assert (frozen["outcome"], frozen["trainable"], frozen["epochs"]) == ("evaluated", 0, 0)
    assert opened["trainable"] > 1000 and opened["epochs"] == 1
    assert opened["outcome"] == ("kept" if opened["gain"] > 0 else "rolled back")


def test_the_report_has_every_modality_on_the_same_rows(best):
    folder = best.parent / "evaluation_test"
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("metadata", "image", "fusion"):
        assert (
            metrics[f"test/{name}/kappa/ci_low"]
            <= metrics[f"test/{name}/kappa"]
            <= metrics[f"test/{name}/kappa/ci_high"]
        )
    rows = list(csv.DictReader((folder / "rows.csv").open()))
    assert len(rows) == metrics["test/rows"] and {"id", "group", "label"} <= set(rows[0])
    assert len(list(folder.glob("*.png"))) >= 3


def test_pictures_and_forests_are_trained_once_for_several_fusions(trained, monkeypatch):
    monkeypatch.setattr(MetadataForest, "fit", lambda *_: pytest.fail("a forest was fitted again"))
    before = {path: path.stat().st_mtime_ns for path in (trained / "runs" / "fusion_image").rglob("*_best.ckpt")}
    run(trained, "rule=stacking", "name=stacked")
    run(trained, "rule=concat", "name=joined", "plans.fusion.stages.frozen.epochs=1")
    assert before == {
        path: path.stat().st_mtime_ns for path in (trained / "runs" / "fusion_image").rglob("*_best.ckpt")
    }
    stages = json.loads((trained / "runs" / "joined" / "stages" / "stages.json").read_text())["stages"]
    assert [row["epochs"] for row in stages] == [1, 1] and 0 < stages[0]["trainable"] < stages[1]["trainable"]


def test_metadata_alone_is_one_evaluation(trained):
    run(trained, "lightning_module.modality=metadata")
    folder = trained / "runs" / "fusion_metadata"
    (only,) = json.loads((folder / "stages" / "stages.json").read_text())["stages"]
    assert (only["outcome"], only["trainable"]) == ("evaluated", 0)
    both = json.loads((trained / "runs" / "fusion_v5" / "evaluation_test" / "metrics.json").read_text())
    alone = json.loads((folder / "evaluation_test" / "metrics.json").read_text())
    assert alone["test/kappa"] == pytest.approx(both["test/metadata/kappa"])


def test_a_branch_of_another_fold_is_refused(trained, tmp_path):
    (branch,) = (trained / "runs" / "fusion_image").glob("*/fusion_image_best.ckpt")
    with pytest.raises(StagewiseError, match="fold"):
        run(trained, f"start_from={branch}", "datamodule.fold=1", f"run_dir={tmp_path}/other")


def test_evaluate_repeats_the_score_of_the_run(best, tmp_path):
    metrics = program("evaluate", checkpoint=best, output=tmp_path)
    again = json.loads((best.parent / "evaluation_test" / "metrics.json").read_text())
    assert metrics["test/fusion/kappa"] == pytest.approx(again["test/fusion/kappa"])


def test_predict_answers_rows_without_a_picture_and_says_so(trained, best, tmp_path):
    source = next((trained / "data").rglob("metadata.csv"))
    rows = list(csv.DictReader(source.open()))[:6]
    rows[0]["image"] = ""
    new = source.parent / "new.csv"
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, [key for key in rows[0] if key not in ("label", "patient_id")], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    assert program("predict", checkpoint=best, input=new, output=tmp_path) == 6
    answers = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert answers[0]["used"] == "metadata" and {row["id"] for row in answers} == {row["id"] for row in rows}


def test_the_last_lines_say_what_each_stage_reached(trained, caplog):
    run(trained, "name=again")
    assert caplog.messages[-1].startswith("stages by val/kappa: frozen ") and ", open " in caplog.messages[-1]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lightning_module.rule.weights=[0.7,0.5]", "sum to 1"),
        ("lightning_module.modality=thermal", "modality must be one of fusion, metadata, image"),
        ("resume=nowhere.ckpt", "resume='nowhere.ckpt'"),
        ("start_from=nowhere.ckpt", "start_from='nowhere.ckpt'; pass a file, or leave it out"),
    ],
)
def test_what_cannot_work_is_refused_before_the_pictures_are_trained(tmp_path, override, words):
    with pytest.raises((InstantiationException, FileNotFoundError), match=words):
        run(tmp_path, override)
    assert not (tmp_path / "runs").exists()


def test_an_option_of_another_task_is_refused(best, tmp_path):
    with pytest.raises(ValueError, match=r"options\.most_maps means nothing to this checkpoint; it takes limit"):
        program("predict", checkpoint=best, input="new.csv", output=tmp_path, **{"options.most_maps": 3})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The best weights, and the optimizer's moments after the last step."""
    best = torch.load(next(folder.glob("*_best.ckpt")), weights_only=True)
    moments = torch.load(folder / "resume.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return best["state_dict"] | {f"{key}.{name}": value for key, own in moments.items() for name, value in own.items()}


@pytest.mark.parametrize("modality", ["fusion", "image"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, tmp_path, monkeypatch, modality):
    stopped, step = [], FusionModule.training_step

    def stop(self, batch, batch_idx):
        if self.hparams["modality"] == modality and batch_idx == 1 and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FusionModule, "training_step", stop)
    own = ["name=stopped"] if modality == "fusion" else [f"paths.checkpoints={tmp_path}"]
    with pytest.raises(SystemExit, match="preempted"):
        run(trained, *own)
    run(trained, *own, "resume=auto")
    whole = trained / "runs" / "fusion_v5"
    again = whole.with_name("stopped") if modality == "fusion" else tmp_path / "fusion_v5"
    for name in ("losses.csv", "evaluation_test/metrics.json", "evaluation_test/rows.csv"):
        assert (again / name).read_text() == (whole / name).read_text()
    expected, found = weights_of(whole), weights_of(again)
    assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())
