"""Drains from end to end: train, evaluate, predict, export, on generated pictures."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image

from stagewise import evaluate, export, predict, train
from stagewise.datamodules.drains.vocabulary import CLASS_NAMES
from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.drains.export import (
    difference,
    example_batch,
    export_onnx,
    onnx_logits,
    quantise,
)

SMALL = [
    "experiment=drains_clip",
    "demo=drains",
    "datamodule.generated.pictures=40",
    "datamodule.generated.locations=6",
    "datamodule.image.px=32",
    "datamodule.rare.correction=oversample",
    "datamodule.rare.min_per_class=20",
    "lightning_module.captions.pairs=32",
    "lightning_module.captions.epochs=1",
    "lightning_module.captions.batch_size=16",
    "lightning_module.clip=ViT-B-32",
    "ends=[ln_post,proj]",
    "++lightning_module.network.clip.vision_cfg={layers:4,width:32,head_width:16,patch_size:16}",
    "lightning_module.network.clip.text_cfg={context_length:32,width:32,heads:2,layers:1}",
    "lightning_module.evaluation.trees=10",
    "optimizer.schedule.warmup_steps=2",
    "stages={top:{epochs:1},all:{epochs:1}}",
    "trainer.max_epochs=2",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=1",
    "+trainer.enable_progress_bar=false",
]


def run(folder: Path, *overrides: str) -> float | None:
    paths = [f"paths.checkpoints={folder}/runs", f"paths.data={folder}/data", f"paths.cache={folder}/cache"]
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return train.run(compose("train", [*SMALL, *paths, *overrides]))


def program(name: str, **options: object):
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose(name, [f"{key}={value}" for key, value in options.items()])
    return {"evaluate": evaluate, "export": export, "predict": predict}[name].run(cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drains")
    assert 0 <= run(folder) <= 1
    return folder


@pytest.fixture(scope="module")
def best(trained) -> Path:
    return trained / "runs" / "drains_clip" / "drains_clip_best.ckpt"


def test_a_run_ends_with_the_score_of_test_beside_its_baselines(best):
    folder = best.parent / "evaluation_test"
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in (
        "",
        "baseline/majority/",
        "baseline/majority_of_type/",
        "baseline/features_forest/",
        "baseline/zero_shot/",
    ):
        low, point, high = (metrics[f"test/{name}accuracy{end}"] for end in ("/ci_low", "", "/ci_high"))
        assert low <= point <= high
    assert 0 < metrics["test/whole_picture_ceiling"] < metrics["test/whole_picture_ceiling/type_known"] <= 1
    assert {"test/prompt/plain/accuracy", "test/prompt/position/accuracy"} <= set(metrics)
    assert metrics["test/prompt/position/accuracy"] == metrics["test/accuracy"]
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) > 500
    with (folder / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, prefix in (("network", ""), ("features_forest", "baseline/features_forest/")):
        right = [row[name] == row["truth"] for row in rows]
        assert sum(right) / len(rows) == pytest.approx(metrics[f"test/{prefix}accuracy"])


def test_the_checkpoint_is_safe_self_contained_and_knows_its_start(best):
    state = torch.load(best, weights_only=True)
    own = state["drains"]
    assert own["schema"]["classes"] == list(CLASS_NAMES) and own["metrics"]["test/objects"] > 0
    assert set(own["zero_shot"]) == {"val", "test"}
    assert not [name for name in state["state_dict"] if name.startswith("network.text")]  # the bank is enough


def test_evaluate_repeats_the_score_of_the_run(best, tmp_path, capsys):
    again = program("evaluate", checkpoint=best, output=tmp_path / "again", trainer="cpu", split="test")
    first = json.loads((best.parent / "evaluation_test" / "metrics.json").read_text())
    assert again["test/macro_f1"] == pytest.approx(first["test/macro_f1"], abs=1e-9)
    assert again["test/baseline/zero_shot/accuracy"] == first["test/baseline/zero_shot/accuracy"]
    assert "what the prompts say" in capsys.readouterr().out


@pytest.fixture(scope="module")
def served(trained, best, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    root = trained / "data" / "drains"
    (folder / "in").mkdir()
    for path in sorted((root / "images").glob("*.jpg"))[:3]:
        shutil.copy(path, folder / "in")
    (folder / "in" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    where = {"detections": root / "labels", "input": folder / "in", "output": folder / "out"}
    assert program("predict", checkpoint=best, **where) == 3
    return folder


def test_predict_survives_a_broken_picture_and_writes_everything(served):
    out = served / "out"
    assert {p.name for p in out.iterdir()} == {"pictures", "objects.json", "objects.csv", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pictures"] == 3 and list(summary["broken"]) == ["broken.jpg"]
    assert sum(summary["counts"].values()) == summary["objects"] > 0
    assert set(summary["seconds_a_picture"]) == {"read", "detect", "classify", "draw"}
    with (out / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    answers = json.loads((out / "objects.json").read_text())
    assert len(rows) == summary["objects"] == sum(len(one["objects"]) for one in answers)
    for one in answers:
        with Image.open(served / "in" / one["image"]) as before, Image.open(out / "pictures" / one["image"]) as after:
            assert before.size == after.size and before.tobytes() != after.tobytes()


def test_serving_answers_what_evaluation_answers(trained, best, served):
    """The same crops, the same prompts: nothing is done twice in two ways."""
    module = load_module(str(best))
    from hydra.utils import instantiate

    datamodule = instantiate(module.provenance["datamodule"])
    datamodule.adopt(module.schema)
    datamodule.setup("test")
    known = {}
    for split in datamodule.splits:
        table = datamodule.table(split)
        with torch.inference_mode():
            batches = [datamodule.on_after_batch_transfer(b, 0) for b in datamodule.split_dataloader(split)]
            said = torch.cat([module.network(b)["logits"].argmax(1) for b in batches])
        for row, k in enumerate(said.tolist()):
            known.setdefault(Path(table.paths[table.picture[row]]).name, []).append(CLASS_NAMES[k])
    for one in json.loads((served / "out" / "objects.json").read_text()):
        answered = [" ".join(filter(None, (o["type"], o["condition"]))) for o in one["objects"]]
        assert sorted(answered) == sorted(known.get(one["image"], []))


def test_predict_without_detections_says_what_to_pass(best, served, tmp_path):
    with pytest.raises(ValueError, match="pass detections="):
        program("predict", checkpoint=best, input=served / "in", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_exported_network_answers_as_the_trained_one(best, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    module, path = load_module(str(best)), tmp_path / "whole.onnx"
    assert export_onnx(module, path) < 1e-4
    quantise(path, tmp_path / "int8.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"whole.onnx", "int8.onnx"}
    assert (tmp_path / "int8.onnx").stat().st_size < path.stat().st_size
    batch = example_batch(module.schema, 6)
    whole, int8 = (onnx_logits(p, [batch]) for p in (path, tmp_path / "int8.onnx"))
    assert 1e-4 < difference(whole, int8) < 2.0
    assert ((whole > -1e3) == (int8 > -1e3)).all()  # a type keeps its classes


def test_export_writes_both_files_and_says_what_they_cost(best, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    text = program("export", checkpoint=best, output=tmp_path / "model.onnx", int8="true")
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.int8.onnx"}
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["PyTorch"][1:4] == rows["model.onnx"][1:4] and rows["model.onnx"][3] == "0.0%"
    assert float(rows["model.int8.onnx"][0]) < float(rows["model.onnx"][0])
    metrics = json.loads((best.parent / "evaluation_test" / "metrics.json").read_text())
    assert float(rows["model.onnx"][1]) == pytest.approx(metrics["test/accuracy"], abs=5e-4)
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"split": "field"}, {"output": "model.pt"}, {"datamodule.root": "nowhere"}])
def test_an_export_that_cannot_be_scored_or_named_writes_nothing(best, tmp_path, monkeypatch, wrong):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StagewiseError, match=r"splits: train|ends in \.onnx|pass datamodule\.root"):
        program("export", **{"checkpoint": best, "output": "model.onnx", **wrong})
    assert not list(tmp_path.iterdir())


def test_pictures_of_new_places_are_scored_without_baselines(trained, best, tmp_path, caplog):
    """Another embankment has no train split from which a baseline could be made."""
    other = shutil.copytree(trained / "data" / "drains", tmp_path / "other")
    table = (other / "locations.csv").read_text().splitlines()
    moved = [",".join(f"new {cell}" if i == 1 else cell for i, cell in enumerate(row.split(","))) for row in table[1:]]
    (other / "locations.csv").write_text("\n".join([table[0], *moved]) + "\n")
    options = {"datamodule.root": other, "split": "new", "trainer": "cpu", "output": tmp_path / "out"}
    metrics = program("evaluate", checkpoint=best, **options)
    assert 0 <= metrics["new/macro_f1/ci_low"] <= metrics["new/macro_f1"] and "no baselines" in caplog.text
    assert not [name for name in metrics if "baseline" in name]


def detections_of(root: Path, target: Path) -> Path:
    """The true boxes, but one object of each picture is missed and one detection is of nothing."""
    target.mkdir()
    for path in (root / "labels").glob("*.txt"):
        rows = path.read_text().splitlines()
        (target / path.name).write_text("\n".join([*rows[1:], "0 0.02 0.02 0.03 0.03"]) + "\n")
    shutil.copy(root / "data.yaml", target)
    return target


def test_end_to_end_a_missed_object_is_wrong_and_the_true_boxes_lose_nothing(trained, best, tmp_path, capsys):
    root = trained / "data" / "drains"
    options = {"checkpoint": best, "trainer": "cpu", "output": tmp_path / "out"}
    true = program("evaluate", **options, **{"detections": root / "labels"})
    assert true["test/end_to_end/found"] == 1.0 and true["test/end_to_end/false_a_picture"] == 0.0
    for name in ("accuracy", "macro_f1", "recall/slope_drain_blocked"):
        assert true[f"test/end_to_end/{name}"] == pytest.approx(true[f"test/{name}"], abs=0.02)
    assert (tmp_path / "out" / "confusion_end_to_end.png").is_file()
    capsys.readouterr()
    missed = program("evaluate", **options, **{"detections": detections_of(root, tmp_path / "found")})
    share = 1 - missed["test/pictures"] / missed["test/objects"]
    assert missed["test/end_to_end/found"] == pytest.approx(share, abs=0.02)
    assert missed["test/end_to_end/false_a_picture"] == pytest.approx(1.0, abs=0.1)
    assert missed["test/end_to_end/accuracy"] < true["test/end_to_end/accuracy"]
    assert missed["test/accuracy"] == true["test/accuracy"]
    assert "end to end: " in capsys.readouterr().out
