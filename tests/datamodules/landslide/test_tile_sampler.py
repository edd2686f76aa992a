import logging
import re

import numpy as np
import pytest
from scipy.optimize import minimize

from stagewise.datamodules import ResumableDataLoader
from stagewise.datamodules.errors import QuotaError
from stagewise.datamodules.landslide.tile_sampler import (
    capped,
    expected_shares,
    rare_class_sampler,
    reachable_share,
    tile_weights,
)

RARE = 1


def tiles(seed, number=400):
    """Pixels of low, medium and high: medium is 2.65 % of all and lies in few tiles."""
    rng = np.random.default_rng(seed)
    total = rng.integers(200, 4000, number)
    share = np.where(rng.random(number) < 0.25, rng.beta(1.2, 6, number), 0)
    medium = share * total
    medium = np.round(medium * 0.0265 * total.sum() / medium.sum()).clip(max=total).astype(int)
    high = rng.binomial(total - medium, 0.2)
    return np.stack([total - medium - high, medium, high], axis=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [0.05, 0.075, 0.12])
def test_the_expected_share_is_the_target_and_no_tile_is_above_the_cap(seed, target):
    counts = tiles(seed)
    weights = tile_weights(counts, RARE, target, draws=400, max_repeats=8)
    assert expected_shares(counts, weights)[RARE] == pytest.approx(target, rel=1e-6)
    assert weights.sum() == pytest.approx(1) and weights.max() * 400 <= 8 * (1 + 1e-9) and weights.min() > 0


def test_the_share_that_is_drawn_is_the_expected_one():
    counts = tiles(0)
    loader = ResumableDataLoader(range(400), sampler=rare_class_sampler(counts, RARE, 0.075), batch_size=4, seed=3)
    drawn = np.zeros(3)
    for number in range(40):
        loader.sampler.set_epoch(number)
        drawn += counts[list(loader.sampler)].sum(axis=0)
    weights = tile_weights(counts, RARE, 0.075, draws=400, max_repeats=8)
    spread = np.sqrt(weights @ (counts[:, RARE] - 0.075 * counts.sum(axis=1)) ** 2 / 16_000)
    error = spread / (weights @ counts.sum(axis=1))  # of the drawn share, from its own variance
    assert abs(drawn[RARE] / drawn.sum() - 0.075) < 3.5 * error < 0.005
    assert counts[:, RARE].sum() / counts.sum() == pytest.approx(0.0265, abs=0.0005)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = rare_class_sampler(tiles(0), RARE, 0.075)
        loader = ResumableDataLoader(range(400), sampler=sampler, batch_size=4, seed=seed)
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler)

    assert order(1, 2) == order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_draw_with_that_share_and_cap_is_nearer_to_uniform(seed):
    counts = tiles(seed, number=14)
    gain = counts[:, RARE] / counts.sum() - (target := 0.06) * counts.sum(axis=1) / counts.sum()
    ours = tile_weights(counts, RARE, target, draws=14, max_repeats=2.5)
    theirs = minimize(
        lambda p: np.sum(p * np.log(14 * p)),
        np.full(14, 1 / 14),
        bounds=[(1e-9, 2.5 / 14)] * 14,
        constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "eq", "fun": lambda p: 100 * p @ gain}],
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert theirs.success and ours == pytest.approx(theirs.x, abs=2e-5)


def test_a_class_that_has_its_share_is_drawn_uniformly():
    counts = np.array([[90, 10], [80, 20], [99, 1]])
    assert tile_weights(counts, 1, 0.05, draws=3, max_repeats=8) == pytest.approx(np.full(3, 1 / 3))
    same = np.array([[90, 10]] * 3)
    assert tile_weights(same, 1, 0.1, draws=3, max_repeats=8) == pytest.approx(np.full(3, 1 / 3))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_repeats", [1.0, 1.7, 4.0, 50.0])
def test_the_reachable_share_is_that_of_the_linear_programme(seed, max_repeats):
    from scipy.optimize import linprog

    counts = tiles(seed, number=40)
    # Charnes and Cooper: y = p / (p @ total), so that the ratio is linear
    total, cap = counts.sum(axis=1), max_repeats / 40
    bound = np.eye(40) - cap  # y_i <= cap * sum(y)
    best = linprog(-counts[:, RARE], A_ub=bound, b_ub=np.zeros(40), A_eq=total[None], b_eq=[1])
    assert reachable_share(counts, RARE, cap) == pytest.approx(-best.fun, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_just_below_the_most_it_is_reached_and_just_above_it_refused_with_the_most(seed):
    counts = tiles(seed)
    most = reachable_share(counts, RARE, 4 / 400)
    weights = tile_weights(counts, RARE, 0.999 * most, 400, 4)
    assert expected_shares(counts, weights)[RARE] == pytest.approx(0.999 * most, rel=1e-4)
    with pytest.raises(QuotaError, match=rf"class 2 cannot be reached: {100 * most:.2f}% is the most.*raise the cap"):
        tile_weights(counts, RARE, 1.001 * most, 400, 4)


@pytest.mark.parametrize("slope", [0.0, 0.3, 5.0, 1e3, 1e6])
@pytest.mark.parametrize("cap", [1 / 50, 1.3 / 50, 0.2, 1.0])
def test_capped_probabilities_are_probabilities_below_the_cap_in_the_order_of_the_gain(slope, cap):
    gain = np.random.default_rng(0).normal(size=50)
    gain[7] = gain[8]
    found = capped(gain, slope, cap)
    assert found.sum() == pytest.approx(1) and found.min() >= 0 and found.max() <= cap * (1 + 1e-9)
    assert (np.diff(found[np.argsort(gain)]) >= -1e-15).all() and found[7] == found[8]
    below = found[(found < cap * (1 - 1e-9)) & (found > 1e-200)]
    rising = gain[(found < cap * (1 - 1e-9)) & (found > 1e-200)]
    if len(below) > 1:
        assert np.diff(np.log(below)) == pytest.approx(slope * np.diff(rising), rel=1e-6, abs=1e-6)


def test_the_log_says_the_share_before_and_expected_and_the_repeats(caplog):
    counts = tiles(0)
    with caplog.at_level(logging.INFO):
        rare_class_sampler(counts, RARE, 0.075, max_repeats=6)
    before, expected = re.search(
        r"class 2 has ([\d.]+)% of the labelled pixels, ([\d.]+)% expected", caplog.text
    ).groups()
    assert float(before) == pytest.approx(2.65, abs=0.05) and expected == "7.50"
    assert re.search(r"expected [\d.]+ times at most \(cap 6\), \d+ of 400 tiles", caplog.text)


def test_an_epoch_has_as_many_draws_as_asked_for():
    assert len(rare_class_sampler(tiles(0), RARE, 0.075, draws=1000, max_repeats=20)) == 1000
    assert len(rare_class_sampler(tiles(0), RARE, 0.075)) == 400


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        (tiles(0), {"target_share": 7.5}, "`target_share` must be a share between 0 and 1, got 7.5"),
        (tiles(0), {"target_share": 0.9}, "is the most with `max_repeats` 8 on 400 tiles"),
        (tiles(0) * [1, 0, 1], {"target_share": 0.075}, "0.00% is the most"),
        (tiles(0), {"target_share": 0.075, "draws": 4000}, "400 tiles x `max_repeats` 8 are fewer than 4000 `draws`"),
    ],
)
def test_what_cannot_be_drawn_is_refused(counts, options, words):
    with pytest.raises(QuotaError, match=words):
        rare_class_sampler(counts, RARE, **options)
