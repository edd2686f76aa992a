import csv
import json
import shutil

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import CheckpointError, StagewiseError
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.fusion.answers import answer
from stagewise.lightning_modules.fusion.forest import MetadataForest
from stagewise.lightning_modules.fusion.scores import kappa_of


def test_a_random_head_is_refused_unless_it_is_asked_for(clinic, caplog):
    with pytest.raises(StagewiseError, match=r"random head.*modality=image"):
        clinic.train(clinic.module(), "refused")
    run = clinic.train(clinic.module(allow_random_head=True), "random")
    assert run.path and "never trained" in caplog.text


def test_the_fusion_starts_as_the_image_run_ended(clinic, image_run, fusion_run):
    trained = torch.load(image_run.path, weights_only=True)["state_dict"]
    alone = fusion_run.module.alone
    assert len(alone) > 50 and {f"network.picture.{name}" for name in alone} <= set(trained)
    assert all(torch.equal(value, trained[f"network.picture.{name}"]) for name, value in alone.items())


def test_a_branch_of_another_fold_is_refused(clinic, image_run):
    with pytest.raises(CheckpointError, match=r"other splits, fold than this run"):
        clinic.train(clinic.module(image_from=image_run.path), "other_fold", fold=1)


def test_the_checkpoint_needs_no_data_and_answers_the_same(fusion_run, tmp_path):
    alone = tmp_path / "moved.ckpt"
    shutil.copy(fusion_run.path, alone)
    module = load_module(str(alone))
    for split in ("train", "val", "test"):
        ours, theirs = (answer(one, fusion_run.data, split) for one in (module, fusion_run.module))
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ("metadata", "alone"))
    test = answer(module, fusion_run.data, "test")
    assert np.allclose(test["probability"].sum(1), 1, atol=1e-5)
    assert len(test["label"]) == len(fusion_run.data.table("test"))


def test_train_rows_keep_their_out_of_fold_answers_in_the_checkpoint(fusion_run):
    module, table = load_module(fusion_run.path), fusion_run.data.table("train")
    honest = module.metadata_of("train", table).numpy()
    own = MetadataForest.from_state(module.forest["state"]).probabilities(table)
    assert kappa_of(own, table.label) > kappa_of(honest, table.label) + 0.1
    shuffled = table.subset(np.arange(len(table))[::-1])
    assert np.array_equal(module.metadata_of("train", shuffled).numpy(), honest[::-1])


def test_each_row_weighs_once_and_its_pictures_are_averaged(fusion_run):
    data, module = fusion_run.data, fusion_run.module.eval()
    table = data.table("val")
    several = next(i for i, own in enumerate(table.pictures) if len(own) > 1)
    dataset = data.dataset("val")
    items = [dataset[int(k)] for k in np.flatnonzero(dataset.row_of_item == several)]
    image = data.on_after_batch_transfer({"image": torch.stack([one["image"] for one in items])}, 0)["image"]
    with torch.inference_mode():
        mean = module.network.picture(image)["probability"].mean(0).numpy()
    rows = answer(module, data, "val")
    assert np.allclose(rows["picture"][several], mean, atol=1e-5)
    assert np.allclose(rows["probability"][several], 0.7 * rows["metadata"][several] + 0.3 * mean, atol=1e-5)


def test_what_is_logged_of_val_is_that_of_its_rows(clinic, fusion_run):
    module = load_module(fusion_run.path)
    fusion_run.trainer.validate(module, datamodule=fusion_run.data, verbose=False)
    logged, rows = fusion_run.trainer.callback_metrics, answer(module, fusion_run.data, "val")
    assert float(logged["val/kappa"]) == pytest.approx(kappa_of(rows["probability"], rows["label"]), abs=1e-6)
    assert {f"val/{n}" for n in ("kappa_quadratic", "accuracy", "macro_f1", "log_loss", "loss")} <= set(logged)
    assert int(module.val_confusion.compute().sum()) == len(fusion_run.data.table("val"))
    assert module.class_names == ["inflammatory", "proliferative", "remodeling"]


def test_a_frozen_stage_gives_no_loss_and_moves_nothing(clinic, image_run):
    module = clinic.module(image_from=image_run.path)
    module.on_fit_start = lambda: module.requires_grad_(False)
    clinic.train(module, "frozen")
    assert all(torch.equal(value, module.alone[name]) for name, value in module.network.picture.state_dict().items())


def test_metadata_alone_has_no_optimizer_and_scores_the_forest(clinic):
    module = clinic.module(modality="metadata")
    run = clinic.train(module, "metadata")
    assert module.configure_optimizers() is None
    table = run.data.table("val")
    expected = kappa_of(module.metadata["val"].numpy(), table.label)
    assert float(run.trainer.callback_metrics["val/kappa"]) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["tuned", "stacking"])
def test_a_fitted_rule_learns_from_val_and_travels_in_the_checkpoint(clinic, image_run, kind):
    module = clinic.module(image_from=image_run.path, rule={"kind": kind})
    run = clinic.train(module, kind)
    found = load_module(run.path)
    weight = found.network.rule.weight if kind == "tuned" else found.network.rule.bias
    assert not torch.allclose(weight, torch.tensor([0.7, 0.3]) if kind == "tuned" else torch.zeros(3))
    rows = answer(found, run.data, "val")
    fused = found.network.fuse(*(torch.from_numpy(rows[name]) for name in ("metadata", "picture"))).detach().numpy()
    if kind == "stacking":  # val is answered by rules that did not see the patient
        assert not np.allclose(rows["probability"], fused)
    rows = answer(found, run.data, "test")
    fused = found.network.fuse(*(torch.from_numpy(rows[name]) for name in ("metadata", "picture"))).detach().numpy()
    assert np.allclose(rows["probability"], fused, atol=1e-6)


def test_concatenation_trains_its_head(clinic, image_run):
    module = clinic.module(image_from=image_run.path, rule={"kind": "concat"})
    clinic.train(module, "concat")
    assert module.network.rule.linear.weight[:, 3:].abs().sum() > 0


def test_the_evaluation_writes_everything(fusion_run):
    folder = fusion_run.folder / "evaluation_test"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"rows.csv", "metrics.json", "reliability.png", "modalities.png", "confusion_fusion.png"}
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("kappa", "kappa_quadratic", "ece", "metadata/kappa", "image/kappa", "fusion/kappa", "gap/kappa"):
        assert f"test/{name}" in metrics
    assert {f"test/rule/{kind}/kappa" for kind in ("average", "tuned", "stacking")} <= set(metrics)
    for own in ("kappa", "kappa/ci_low", "lead/metadata/kappa", "lead/best_single/kappa/se"):  # the rule of this model
        assert metrics[f"test/rule/average/{own}"] == pytest.approx(metrics[f"test/{own}"])
    assert metrics["test/baseline/majority/kappa"] == pytest.approx(0.0)
    assert {"test/lead/best_single/kappa/ci_low", "test/lead/best_single/kappa/p"} <= set(metrics)
    with (folder / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = fusion_run.data.table("test")
    assert [row["id"] for row in rows] == table.ids.tolist()
    assert all(row["rule/average:answer"] == row["fusion:answer"] for row in rows)
    assert [row["label"] for row in rows] == [table.classes[k] for k in table.label]
    kappa = kappa_of(np.array([[float(row[f"fusion:{c}"]) for c in table.classes] for row in rows]), table.label)
    assert kappa == pytest.approx(metrics["test/kappa"])
    assert load_module(fusion_run.path).metrics["test/kappa"] == pytest.approx(kappa)


def test_evaluating_the_checkpoint_gives_the_same_figures(clinic, fusion_run, tmp_path):
    metrics, text = load_module(fusion_run.path).evaluate(clinic.data(), fusion_run.trainer, "test", str(tmp_path))
    stored = load_module(fusion_run.path).metrics
    assert {name: metrics[name] for name in ("test/kappa", "test/image/kappa")} == {
        name: pytest.approx(stored[name]) for name in ("test/kappa", "test/image/kappa")
    }
    assert "best single" in text and "under each rule" in text and "gap" in text


def test_the_picture_alone_is_scored_as_it_was_before_the_fusion_moved_it(fusion_run, image_run):
    rows, image = answer(fusion_run.module, fusion_run.data, "test"), load_module(image_run.path)
    before = answer(image, fusion_run.data, "test")
    assert np.allclose(rows["alone"], before["picture"], atol=1e-5, equal_nan=True)
    assert not np.allclose(rows["alone"], rows["picture"], atol=1e-5, equal_nan=True)


def test_a_checkpoint_of_another_task_or_data_is_refused(fusion_run):
    module = load_module(fusion_run.path)
    checkpoint = torch.load(fusion_run.path, weights_only=True)
    with pytest.raises(CheckpointError, match="not one of FusionModule"):
        module.on_load_checkpoint({"state_dict": {}})
    checkpoint["fusion"]["schema"]["key"] = "another"
    with pytest.raises(CheckpointError, match="key are not those of this run"):
        module.on_load_checkpoint(checkpoint)


def test_without_an_optimizer_nothing_is_trained(clinic):
    module = clinic.module(allow_random_head=True)
    module.optimizer = None
    with pytest.raises(StagewiseError, match="GroupedOptimizer"):
        clinic.train(module, "no_optimizer")
