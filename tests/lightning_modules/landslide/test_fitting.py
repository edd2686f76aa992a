from types import SimpleNamespace

import numpy as np
import pytest

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide import fitting

CRF = {"iterations": 8}
NAMES = ("low", "medium", "high")


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """``fitting.fit`` on answers that the CRF makes as good as told."""

    def answers(rng, good):
        label = rng.choice(3, 3000, p=[0.7, 0.1, 0.2])
        z = rng.normal(size=(3000, 3))
        z[np.arange(3000), label] += good
        return (np.exp(z) / np.exp(z).sum(1, keepdims=True)).astype(np.float32), label

    def run(with_crf, without, kind="temperature_bias", choose_crf=True, areas=None, **changes):
        asked = []

        def labelled(module, datamodule, folder, inference, split):
            asked.append((split, inference["crf"]))
            seed = ("calibration", "val").index(split)
            return answers(np.random.default_rng(seed), without if inference["crf"] is None else with_crf)

        monkeypatch.setattr(fitting, "labelled", labelled)
        monkeypatch.setattr(fitting, "areas_of", lambda datamodule, split: (areas or {}).get(split, ["north"]))
        inference = {"crf": CRF, "crf_must_pay": True, **changes}
        module = SimpleNamespace(calibration_kind=kind, inference=inference, schema={"class_count": [70, 10, 20]})
        state, chosen = fitting.fit(module, None, tmp_path, choose_crf)
        return state, chosen["crf"], asked

    return run


def test_a_crf_that_pays_on_val_is_kept(fit):
    state, crf, _ = fit(with_crf=2.5, without=1.5)
    assert crf == CRF and state["crf"]["kept"] is True
    assert state["decision"]["quadratic_kappa"] == state["crf"]["kappa_with"] > state["crf"]["kappa_without"]


def test_a_crf_that_does_not_is_left_out_and_said_to_be(fit, caplog):
    with caplog.at_level("INFO"):
        state, crf, _ = fit(with_crf=0.5, without=1.5)
    assert crf is None and state["crf"]["kept"] is False
    assert state["decision"]["quadratic_kappa"] == state["crf"]["kappa_without"] > state["crf"]["kappa_with"]
    assert "CRF left out: quadratic kappa on val is" in caplog.text


@pytest.mark.parametrize("how", [{"crf_must_pay": False}, {"choose_crf": False}])
def test_a_crf_that_was_asked_for_stays(fit, how):
    state, crf, asked = fit(with_crf=0.5, without=1.5, **how)
    assert crf == CRF and "crf" not in state
    assert asked == [("calibration", CRF), ("val", CRF)]


def test_without_labels_of_val_the_crf_stays_and_it_is_said(fit, caplog):
    state, crf, _ = fit(1.0, 2.0, areas={"val": []})
    assert crf == CRF and "crf" not in state and "decision" not in state
    assert "CRF kept unchecked" in caplog.text


def test_test_is_never_looked_at(fit):
    _, _, asked = fit(1.0, 1.0)
    assert {split for split, _ in asked} == {"calibration", "val"}


def test_without_calibration_the_rule_is_chosen_on_the_networks_own_answers(fit):
    state, _, asked = fit(1.0, 1.0, kind="none", crf=None)
    assert state["kind"] == "none" and asked == [("val", None)] and state["decision"]["weights"]


@pytest.mark.parametrize(
    "kind, pixels, words",
    [
        ("temperature_bias", [9, 0, 9], "no labelled pixel of medium; .* or set calibration=temperature"),
        ("temperature", [9, 0, 0], "no labelled pixel of medium, high; .* or set calibration=none"),
        ("isotonic", [0, 0, 0], "low, medium, high"),
        ("platt", [9, 9, 9], "`calibration` must be one of none, temperature"),
    ],
)
def test_what_could_not_be_fitted_is_refused_before_training(kind, pixels, words):
    with pytest.raises(StagewiseError, match=words):
        fitting.check(kind, pixels, NAMES)


@pytest.mark.parametrize("kind, pixels", [("none", [0, 0, 0]), ("temperature", [9, 0, 9]), ("isotonic", [1, 1, 1])])
def test_what_can_be_fitted_is_let_through(kind, pixels):
    fitting.check(kind, pixels, NAMES)
