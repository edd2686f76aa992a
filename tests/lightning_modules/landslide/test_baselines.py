"""Baselines: strong where they can be, never taught by test labels, and the gap that a leaky split makes."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn import metrics as sk

from stagewise.lightning_modules.landslide.baselines import Baselines, leak_gap
from stagewise.lightning_modules.landslide.pixel_models import PixelModel, SlopeThreshold, forest, logistic

CLASSES = ["low", "medium", "high"]


def ground(count=3000, seed=0):
    """Pixels whose class is a noisy function of the slope (column 0); column 1 says nothing."""
    rng = np.random.default_rng(seed)
    x = np.stack([rng.gamma(4, 5, count), rng.normal(size=count)], axis=1)
    y = np.digitize(x[:, 0] + rng.normal(size=count) * 4, [28, 33])
    return x, y


def test_the_slope_threshold_has_the_best_cut_points_on_train():
    x, y = ground()
    found = SlopeThreshold(x, 0, y, np.ones(len(y)), 3)
    best = sk.cohen_kappa_score(y, found.bin(x), weights="quadratic")
    edges = np.quantile(x[:, 0], np.linspace(0.02, 0.98, 15))
    for low in edges:
        for high in edges[edges > low]:
            other = np.digitize(x[:, 0], [low, high])
            assert best >= sk.cohen_kappa_score(y, other, weights="quadratic") - 0.01
    share = found.probability(x)[found.bin(x) == 2][0]
    assert share == pytest.approx(np.bincount(y[found.bin(x) == 2], minlength=3) / (found.bin(x) == 2).sum(), abs=1e-6)


def test_nothing_that_is_fitted_moves_with_the_test_labels_or_pixels():
    x, y = ground()
    fitted = Baselines(CLASSES, 0, trees=5).fit(x, y, np.ones(len(y)))
    cuts = fitted.models["slope_threshold"].cuts.copy()
    query = ground(500, seed=1)[0]
    alone = fitted.predict(query[:10])
    steep = fitted.predict(np.concatenate([query[:10], query[10:] + 100]))  # a test area that is steeper everywhere
    for name, (p, answer) in alone.items():
        assert steep[name][0][:10] == pytest.approx(p, abs=1e-9) and np.array_equal(steep[name][1][:10], answer)
    assert np.array_equal(fitted.models["slope_threshold"].cuts, cuts)


def test_probabilities_are_shares_and_the_majority_knows_train_only():
    x, y = ground()
    fitted = Baselines(CLASSES, 0, trees=5).fit(x, y, np.ones(len(y)))
    found = fitted.predict(x[:50])
    assert list(found) == ["majority", "slope_threshold", "logistic_regression", "random_forest"]
    for p, answer in found.values():
        assert p.shape == (50, 3) and np.allclose(p.sum(1), 1) and (p >= 0).all() and set(answer) <= {0, 1, 2}
    assert found["majority"][0][7] == pytest.approx(np.bincount(y) / len(y))
    assert "slope_threshold" not in Baselines(CLASSES, None, trees=5).fit(x, y, np.ones(len(y))).models


def test_weights_bring_a_stratified_sample_back_to_the_true_frequencies():
    x, y = ground(20_000)
    there = np.bincount(y)
    rows = np.concatenate([np.flatnonzero(y == k)[:400] for k in range(3)])
    weight = (there / 400)[y[rows]]
    model = PixelModel(logistic(), x[rows], y[rows], weight, 3)
    full = PixelModel(logistic(), x, y, np.ones(len(y)), 3)
    assert model.probability(x).mean(0) == pytest.approx(there / len(y), abs=0.02)
    assert np.abs(model.probability(x) - full.probability(x)).mean() < 0.03


def test_the_rule_of_decision_is_chosen_on_validation_and_finds_the_rare_class():
    x, y = ground(6000)
    argmax = Baselines(CLASSES, 0, trees=5).fit(x, y, np.ones(len(y)))
    query, truth = ground(3000, seed=2)
    tuned = Baselines(CLASSES, 0, trees=5).fit(x, y, np.ones(len(y)), (*ground(3000, seed=1), np.ones(3000)))
    assert argmax.exponents["logistic_regression"] == 0 < tuned.exponents["logistic_regression"]
    kappa = [
        sk.cohen_kappa_score(truth, fitted.predict(query)["logistic_regression"][1], weights="quadratic")
        for fitted in (argmax, tuned)
    ]
    assert kappa[1] > kappa[0]
    same = argmax.predict(query)["logistic_regression"][0]
    assert np.array_equal(tuned.predict(query)["logistic_regression"][0], same)  # only the answer moves


def test_nodata_and_a_class_absent_from_train_are_survived():
    x, y = ground()
    x[::7, 0] = np.nan
    keep = y != 1
    fitted = Baselines(CLASSES, 0, trees=5).fit(x[keep], y[keep], np.ones(keep.sum()))
    for name, (p, _) in fitted.predict(x).items():
        assert np.isfinite(p).all() and p[:, 1].max() == 0, name


def test_a_leaky_split_flatters_a_forest_on_ground_that_tells_it_nothing():
    rng = np.random.default_rng(0)
    side, tile = 96, 16
    truth = gaussian_filter(rng.normal(size=(side, side)), 4)
    y = (truth > np.quantile(truth, 0.7)).astype(int).ravel()
    place = np.stack([gaussian_filter(rng.normal(size=(side, side)), 6).ravel() for _ in range(4)], axis=1)
    row, column = np.divmod(np.arange(side * side), side)
    step = tile // 2
    tiles = np.stack([(row // step + i) * 1000 + column // step + j for i in (0, 1) for j in (0, 1)], axis=1)
    test = column >= 64
    kept = (column < 48) | test  # a buffer of one tile
    found = leak_gap(place[kept], y[kept], tiles[kept], test[kept], ["low", "high"], trees=20)
    assert found["leaky/auroc/high"] > 0.9  # it knows the place
    assert found["buffered/auroc/high"] < 0.75  # and nothing else
    assert found["gap/auroc/high"] == pytest.approx(found["leaky/auroc/high"] - found["buffered/auroc/high"])
    assert found["test_pixels_in_train"] > 0.5


def test_forests_repeat_themselves():
    x, y = ground(400)
    first, second = (PixelModel(forest(5, seed=1), x, y, np.ones(400), 3).probability(x) for _ in range(2))
    assert first == pytest.approx(second, abs=1e-12)  # threads add up in any order


def test_a_pixel_beyond_those_of_train_is_held_to_them():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = (x[:, 0] > 0).astype(int)
    model = PixelModel(logistic(), x, y, np.ones(len(y)), 2)
    far, edge = np.array([[50.0, 0.1]]), np.array([[x[:, 0].max(), 0.1]])
    np.testing.assert_allclose(model.probability(far), model.probability(edge))
    assert np.isfinite(model.probability(np.array([[np.nan, 0.1]]))).all()
