import pytest
import torch
from lightning import Callback

from stagewise.datamodules.errors import CheckpointError, StagewiseError
from stagewise.lightning_modules import GeolocationModule, load_module
from stagewise.lightning_modules.geolocation import decoding


def built(tiny, **options):
    module = tiny.module(**options)
    module.build(tiny.geography(), load=True)
    return module


def freeze(module):
    module.network.clip.requires_grad_(False)
    module.network.scene.requires_grad_(False)
    return module


# --- the objective ---


def test_the_total_is_the_weighted_sum_of_the_four_losses(tiny, batch):
    weights = {"province": 0.5, "cell": 2.0, "offset": 0.25, "aux": 0.1}
    module = built(tiny, loss={"weights": weights}).eval()
    parts = module.losses_of(batch, module.network(batch))
    assert set(parts) == {"total", *weights}
    expected = sum(w * parts[name].item() for name, w in weights.items())
    assert parts["total"].item() == pytest.approx(expected, rel=1e-5)


def test_the_weights_are_those_of_the_recipe_by_default(tiny):
    assert tiny.module().loss_weights == {"province": 0.5, "cell": 1.0, "offset": 1.0, "aux": 0.1}
    assert tiny.module(loss={"weights": {"offset": 0.2}}).loss_weights["province"] == 0.5


HEAD_OF = {"province": "region_head", "cell": "cell_heads", "offset": "offset_head", "aux": "aux_head"}


@pytest.mark.parametrize("off", list(HEAD_OF))
def test_a_loss_of_weight_zero_gives_no_gradient_but_is_recorded(tiny, batch, off):
    module = freeze(built(tiny, loss={"weights": {off: 0.0}}))
    parts = module.losses_of(batch, module.network(batch))
    parts["total"].backward()
    for name, head in HEAD_OF.items():
        grads = [p.grad for p in getattr(module.network, head).parameters()]
        assert all(g is None for g in grads) == (name == off)
    assert parts[off].item() > 0


def test_a_weight_that_a_ramp_changes_counts_in_the_next_step(tiny, batch):
    module = built(tiny).eval()
    module.loss_weights["offset"] = 0.0
    without = module.losses_of(batch, module.network(batch))
    module.loss_weights["offset"] = 0.6
    parts = module.losses_of(batch, module.network(batch))
    assert (parts["total"] - without["total"]).item() == pytest.approx(0.6 * parts["offset"].item(), rel=1e-4)


def test_the_offset_loss_is_measured_from_the_true_cells_centre(tiny, batch):
    module = built(tiny, loss={"km": {"shape": "linear", "scale_km": 1.0}}).eval()
    truth = module.network.locate(module.network(batch)["embedding"], batch["cell"]).detach()
    exact = {**batch, "lat_lon_deg": truth}
    assert module.losses_of(exact, module.network(exact))["offset"].item() == pytest.approx(0, abs=0.01)


def test_class_weights_are_an_option_and_not_on_top_of_the_sampler(tiny):
    assert torch.equal(built(tiny).objective.class_weights, torch.ones(3))
    weighted = built(tiny, loss={"balance": "weights", "beta": 0.9}).objective.class_weights
    assert weighted[2] > weighted[1] > weighted[0]


def test_an_unknown_loss_or_balance_is_refused(tiny):
    with pytest.raises(StagewiseError, match=r"unknown key\(s\) \['ofset'\]; known: province, cell, offset, aux"):
        tiny.module(loss={"weights": {"ofset": 1.0}})
    with pytest.raises(StagewiseError, match="'sampler' or 'weights', got 'both'"):
        built(tiny, loss={"balance": "both"})


def test_a_module_without_an_optimizer_says_so(tiny):
    with pytest.raises(StagewiseError, match="optimizer=GroupedOptimizer"):
        GeolocationModule().configure_optimizers()


# --- end to end, not teacher-forced ---


def answering(module, shift):
    """Makes the region head answer the true region moved by ``shift``, and the cell heads the true cell."""
    forward = module.network.forward

    def answer(batch):
        out = forward(batch)
        one_hot = torch.nn.functional.one_hot
        region = (batch["label"] + shift) % 3
        cells = 30.0 * one_hot(module.network.cell_slot[batch["cell"]], 4).float()
        cells = cells.unsqueeze(1).expand(-1, 3, -1).masked_fill(module.network.cell_at < 0, -1e4)
        return out | {"region_logits": 30.0 * one_hot(region, 3).float(), "cell_logits": cells}

    module.network.forward = answer
    return module


@pytest.mark.parametrize("rule", ["best", "auto"])
def test_a_wrong_region_costs_in_val_median_although_the_true_cell_is_known(tiny, country, rule):
    module = built(tiny, decode={"rule": rule})
    metrics = tiny.trainer().validate(answering(module, 1), datamodule=tiny.data(country), verbose=False)[0]
    assert metrics["val/province_accuracy"] == 0
    assert metrics["val/median_km"] > 400
    assert metrics["val/oracle_cell_median_km"] < 25
    assert metrics["val/oracle_province_median_km"] < 25


def test_right_answers_give_the_old_figure(tiny, country):
    module = answering(built(tiny), 0)
    metrics = tiny.trainer().validate(module, datamodule=tiny.data(country), verbose=False)[0]
    assert metrics["val/province_accuracy"] == metrics["val/cell_top1_accuracy"] == 1
    assert metrics["val/median_km"] == pytest.approx(metrics["val/oracle_cell_median_km"], rel=0.2)
    assert metrics["val/rows"] == 18


# --- a fit ---


def test_a_fit_logs_every_figure(fitted):
    for split in ("train", "val"):
        for name in (
            "loss",
            "loss_province",
            "loss_geocell",
            "loss_offset",
            "loss_aux",
            "median_km",
            "mean_km",
            "p90_km",
        ):
            assert fitted.metrics[f"{split}/{name}"] >= 0
        for region in ("coast", "plain", "gilgit_baltistan"):
            assert 0 <= fitted.metrics[f"{split}/accuracy/{region}"] <= 1
    assert {"val/aux_median_km", "val/centre_only_median_km", "val/ece", "val/cell_top5_accuracy"} <= set(
        fitted.metrics
    )


def test_a_fit_starts_from_the_files_of_the_encoders(fitted):
    clip, scene = fitted.encoders
    assert all(torch.equal(fitted.weights[f"network.clip.{k}"], v) for k, v in clip.items())
    assert all(torch.equal(fitted.weights[f"network.scene.{k}"], v) for k, v in scene.items())


def test_a_checkpoint_needs_nothing_else_and_answers_the_same(fitted, pictures):
    loaded = GeolocationModule.load_from_checkpoint(fitted.path, weights_only=True).eval()
    assert loaded.predict_images(pictures) == fitted.answers
    assert all(torch.equal(v, fitted.weights[k]) for k, v in loaded.state_dict().items())
    assert load_module(str(fitted.path)).predict_images(pictures) == fitted.answers
    assert not load_module(str(fitted.path)).training


def test_a_checkpoint_holds_what_it_was_trained_with(fitted, tiny):
    content = torch.load(fitted.path, weights_only=True)
    state = content["geolocation"]
    assert state["geography"]["region_names"] == tiny.NAMES
    assert state["geography"]["cells"]["cell_id"] == tiny.geography()["cells"]["cell_id"]
    assert state["geography"]["count"] == [24, 16, 8]
    assert state["calibration"] == fitted.calibration and state["calibration"]["rule"] != "auto"
    assert state["metrics"]["val/median_km"] == pytest.approx(fitted.metrics["val/median_km"])
    assert state["start_from"] is None
    assert len(state["bank"]["cell"]) == 48
    assert content["provenance"]["module"] == "GeolocationModule"
    assert content["provenance"]["experiment"] == "phase0"
    normalisation = [k for k in content["state_dict"] if k.endswith(("_mean", "_std"))]
    assert {k.split(".")[-1] for k in normalisation} >= {"clip_mean", "clip_std", "scene_mean", "scene_std"}


def test_answers_have_coordinates_hypotheses_and_a_radius(fitted, tiny, pictures):
    for answer, path in zip(fitted.answers, pictures):
        assert answer["image"] == str(path) and answer["province"] in tiny.NAMES
        assert 20 < answer["latitude"] < 40 and 60 < answer["longitude"] < 80 and answer["radius_90_km"] > 0
        chances = [h["probability"] for h in answer["hypotheses"]]
        assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1, abs=1e-4)
        assert min(chances) > 0 and len(chances) <= 8
        cells = [h["cell_id"] for h in answer["hypotheses"]]
        assert len(set(cells)) == len(cells) and set(cells) <= set(range(100, 109))


def test_val_fits_the_calibration_and_test_leaves_it_alone(tiny, country):
    module, data = built(tiny), tiny.data(country)
    assert module.calibration["temperature"] == 1.0
    trainer = tiny.trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    fitted = dict(module.calibration)
    assert fitted["temperature"] != 1.0 and fitted["radius_factor"] != 1.0
    metrics = trainer.test(module, datamodule=data, verbose=False)[0]
    assert module.calibration == fitted
    assert "test/median_km" in metrics and not any(k.startswith("val/") for k in metrics)


# --- starting from an earlier phase ---


class StopBeforeTraining(Callback):
    def on_fit_start(self, trainer, pl_module):
        self.weights = {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.provenance, self.bank = dict(pl_module.provenance), pl_module.bank

    def on_train_start(self, trainer, pl_module):
        trainer.should_stop = True


def start(tiny, root, path, **options):
    seen = StopBeforeTraining()
    module = tiny.module(seed=11, start_from=str(path), **options)
    module.provenance = {"experiment": "phase1"}
    tiny.trainer(seen, limit_train_batches=0).fit(module, datamodule=tiny.data(root))
    return module, seen


def test_a_phase_starts_from_every_tensor_of_the_one_before_and_keeps_its_own_name(fitted, tiny, country):
    module, seen = start(tiny, country, fitted.path)
    assert seen.weights.keys() == fitted.weights.keys()
    assert all(torch.equal(v, fitted.weights[k]) for k, v in seen.weights.items())
    assert seen.provenance == {"experiment": "phase1"}
    assert module.hparams["start_from"] == str(fitted.path)
    assert seen.bank is None  # this run decodes without retrieval


def test_a_phase_records_where_it_started_from(fitted, tiny, country, tmp_path):
    module = tiny.module(start_from=str(fitted.path))
    trainer = tiny.trainer(limit_train_batches=1)
    trainer.fit(module, datamodule=tiny.data(country))
    trainer.save_checkpoint(tmp_path / "phase1.ckpt")
    assert torch.load(tmp_path / "phase1.ckpt", weights_only=True)["geolocation"]["start_from"] == str(fitted.path)
    load_module(str(tmp_path / "phase1.ckpt"))


def edited(path, target, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, target)
    return target


def other_regions(content):
    content["geolocation"]["geography"]["region_names"] = ["Coast", "Desert", "Gilgit-Baltistan"]


def fewer_cells(content):
    cells = content["geolocation"]["geography"]["cells"]
    content["geolocation"]["geography"]["cells"] = {k: v[:-1] for k, v in cells.items()}


def moved_cells(content):
    content["geolocation"]["geography"]["cells"]["centre_deg"][0][0] += 0.5


def without_a_tensor(content):
    del content["state_dict"]["network.gate.weight"]


def with_another_shape(content):
    content["state_dict"]["network.gate.weight"] = torch.zeros(1, 3)


def of_another_task(content):
    del content["geolocation"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_regions, "Desert"),
        (fewer_cells, "geocells"),
        (moved_cells, "geocells"),
        (without_a_tensor, "network.gate.weight"),
        (with_another_shape, "network.gate.weight"),
        (of_another_task, "not one of GeolocationModule"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(fitted, tiny, country, tmp_path, change, words):
    path = edited(fitted.path, tmp_path / "other.ckpt", change)
    with pytest.raises(CheckpointError, match=words) as caught:
        start(tiny, country, path)
    assert str(path) in str(caught.value) and "cannot start from" in str(caught.value)


def test_starting_from_no_file_or_half_a_file_is_refused(fitted, tiny, country, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at '.*nowhere\.ckpt'"):
        start(tiny, country, tmp_path / "nowhere.ckpt")
    half = tmp_path / "half.ckpt"
    half.write_bytes(fitted.path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        start(tiny, country, half)


# --- open encoders ---


def test_opening_an_encoder_while_features_are_cached_is_refused(tiny, country, tmp_path):
    data = tiny.data(country, feature_cache={"views": 1}, cache_dir=str(tmp_path))
    with pytest.raises(StagewiseError, match=r"features are cached; set datamodule\.feature_cache=null"):
        tiny.trainer(frozen=False).fit(tiny.module(), datamodule=data)


def test_cached_features_train_as_the_pictures_would(tiny, country, tmp_path):
    data = tiny.data(country, feature_cache={"views": 2}, cache_dir=str(tmp_path))
    module, trainer = tiny.module(), tiny.trainer()
    trainer.fit(module, datamodule=data)
    cached = trainer.callback_metrics["val/median_km"].item()
    fresh = tiny.trainer().validate(module, datamodule=tiny.data(country), verbose=False)[0]["val/median_km"]
    assert cached == pytest.approx(fresh, rel=0.02)


def test_the_key_of_the_encoders_changes_with_their_weights_only(tiny):
    module = built(tiny)
    key = module.network.encoder_key()
    assert key == module.network.encoder_key()
    with torch.no_grad():
        module.network.gate.bias += 1
    assert module.network.encoder_key() == key
    with torch.no_grad():
        module.network.scene.layer4[0].bn1.running_mean += 1e-3
    assert module.network.encoder_key() != key


def test_a_training_step_trains_open_encoders_and_leaves_frozen_ones(tiny, country):
    for frozen in (True, False):
        torch.manual_seed(0)
        module = tiny.module()
        watch = StopBeforeTraining()
        watch.on_train_start = lambda *args: None
        tiny.trainer(watch, frozen=frozen, limit_val_batches=0).fit(module, datamodule=tiny.data(country))
        after = module.state_dict()
        moved = {k for k, v in watch.weights.items() if not torch.equal(v, after[k])}
        assert any(k.startswith("network.clip.") for k in moved) != frozen
        assert any(k.startswith("network.scene.") for k in moved) != frozen
        assert "network.gate.weight" in moved


def test_retrieval_is_used_when_a_checkpoint_brings_its_bank(fitted, pictures, monkeypatch):
    module = load_module(str(fitted.path))
    calls = []
    refine = decoding.ReferenceBank.refine
    monkeypatch.setattr(
        decoding.ReferenceBank, "refine", lambda self, *a, **k: calls.append(k) or refine(self, *a, **k)
    )
    module.predict_images(pictures)
    assert calls == [{"neighbours": 2, "sharpness": 20.0, "reach": 1.0}]
