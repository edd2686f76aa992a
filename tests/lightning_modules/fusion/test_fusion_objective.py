import pytest
import torch
from torch.nn import functional as F

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.fusion.objective import FusionObjective, expected_distance

COUNT = [10, 20, 10]


def probabilities(rows=8, seed=0):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)).softmax(1).requires_grad_()


def test_plain_is_torchs_cross_entropy():
    p, label = probabilities(), torch.arange(8) % 3
    assert torch.allclose(FusionObjective(COUNT)({"probability": p}, label), F.nll_loss(p.log(), label))


def test_focal_counts_easy_rows_less_and_gamma_0_is_plain():
    easy, hard = (torch.tensor([[0.9, 0.05, 0.05]]), torch.tensor([[0.3, 0.4, 0.3]]))
    label = torch.tensor([0])
    plain, focal = FusionObjective(COUNT), FusionObjective(COUNT, "focal")
    share = [float(focal({"probability": p}, label) / plain({"probability": p}, label)) for p in (easy, hard)]
    assert share == pytest.approx([0.01, 0.49])
    zero = FusionObjective(COUNT, "focal", gamma=0.0)
    assert torch.allclose(zero({"probability": hard}, label), plain({"probability": hard}, label))


@pytest.mark.parametrize("weighting", ["inverse_frequency", "effective_number"])
def test_weights_favour_the_rare_and_have_mean_1_over_the_train_rows(weighting):
    weight = FusionObjective(COUNT, weighting=weighting).weight
    assert weight[0] > weight[1] and torch.allclose((weight * torch.tensor(COUNT)).sum(), torch.tensor(40.0))


def test_the_ordinal_term_costs_more_the_further_off_and_has_a_gradient():
    off = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], requires_grad=True)
    near, far = expected_distance(off, torch.tensor([0, 0]))
    assert near < far
    far.backward()
    assert off.grad[1].tolist() == [0.0, 0.5, 1.0]
    plain, ordered = FusionObjective(COUNT), FusionObjective(COUNT, ordinal=1.0)
    added = [
        ordered({"probability": p[None]}, torch.tensor([0])) - plain({"probability": p[None]}, torch.tensor([0]))
        for p in off
    ]
    assert added[1] > added[0] > 0


def test_a_coral_head_that_is_trained_alone_has_its_own_loss():
    levels = torch.tensor([[2.0, -1.0]], requires_grad=True)
    out = {"probability": torch.tensor([[0.1, 0.6, 0.3]]), "levels": levels}
    loss = FusionObjective(COUNT)(out, torch.tensor([1]))
    assert torch.allclose(loss, F.binary_cross_entropy_with_logits(levels, torch.tensor([[1.0, 0.0]]), reduction="sum"))


def test_a_certain_wrong_answer_is_finite():
    assert FusionObjective(COUNT)({"probability": torch.tensor([[0.0, 1.0, 0.0]])}, torch.tensor([0])).isfinite()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kind": "hinge"}, "loss.kind"), ({"weighting": "both"}, "loss.weighting"), ({"ordinal": -1.0}, "ordinal=-1.0")],
)
def test_unknown_settings_are_refused(options, words):
    with pytest.raises(StagewiseError, match=words):
        FusionObjective(COUNT, **options)
    with pytest.raises(StagewiseError, match="without rows"):
        FusionObjective([3, 0, 1])
