import pytest
import torch
from torch.nn import functional as F

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.drains.objective import DrainObjective

COUNTS = [10, 40, 30]
LOGITS = torch.tensor([[1.0, 0.5, -torch.inf], [0.2, 1.5, -torch.inf], [-torch.inf, -torch.inf, 3.0]])
LABEL = torch.tensor([0, 0, 2])


def test_without_a_correction_it_is_the_cross_entropy():
    torch.testing.assert_close(DrainObjective(COUNTS)(LOGITS, LABEL), F.cross_entropy(LOGITS, LABEL))


@pytest.mark.parametrize("kind", ["inverse_frequency", "effective_number"])
def test_weights_favour_the_rare_and_leave_the_rate_as_it_is(kind):
    weight = DrainObjective(COUNTS, [kind]).weight
    assert weight[0] > weight[2] > weight[1]
    counts = torch.tensor(COUNTS, dtype=torch.float)
    torch.testing.assert_close((weight * counts).sum() / counts.sum(), torch.tensor(1.0))
    found = DrainObjective(COUNTS, [kind])(LOGITS, LABEL)
    wanted = (weight[LABEL] * F.cross_entropy(LOGITS, LABEL, reduction="none")).mean()
    torch.testing.assert_close(found, wanted)


def test_focal_forgets_what_is_easy():
    focal, plain = DrainObjective(COUNTS, ["focal"], gamma=2.0), DrainObjective(COUNTS)
    easy, hard = torch.tensor([[6.0, 0.0, 0.0]]), torch.tensor([[-3.0, 0.0, 0.0]])
    label = torch.tensor([0])
    assert focal(easy, label) / plain(easy, label) < 1e-4 and focal(hard, label) / plain(hard, label) > 0.9
    torch.testing.assert_close(DrainObjective(COUNTS, ["focal"], gamma=0.0)(LOGITS, LABEL), plain(LOGITS, LABEL))


def test_logit_adjustment_asks_more_of_the_rare_in_training_alone():
    adjusted, plain = DrainObjective(COUNTS, ["logit_adjustment"]), DrainObjective(COUNTS)
    rare, common = torch.tensor([0]), torch.tensor([1])
    even = torch.zeros(1, 3)
    assert adjusted(even, rare) > plain(even, rare) and adjusted(even, common) < plain(even, common)
    assert adjusted(even, rare, train=False) == plain(even, rare)
    prior = torch.tensor([10, 40, 30]) / 80
    torch.testing.assert_close(adjusted(even, rare), -prior[0].log())


def test_smoothing_spreads_over_allowed_classes_alone():
    loss = DrainObjective(COUNTS, label_smoothing=0.1)(LOGITS.requires_grad_(), LABEL)
    loss.backward()
    assert loss.isfinite() and LOGITS.grad.isfinite().all() and LOGITS.grad[0, 2] == 0
    LOGITS.requires_grad_(False)


def test_oversampling_is_the_datas_own_business():
    assert torch.equal(DrainObjective(COUNTS, ["oversample"]).weight, torch.ones(3))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"beta": 1.0}, "loss.beta"),
        ({"gamma": -1.0}, "loss.gamma"),
        ({"label_smoothing": 1.0}, "loss.label_smoothing"),
    ],
)
def test_numbers_outside_their_range_are_refused(options, words):
    with pytest.raises(StagewiseError, match=words):
        DrainObjective(COUNTS, **options)
    with pytest.raises(StagewiseError, match="without objects"):
        DrainObjective([3, 0])
