"""Intervals over blocks against a naive loop that resamples pixels block by block."""

import numpy as np
import pytest
from sklearn import metrics as sk

from stagewise.lightning_modules.landslide.bootstrap import MIN_BLOCKS, draw_blocks, figures_of, intervals, leads
from stagewise.lightning_modules.landslide.scores import pixel_scores, scores
from stagewise.lightning_modules.landslide.tally import tally_of

CLASSES = ["low", "medium", "high"]


def blocks_of_pixels(blocks=20, size=60, seed=0, alike=False):
    """Blocks that differ in how well they are answered; ``alike`` makes all pixels of a block equal."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), size)
    y = rng.choice(3, blocks, p=[0.5, 0.2, 0.3])[block] if alike else rng.choice(3, blocks * size, p=[0.7, 0.1, 0.2])
    z = rng.normal(size=(blocks if alike else blocks * size, 3))
    z = z[block] if alike else z
    z = z + rng.uniform(0, 2, blocks)[block, None] * np.eye(3)[y]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return y, p, block


def test_each_draw_is_the_figure_of_its_resampled_pixels():
    y, p, block = blocks_of_pixels()
    tally = tally_of(y, p, block, CLASSES)
    taken = draw_blocks(tally, draws=4, seed=3)
    drawn = figures_of(tally, taken)
    for d, times in enumerate(taken.astype(int)):
        rows = np.concatenate([np.flatnonzero(block == g) for g, n in enumerate(times) for _ in range(n)])
        expected = pixel_scores(y[rows], p[rows], CLASSES)
        assert set(drawn) <= set(expected)
        for name in drawn:
            assert drawn[name][d] == pytest.approx(expected[name], abs=1e-9), name
        assert drawn["auroc/high"][d] == pytest.approx(sk.roc_auc_score(y[rows] == 2, p[rows, 2]), abs=1e-3)


def test_all_blocks_once_is_the_figure_itself():
    tally = tally_of(*blocks_of_pixels(), CLASSES)
    point, drawn = scores(tally), figures_of(tally, np.ones((1, 20)))
    left_out = {name.split("/")[0] for name in set(point) - set(drawn)}
    assert left_out == {"pixels", "blocks", "prevalence"}
    for name, value in drawn.items():
        assert value[0] == pytest.approx(point[name], abs=1e-9), name


def test_bounds_are_those_of_a_naive_loop():
    y, p, block = blocks_of_pixels()
    bounds, said = intervals(tally_of(y, p, block, CLASSES), seed=1)
    rng = np.random.default_rng(2)
    rows_of = [np.flatnonzero(block == g) for g in range(20)]
    answer, drawn = p.argmax(1), []
    for _ in range(1000):
        rows = np.concatenate([rows_of[g] for g in rng.integers(0, 20, 20)])
        matrix = np.bincount(y[rows] * 3 + answer[rows], minlength=9).reshape(3, 3)
        drawn.append(np.trace(matrix) / matrix.sum())
    assert bounds["accuracy"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.008)
    assert not said


def test_blocks_of_equal_pixels_are_as_many_samples_as_blocks():
    y, p, block = blocks_of_pixels(size=16, alike=True)
    of_blocks, _ = intervals(tally_of(y, p, block, CLASSES), draws=400)
    of_pixels, _ = intervals(tally_of(y, p, np.arange(len(y)), CLASSES), draws=400)
    width = {k: np.diff(b["accuracy"]).item() for k, b in (("blocks", of_blocks), ("pixels", of_pixels))}
    assert width["blocks"] == pytest.approx(width["pixels"] * np.sqrt(16), rel=0.25)


def test_the_same_seed_gives_the_same_bounds():
    tally = tally_of(*blocks_of_pixels(), CLASSES)
    assert intervals(tally, draws=50, seed=5) == intervals(tally, draws=50, seed=5)
    assert intervals(tally, draws=50, seed=5) != intervals(tally, draws=50, seed=6)


def test_too_few_blocks_have_no_interval_and_it_is_said():
    y, p, block = blocks_of_pixels(blocks=MIN_BLOCKS - 1)
    bounds, said = intervals(tally_of(y, p, block, CLASSES))
    assert all(np.isnan(low) and np.isnan(high) for low, high in bounds.values())
    assert said == ["no intervals: 7 blocks with labels, 8 are needed"]


def test_a_class_in_one_block_only_has_no_interval_and_it_is_said():
    y, p, block = blocks_of_pixels()
    y = np.where((y == 1) & (block > 0), 0, y)
    bounds, (text,) = intervals(tally_of(y, p, block, CLASSES), draws=200)
    assert np.isnan(bounds["recall/medium"]).all() and "recall/medium" in text
    assert np.isfinite(bounds["recall/high"]).all()


def test_a_lead_over_itself_is_0_and_a_constant_lead_has_no_width():
    y, p, block = blocks_of_pixels()
    tally = tally_of(y, p, block, CLASSES)
    wrong = tally_of(y, p, block, CLASSES, predicted=(y + 1) % 3)
    right = tally_of(y, p, block, CLASSES, predicted=y)
    assert leads(tally, {"self": tally}, draws=50)["self"]["quadratic_kappa"] == (0, 0)
    assert leads(right, {"wrong": wrong}, draws=50)["wrong"]["accuracy"] == (1, 1)


def test_a_lead_over_other_pixels_is_refused():
    y, p, block = blocks_of_pixels()
    other = tally_of(y[1:], p[1:], block[1:], CLASSES)
    with pytest.raises(ValueError, match="over the same pixels"):
        leads(tally_of(y, p, block, CLASSES), {"other": other})
