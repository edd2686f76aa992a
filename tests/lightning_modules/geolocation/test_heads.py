import pytest
import torch
from torch import nn

from stagewise.lightning_modules.geolocation.heads import (
    NO_CELL_LOGIT,
    OffsetHead,
    RegionCellHeads,
    clamp_offset,
    offset_limit_deg,
    projection,
)

SIZES, WIDTH = [3, 40, 1, 30, 29], 24
HIDDEN = [256, 512, 256, 512, 256]  # narrow below 30 cells


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return RegionCellHeads(SIZES, WIDTH)


def padding_of(heads):
    """Each parameter with a mask of its padded entries."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in heads.named_parameters()}
    for r, (h, n) in enumerate(zip(HIDDEN, SIZES)):
        masks["weight_in"][r, :, :h] = False
        masks["bias_in"][r, :h] = False
        masks["weight_out"][r, :h, :n] = False
        masks["bias_out"][r, :n] = False
    return [(p, masks[name]) for name, p in heads.named_parameters()]


def loss_of(heads, x):
    """Cross-entropy of every region's head, on a different cell for each sample."""
    logits = heads(x)
    labels = [torch.arange(len(x)) % n for n in SIZES]
    return sum(nn.functional.cross_entropy(logits[:, r], label) for r, label in enumerate(labels))


def test_the_batched_heads_equal_one_two_layer_head_a_region(heads):
    for parameter, padded in padding_of(heads):
        parameter.data[~padded] += 0.1 * torch.randn_like(parameter[~padded])  # biases too
    x = torch.randn(7, WIDTH)
    logits = heads(x)
    assert logits.shape == (7, 5, 40)
    for r, (h, n) in enumerate(zip(HIDDEN, SIZES)):
        first, last = nn.Linear(WIDTH, h), nn.Linear(h, n)
        first.weight.data, first.bias.data = heads.weight_in[r, :, :h].T, heads.bias_in[r, :h]
        last.weight.data, last.bias.data = heads.weight_out[r, :h, :n].T, heads.bias_out[r, :n]
        torch.testing.assert_close(logits[:, r, :n], nn.Sequential(first, nn.GELU(), last)(x), atol=1e-5, rtol=1e-4)
        assert (logits[:, r, n:] == NO_CELL_LOGIT).all()


def test_a_cell_that_a_region_has_not_gets_no_probability(heads):
    p = heads(torch.randn(4, WIDTH)).softmax(-1)
    for r, n in enumerate(SIZES):
        assert (p[:, r, n:] == 0).all()
        torch.testing.assert_close(p[:, r, :n].sum(-1), torch.ones(4))


def test_hidden_width_is_narrow_below_thirty_cells_else_wide(heads):
    for r, h in enumerate(HIDDEN):
        assert heads.weight_in[r, :, :h].abs().min() > 0
        assert not heads.weight_in[r, :, h:].any()


def test_padding_gets_exactly_zero_gradient_and_live_weights_a_gradient(heads):
    loss_of(heads, torch.randn(16, WIDTH)).backward()
    for parameter, padded in padding_of(heads):
        assert not parameter.grad[padded].any()
    assert all(heads.weight_in.grad[r].any() and heads.weight_out.grad[r].any() for r in (0, 1, 3, 4))


def test_padding_stays_zero_through_steps_with_weight_decay(heads):
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.05, weight_decay=0.1)
    before = heads.weight_in.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(heads, torch.randn(16, WIDTH)).backward()
        optimizer.step()
    assert all(not parameter[padded].any() for parameter, padded in padding_of(heads))
    assert not torch.equal(before, heads.weight_in)


def test_a_head_learns_from_its_own_region_only(heads):
    nn.functional.cross_entropy(heads(torch.randn(8, WIDTH))[:, 1], torch.arange(8)).backward()
    touched = [r for r in range(len(SIZES)) if heads.weight_out.grad[r].any() or heads.weight_in.grad[r].any()]
    assert touched == [1]


def test_the_first_layer_starts_like_a_linear_layer(heads):
    bound = WIDTH**-0.5
    live = heads.weight_in[1]
    assert 0.9 * bound < live.abs().max() <= bound
    assert live.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_output_layers_start_at_a_hundredth(heads, network):
    live = [heads.weight_out[r, :h, :n] for r, (h, n) in enumerate(zip(HIDDEN, SIZES)) if n > 1]
    live += [network.region_head[-1].weight, network.aux_head[-1].weight, network.offset_head.exit[-1].weight]
    for weight in live:
        assert weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert abs(weight.mean().item()) < 0.003
    assert not heads.bias_out.any() and not network.region_head[-1].bias.any()


def test_the_offset_head_takes_one_hypothesis_or_many():
    head = OffsetHead((8, 4, 2))
    parts = [torch.randn(5, 3, w) for w in (8, 4, 2)]
    many = head(*parts)
    assert many.shape == (5, 3, 2)
    torch.testing.assert_close(head(*(p[:, 1] for p in parts)), many[:, 1])


def test_each_part_of_the_offset_head_is_normalised_on_its_own():
    head = OffsetHead((8, 4, 2))
    picture, cell, region = torch.randn(5, 8), torch.randn(5, 4), torch.randn(5, 2)
    torch.testing.assert_close(head(1000 * picture, cell, region), head(picture, cell, region), atol=1e-4, rtol=1e-2)


def test_a_projection_is_linear_norm_gelu():
    layers = projection(10, 6)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "LayerNorm", "GELU"]
    assert layers(torch.randn(2, 10)).shape == (2, 6)


@pytest.mark.parametrize("raw", [1e3, 1e20, float("inf"), -1e3, -1e20, -float("inf")])
def test_the_clamp_holds_however_large_the_raw_offset_is(raw):
    limit = torch.tensor([[0.18, 0.2], [1e-4, 40.0]])
    offset = clamp_offset(torch.full((2, 2), raw), limit)
    assert (offset.abs() <= limit).all() and (offset.sign() == torch.tensor(raw).sign()).all()


def test_the_clamp_passes_small_offsets_is_monotone_and_leads_back():
    limit = torch.tensor([0.2, 0.4])
    small = 0.01 * limit
    torch.testing.assert_close(clamp_offset(small, limit), small, rtol=1e-3, atol=0.0)
    line = torch.linspace(-1, 1, 101).unsqueeze(1)
    assert (clamp_offset(line, limit).diff(dim=0) > 0).all()
    beyond = torch.tensor([0.5, -0.9], requires_grad=True)
    clamp_offset(beyond, limit).sum().backward()
    assert (beyond.grad > 0).all()


def test_the_limit_is_the_radius_in_degrees_at_the_cells_latitude():
    centre = torch.tensor([[0.0, 10.0], [60.0, -70.0], [-60.0, 179.0]])
    limit = offset_limit_deg(centre, torch.tensor([11.1, 22.2, 22.2]), torch.tensor([1.0, 0.6, 1.4]))
    expected = torch.tensor([[0.1, 0.1], [0.12, 0.24], [0.28, 0.56]])
    torch.testing.assert_close(limit, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lat", [90.0, -90.0])
def test_the_limit_is_finite_at_the_pole(lat):
    limit = offset_limit_deg(torch.tensor([[lat, 0.0]]), torch.tensor([20.0]), torch.tensor([1.0]))
    assert limit.isfinite().all() and (limit > 0).all() and limit.max() <= 180
