import itertools
import math

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.geolocation.geocells import CellTable
from stagewise.lightning_modules.geolocation.losses import (
    cell_loss,
    effective_number_weights,
    place_loss,
    scaled_km,
    soft_label_table,
)

SHAPES = ("linear", "huber", "log1p")


def cell_table(centres, region):
    n = len(centres)
    return CellTable(
        np.arange(n), np.asarray(region), np.asarray(centres, np.float64), np.full(n, 5.0), [[] for _ in range(n)]
    )


def grid(side, spacing_km, lat=24.9, lon=67.0):
    step = spacing_km / 111.2
    return [(lat + step * i, lon + step * j / math.cos(math.radians(lat))) for i in range(side) for j in range(side)]


@pytest.fixture
def cells():
    """14 scattered cells, three others, and a region with a single one."""
    rng = np.random.default_rng(1)
    wide = rng.uniform([24, 66], [29, 71], (14, 2)).tolist()
    return cell_table([*wide, (31.0, 72.0), (31.5, 73.0), (33.0, 72.2), (35.9, 74.3)], [0] * 14 + [1] * 3 + [2])


def slow_km(a, b):
    """Spherical law of cosines' robust form, in Python's double precision."""
    (lat_a, lon_a), (lat_b, lon_b) = ((math.radians(x) for x in p) for p in (a, b))
    y = math.hypot(
        math.cos(lat_b) * math.sin(lon_b - lon_a),
        math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(lon_b - lon_a),
    )
    x = math.sin(lat_a) * math.sin(lat_b) + math.cos(lat_a) * math.cos(lat_b) * math.cos(lon_b - lon_a)
    return 6371.0088 * math.atan2(y, x)


def slow_table(cells, tau_of):
    most = max(int((cells.region == r).sum()) for r in set(cells.region.tolist()))
    table = np.zeros((len(cells), most))
    for c in range(len(cells)):
        members = [i for i in range(len(cells)) if cells.region[i] == cells.region[c]]
        distance = {i: slow_km(cells.centre_deg[c], cells.centre_deg[i]) for i in members}
        near = sorted(members, key=distance.get)[:9]
        others = sorted(distance[i] for i in members if i != c)
        mass = {i: math.exp(-distance[i] / tau_of(int(cells.region[c]), others)) for i in near}
        for i in near:
            table[c, members.index(i)] = mass[i] / sum(mass.values())
    return torch.from_numpy(table)


REGION_TAU = [30.0, 60.0, 100.0]
TAUS = {
    "auto": lambda region, others: 0.5 * others[0] if others else 1.0,
    "region": lambda region, others: REGION_TAU[region],
    45.0: lambda region, others: 45.0,
}


# --- class weights ---


def test_weights_follow_the_effective_number_of_samples():
    counts, beta = [58_697, 7_611, 4_810, 3_971, 2_141, 3_265, 967], 0.9995
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    expected = torch.tensor([w / (sum(raw) / 7) for w in raw])
    weights = effective_number_weights(counts)
    torch.testing.assert_close(weights, expected)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-6) and weights.dtype == torch.float32


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9995])
def test_a_rarer_class_weighs_more(beta):
    weights = effective_number_weights([4000, 900, 120, 13, 1], beta)
    assert (weights.diff() >= 0).all() and weights[-1] > weights[0]
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_a_class_without_rows_weighs_like_one_row():
    weights = effective_number_weights([100, 0, 1])
    assert weights.isfinite().all() and weights[1] == weights[2]


# --- soft labels ---


@pytest.mark.parametrize("tau", list(TAUS))
def test_soft_labels_equal_a_slow_loop(cells, tau):
    table = soft_label_table(cells, tau, REGION_TAU)
    assert table.shape == (18, 14) and table.dtype == torch.float32
    torch.testing.assert_close(table, slow_table(cells, TAUS[tau]).float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tau", [*TAUS, 1e6, 1e-3])
def test_rows_sum_to_one_and_only_the_nine_nearest_of_the_region_have_mass(cells, tau):
    table = soft_label_table(cells, tau, REGION_TAU)
    torch.testing.assert_close(table.sum(1), torch.ones(18))
    assert (table >= 0).all()
    assert not table[14:17, 3:].any() and not table[17, 1:].any()  # nothing beyond a small region's cells
    for c in range(14):
        near = sorted(range(14), key=lambda i: slow_km(cells.centre_deg[c], cells.centre_deg[i]))
        assert not table[c, near[9:]].any()
        if tau in ("region", 45.0, 1e6):
            assert (table[c, near[:9]] > 0).all()


def test_a_city_tells_its_cells_apart_with_auto_but_not_with_the_wide_tau_of_the_recipe():
    city = cell_table(grid(5, spacing_km=2.0), [0] * 25)
    own = torch.arange(25)
    assert soft_label_table(city, "region", [30.0])[own, own].max() < 0.2  # the trap
    auto = soft_label_table(city, "auto", [30.0])
    assert auto[own, own].min() > 0.5
    assert (auto.argmax(1) == own).all()


@pytest.mark.parametrize("spacing_km", [0.3, 2.0, 60.0, 400.0])
def test_auto_adapts_to_any_spacing(spacing_km):
    table = soft_label_table(cell_table(grid(4, spacing_km, lat=0.0), [0] * 16), "auto", [None])
    assert 0.5 < table.diagonal().min() and table.diagonal().max() < 0.9  # sharp, and still smoothed


def test_with_auto_the_true_cell_has_most_of_the_mass_of_scattered_cells(cells):
    slot = torch.tensor([*range(14), *range(3), 0])
    table = soft_label_table(cells, "auto", REGION_TAU)
    assert (table.argmax(1) == slot).all()


def test_nearer_cells_have_more_mass(cells):
    table = soft_label_table(cells, 45.0, REGION_TAU)
    for c in range(14):
        near = sorted(range(14), key=lambda i: slow_km(cells.centre_deg[c], cells.centre_deg[i]))[:9]
        assert (table[c, near].diff() <= 1e-7).all()


def test_cells_at_the_same_place_and_across_the_date_line_are_finite():
    same = soft_label_table(cell_table([(10.0, 20.0), (10.0, 20.0)], [0, 0]), "auto", [None])
    torch.testing.assert_close(same, torch.full((2, 2), 0.5), atol=0.2, rtol=0)
    line = soft_label_table(cell_table([(0.0, 179.9), (0.0, -179.9), (0.0, 170.0)], [0] * 3), 50.0, [None])
    assert line[0, 1] > 0.3 and line[0, 2] < 1e-6


@pytest.mark.parametrize("tau", [0.0, -3.0, "wide"])
def test_a_tau_that_is_none_is_refused(cells, tau):
    with pytest.raises(StagewiseError, match="tau_km"):
        soft_label_table(cells, tau, REGION_TAU)


def test_the_regions_tau_must_be_there(cells):
    with pytest.raises(StagewiseError, match=r"region 1 needs a positive tau_km, got None"):
        soft_label_table(cells, "region", [30.0, None, 10.0])


# --- cell loss ---


@pytest.fixture
def scene(cells):
    """Labels, random logits of all regions with padding, and the table."""
    generator = torch.Generator().manual_seed(0)
    cell = torch.randint(0, 18, (40,), generator=generator)
    logits = torch.randn(40, 3, 14, generator=generator)
    logits[:, 1, 3:], logits[:, 2, 1:] = -1e4, -1e4
    return torch.from_numpy(cells.region)[cell], cell, logits, soft_label_table(cells, "auto", REGION_TAU)


def test_cell_loss_is_the_mean_of_each_samples_divergence(scene):
    region, cell, logits, table = scene
    total = 0.0
    for b in range(40):
        row = [math.exp(x) for x in logits[b, region[b]].double().tolist()]
        p = [x / sum(row) for x in row]
        total += sum(q * math.log(q / p[i]) for i, q in enumerate(table[cell[b]].double().tolist()) if q > 0)
    assert cell_loss(logits, region, cell, table).item() == pytest.approx(total / 40, rel=1e-5)


def test_cell_loss_is_zero_where_the_network_answers_the_label(scene):
    region, cell, _, table = scene
    logits = torch.full((40, 3, 14), -1e4)
    logits[torch.arange(40), region] = table[cell].log().clamp(min=-1e4)
    assert cell_loss(logits, region, cell, table).item() == pytest.approx(0.0, abs=1e-5)


def test_a_cell_further_wrong_costs_more(cells):
    table, region = soft_label_table(cells, 60.0, REGION_TAU), torch.tensor([0])
    for c in range(14):
        near = sorted(range(14), key=lambda i: slow_km(cells.centre_deg[c], cells.centre_deg[i]))[:9]
        cost = []
        for answer in near:
            logits = torch.zeros(1, 3, 14)
            logits[0, 0, answer] = 4.0
            cost.append(cell_loss(logits, region, torch.tensor([c]), table).item())
        assert all(b > a - 1e-6 for a, b in itertools.pairwise(cost)) and cost[-1] > cost[0] + 0.1


def test_cell_loss_teaches_the_true_region_only_and_never_the_padding(scene):
    region, cell, logits, table = scene
    logits = logits.requires_grad_()
    cell_loss(logits, region, cell, table).backward()
    others = torch.ones(40, 3, dtype=torch.bool)
    others[torch.arange(40), region] = False
    assert logits.grad.isfinite().all() and not logits.grad[others].any()
    assert not logits.grad[:, 1, 3:].any() and not logits.grad[:, 2, 1:].any()
    descended = cell_loss(logits.detach() - 5 * logits.grad, region, cell, table)
    assert descended < cell_loss(logits, region, cell, table)


def test_cell_loss_is_a_mean_over_samples(scene):
    region, cell, logits, table = scene
    twice = cell_loss(logits.repeat(2, 1, 1), region.repeat(2), cell.repeat(2), table)
    torch.testing.assert_close(twice, cell_loss(logits, region, cell, table))


# --- kilometres ---


def test_shapes_follow_their_formulas():
    km = torch.tensor([0.0, 5.0, 25.0, 100.0, 20_000.0])
    x = km / 25
    torch.testing.assert_close(scaled_km(km, "linear", 25.0), x)
    torch.testing.assert_close(scaled_km(km, "log1p", 25.0), torch.log1p(x))
    torch.testing.assert_close(scaled_km(km, "huber", 25.0), torch.where(x < 1, x**2 / 2, x - 0.5))


@pytest.mark.parametrize("shape", SHAPES)
def test_further_away_costs_more_at_every_distance(shape):
    cost = scaled_km(torch.logspace(-2, 4.3, 200), shape, 25.0)
    assert cost[0] >= 0 and (cost.diff() > 0).all() and scaled_km(torch.zeros(1), shape).item() == 0


def test_an_unknown_shape_is_refused():
    with pytest.raises(StagewiseError, match="linear, huber or log1p, got 'square'"):
        scaled_km(torch.ones(1), "square")


def test_the_auxiliary_loss_at_the_start_does_not_drown_the_others():
    start = 0.1 * scaled_km(torch.tensor(406.0))  # the auxiliary term of an untrained network, with the recipe's weight
    assert start < 0.5 * math.log(7)  # the province loss of an untrained network, with its weight


def test_place_loss_is_the_mean_distance():
    truth = torch.tensor([[24.86, 67.01], [33.68, 73.05]])
    guess = torch.tensor([[33.68, 73.05], [33.68, 73.05]])
    km = slow_km((24.86, 67.01), (33.68, 73.05))
    loss = place_loss(guess, truth, shape="linear", scale_km=1.0)
    assert loss.shape == () and loss.item() == pytest.approx(km / 2, rel=1e-4)


def test_weights_of_the_regions_count():
    truth, guess = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 8.0]])

    def loss(*w):
        return place_loss(guess, truth, torch.tensor(w), shape="linear").item()

    near, far = (place_loss(guess[i : i + 1], truth[i : i + 1], shape="linear").item() for i in (0, 1))
    assert loss(1.0, 1.0) == pytest.approx((near + far) / 2)
    assert loss(3.0, 1.0) == pytest.approx((3 * near + far) / 4)
    assert loss(1.0, 0.0) == pytest.approx(near)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", [(24.86, 67.01), (0.0, 0.0), (90.0, 0.0), (-89.9, 179.99)])
def test_gradient_is_finite_at_distance_zero(shape, place):
    truth = torch.tensor([place, place])
    guess = truth.clone().requires_grad_()
    place_loss(guess, truth, shape=shape).backward()
    assert not guess.grad.any()  # zero, not NaN


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [1e-6, 1e-4, 0.1, 30.0])
def test_gradient_points_away_from_the_truth_in_float32(shape, step):
    guess = torch.tensor([[30.0 + step, 70.0]], requires_grad=True)
    place_loss(guess, torch.tensor([[30.0, 70.0]]), shape=shape).backward()
    assert guess.grad.isfinite().all() and guess.grad[0, 0] >= 0
    assert step < 1e-3 or guess.grad[0, 0] > 0


def test_gradient_is_finite_at_the_antipode_and_short_across_the_date_line():
    guess = torch.tensor([[0.0, 180.0], [0.0, 179.9]], requires_grad=True)
    truth = torch.tensor([[0.0, 0.0], [0.0, -179.9]])
    place_loss(guess, truth, shape="linear", scale_km=1.0).backward()
    assert guess.grad.isfinite().all() and guess.grad[1, 1] < 0  # further east is nearer
    assert place_loss(guess[1:], truth[1:], shape="linear", scale_km=1.0).item() == pytest.approx(22.2, abs=0.2)
