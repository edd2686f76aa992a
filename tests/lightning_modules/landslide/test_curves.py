"""Rate curves and reliability against their definitions; the pictures are pictures."""

import numpy as np
import pytest
from sklearn import metrics as sk

from stagewise.lightning_modules.figures import draw_confusion
from stagewise.lightning_modules.landslide.curves import rate_curve, reliability_curve
from stagewise.lightning_modules.landslide.evaluation_figures import draw_rates, draw_reliability
from stagewise.lightning_modules.landslide.tally import RANK_BINS, rank_bin, tally_of


def histograms(score, landslide):
    bins = rank_bin(score)
    return np.bincount(bins, minlength=RANK_BINS), np.bincount(bins[landslide], minlength=RANK_BINS)


def test_the_curve_counts_landslides_in_the_most_susceptible_share():
    rng = np.random.default_rng(0)
    score = rng.random(5000)
    landslide = rng.random(5000) < score**3
    curve = rate_curve(*histograms(score, landslide))
    for share in (0.1, 0.3, 0.7):
        top = score >= np.quantile(score, 1 - share)
        assert np.interp(share, curve.area, curve.found) == pytest.approx(
            landslide[top].sum() / landslide.sum(), abs=0.005
        )
    assert (np.diff(curve.area) >= 0).all() and (np.diff(curve.found) >= 0).all()
    assert curve.area[[0, -1]].tolist() == curve.found[[0, -1]].tolist() == [0, 1]


def test_its_area_is_the_auroc_seen_through_the_prevalence():
    rng = np.random.default_rng(1)
    score = rng.random(20_000)
    landslide = rng.random(20_000) < 0.3 * score
    share, auroc = landslide.mean(), sk.roc_auc_score(landslide, score)
    expected = share / 2 + (1 - share) * auroc  # Chung & Fabbri's ground contains the landslides themselves
    assert rate_curve(*histograms(score, landslide)).under == pytest.approx(expected, abs=1e-3)


def test_a_constant_map_is_chance_and_no_landslide_is_undefined():
    ground = np.bincount([5] * 100, minlength=RANK_BINS)
    assert rate_curve(ground, ground // 10).under == 0.5
    assert np.isnan(rate_curve(ground, ground * 0).under)


def test_reliability_of_exact_probabilities_is_the_diagonal():
    rng = np.random.default_rng(0)
    high = rng.random(100_000)
    y = (rng.random(100_000) < high).astype(int)
    tally = tally_of(y, np.stack([1 - high, high], 1), np.zeros(len(y)), ["low", "high"])
    stated, observed, count = reliability_curve(tally.reliability[0, 1])
    assert stated == pytest.approx(observed, abs=0.03) and count.sum() == 100_000 and len(count) == 15


def test_pictures_are_drawn_even_of_little(tmp_path):
    from matplotlib.image import imread

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)  # the highest class does not occur
    tally = tally_of(y, rng.dirichlet([1, 1, 1], 300), np.zeros(300), ["low", "medium", "high"])
    curve = rate_curve(tally.ranked[0, 0].sum(0), tally.ranked[0, 0, -1])
    draw_rates({"prediction rate (test)": curve}, tmp_path / "rates.png", "test: a")
    draw_reliability(tally, tmp_path / "reliability.png", "test: a")
    draw_confusion(tally.confusion[0], tally.classes, tmp_path / "confusion.png", "test: a")
    for name in ("rates", "reliability", "confusion"):
        picture = imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
