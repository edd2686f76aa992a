"""Calibration finds what was distorted, never worsens the split it was fitted on, and travels in a checkpoint."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide.calibration import KINDS, apply, fit, nll


def drawn(count=20_000, seed=0, prior=(0.0, 0.0, 0.0)):
    """True probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(count, 3)) * 1.5 + np.array(prior), axis=1)
    return p, (rng.random((count, 1)) > p.cumsum(1)).sum(1)


def ece(p, y):
    return multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), num_classes=3, n_bins=15).item()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5], ids=["over-confident", "right", "under-confident"])
def test_a_known_temperature_is_found_and_undone(temperature):
    p, y = drawn()
    distorted = softmax(np.log(p) * temperature, axis=1)  # sharper than the truth where above 1
    state = fit(distorted, y, "temperature")
    assert state["temperature"] == pytest.approx(temperature, rel=0.05)
    assert np.abs(apply(distorted.T, state).T - p).max() < 0.02


@pytest.mark.parametrize("kind", ["temperature", "temperature_bias", "isotonic"])
@pytest.mark.parametrize("sharper", [0.3, 3.0])
def test_the_fitted_split_is_never_worse_than_before(kind, sharper):
    p, y = drawn(5000)
    distorted = softmax(np.log(p) * sharper, axis=1)
    state = fit(distorted, y, kind)
    after = apply(distorted.T, state).T
    assert nll(after, y) <= nll(distorted, y)
    assert ece(after, y) <= ece(distorted, y)
    assert state["ece_before"] == pytest.approx(ece(distorted, y)) and state["ece_after"] == pytest.approx(
        ece(after, y)
    )


def test_calibrated_probabilities_stay_as_good_as_they_are():
    p, y = drawn(2000, seed=3)
    assert fit(p, y, "temperature")["nll_after"] <= nll(p, y)


def test_a_temperature_moves_no_answer():
    p, y = drawn(3000)
    distorted = softmax(np.log(p) * 3, axis=1)
    assert (apply(distorted.T, fit(distorted, y)).argmax(0) == distorted.argmax(1)).all()


def test_only_the_bias_takes_back_the_frequencies_of_oversampling():
    p, y = drawn(prior=(2.0, -1.5, 0.0))
    taught = p * np.array([1.0, 8.0, 3.0])  # what a network learns whose sampler showed rare classes more often
    taught /= taught.sum(1, keepdims=True)
    gap = {}
    for kind in ("temperature", "temperature_bias", "isotonic"):
        found = apply(taught.T, fit(taught, y, kind)).T
        gap[kind] = np.abs(found.mean(0) - np.bincount(y) / len(y)).max()
        if kind == "temperature_bias":
            assert np.abs(found - p).max() < 0.03
    assert gap["temperature_bias"] < 1e-3
    assert gap["temperature"] > 0.1 and gap["isotonic"] < gap["temperature"] / 3  # one number cannot


def test_isotonic_keeps_the_order_of_cumulative_probabilities():
    p, y = drawn(3000)
    rng = np.random.default_rng(1)
    noisy = softmax(np.log(p) + rng.normal(size=p.shape), axis=1)
    state = fit(noisy, y, "isotonic")
    found = apply(noisy.T, state)
    assert (found > 0).all() and np.allclose(found.sum(0), 1)
    above, before = found[::-1].cumsum(0)[::-1], noisy.T[::-1].cumsum(0)[::-1]
    assert (np.diff(above, axis=0) <= 0).all()
    order = np.argsort(before[1])  # P(class >= 1) of the first threshold is monotone in what it was
    assert (np.diff(above[1][order]) >= -1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_tensors_of_any_shape_keep_kind_type_and_nodata(kind):
    p, y = drawn(600)
    state = fit(p, y, kind)
    image = p.T.reshape(3, 20, 30).astype(np.float32)
    image[:, 2, 5] = np.nan
    found = apply(image, state)
    assert found.dtype == np.float32 and found.shape == image.shape
    assert np.isnan(found[:, 2, 5]).all() and np.isnan(found).sum() == 3
    assert np.allclose(np.nansum(found, 0)[0], 1, atol=1e-5)
    tensor = apply(torch.from_numpy(image), state)
    assert tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), found, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_travels_in_a_checkpoint_of_plain_values(kind, tmp_path):
    state = fit(*drawn(500), kind)
    torch.save(state, tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert again == state
    p = drawn(50)[0].T
    assert np.array_equal(apply(p, again), apply(p, state))


def test_probabilities_of_exactly_0_and_1_are_survived():
    p, y = np.eye(3)[[0, 0, 1, 2]], np.array([0, 1, 1, 2])
    for kind in ("temperature", "isotonic"):
        assert np.isfinite(apply(p.T, fit(p, y, kind))).all()


def test_unlabelled_pixels_do_not_count():
    p, y = drawn(1000)
    more = np.concatenate([p, np.full((500, 3), 1 / 3)])
    assert fit(more, np.concatenate([y, np.full(500, -1)])) == fit(p, y)


def test_what_cannot_be_fitted_is_refused():
    p = np.full((4, 3), 1 / 3)
    with pytest.raises(StagewiseError, match="none, temperature, temperature_bias, isotonic, got 'platt'"):
        fit(p, np.array([0, 1, 2, 0]), "platt")
    with pytest.raises(StagewiseError, match="at least two classes"):
        fit(p, np.array([0, 0, 0, -1]))
    with pytest.raises(StagewiseError, match=r"no pixel of class \[1\]"):
        fit(p, np.array([0, 2, 0, 2]), "temperature_bias")
