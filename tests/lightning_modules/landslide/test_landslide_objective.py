import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide.heads import ClassHead
from stagewise.lightning_modules.landslide.losses import dice_loss, focal_loss
from stagewise.lightning_modules.landslide.objective import LandslideObjective
from stagewise.lightning_modules.landslide.ordinal import coral_loss, corn_loss, cumulative_log_odds

WEIGHTS = [0.4, 2.5, 2.0]
RECIPE = {"focal": {"gamma": 2.5, "class_weights": WEIGHTS}, "dice": 1.0, "ordinal": {"weight": 0.3, "form": "coral"}}


def features(seed=0):
    return torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(seed))


def mask(classes=3):
    return torch.randint(-1, classes, (2, 6, 6), generator=torch.Generator().manual_seed(1))


def head(kind, classes=3):
    torch.manual_seed(0)
    return ClassHead(8, classes, kind, dropout=0.0)


@pytest.mark.parametrize("kind", ["softmax", "coral", "corn"])
def test_the_recipe_is_the_sum_of_its_parts_for_every_head(kind):
    out = head(kind)(features())
    parts = LandslideObjective(3, **RECIPE)(out, mask())
    torch.testing.assert_close(parts["focal"], focal_loss(out["logits"], mask(), WEIGHTS, 2.5))
    torch.testing.assert_close(parts["dice"], dice_loss(out["logits"], mask()))
    torch.testing.assert_close(parts["ordinal"], coral_loss(cumulative_log_odds(out["logits"]), mask()))
    torch.testing.assert_close(parts["total"], parts["focal"] + parts["dice"] + 0.3 * parts["ordinal"])
    assert parts["total"].requires_grad and not any(parts[k].requires_grad for k in ("focal", "dice", "ordinal"))


def test_a_coral_heads_loss_is_that_of_its_levels():
    out = head("coral")(features())
    parts = LandslideObjective(3, **RECIPE)(out, mask())
    torch.testing.assert_close(parts["ordinal"], coral_loss(out["levels"], mask()))


def test_corn_takes_the_conditional_levels_and_reaches_the_head():
    corn = head("corn")
    out = corn(features())
    parts = LandslideObjective(3, **RECIPE | {"ordinal": {"weight": 0.5, "form": "corn"}})(out, mask())
    torch.testing.assert_close(parts["ordinal"], corn_loss(out["conditionals"], mask()))
    torch.testing.assert_close(parts["total"], parts["focal"] + parts["dice"] + 0.5 * parts["ordinal"])
    alone = LandslideObjective(3, focal={"class_weights": [0, 0, 0]}, dice=0, ordinal={"form": "corn"})
    alone(out, mask())["total"].backward()
    assert corn.score.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["softmax", "coral", "corn"])
@pytest.mark.parametrize("classes", [2, 3])
def test_every_parameter_of_every_head_learns(kind, classes):
    module = head(kind, classes)
    LandslideObjective(classes)(module(features()), mask(classes))["total"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize("soft_labels", [None, 0.5])
def test_a_batch_without_labels_costs_nothing_and_pulls_at_nothing(soft_labels):
    module = head("coral")
    parts = LandslideObjective(3, **RECIPE, soft_labels=soft_labels)(module(features()), torch.full((2, 6, 6), -1))
    parts["total"].backward()
    assert all(value.item() == 0 for value in parts.values())
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_soft_labels_change_focal_and_coral_but_not_dice():
    out = head("softmax")(features())
    hard, soft = (LandslideObjective(3, **RECIPE, soft_labels=s)(out, mask()) for s in (None, 0.5))
    assert torch.equal(hard["dice"], soft["dice"])
    assert not torch.isclose(hard["focal"], soft["focal"]) and not torch.isclose(hard["ordinal"], soft["ordinal"])


def test_class_weights_matter_under_soft_labels():
    out = head("softmax")(features())
    a, b = (
        LandslideObjective(3, focal={"class_weights": w}, soft_labels=0.5)(out, mask())["focal"]
        for w in (WEIGHTS, [0.4, 2.5, 9.0])
    )
    assert b > a * 1.2


def test_half_precision_logits_are_summed_in_float32():
    out = {"logits": torch.randn(1, 3, 64, 64).bfloat16()}
    truth = torch.randint(0, 3, (1, 64, 64))
    parts = LandslideObjective(3)(out, truth)
    exact = LandslideObjective(3)({"logits": out["logits"].float()}, truth)
    assert parts["total"].dtype == torch.float32 and torch.equal(parts["total"], exact["total"])


def test_a_few_steps_learn_ordered_classes():
    """One feature says the class; after some steps all three heads tell them apart."""
    truth = torch.arange(36).view(1, 6, 6) // 12
    feature = truth.float().unsqueeze(1).repeat(1, 8, 1, 1) - 1
    for kind in ("softmax", "coral", "corn"):
        module, objective = head(kind), LandslideObjective(3)
        optimizer = torch.optim.Adam(module.parameters(), 0.1)
        first = objective(module(feature), truth)["total"].item()
        for _ in range(30):
            optimizer.zero_grad()
            objective(module(feature), truth)["total"].backward()
            optimizer.step()
        out = module(feature)
        assert objective(out, truth)["total"].item() < 0.5 * first
        assert (out["logits"].argmax(1) == truth)[:, 1:-1, 1:-1].float().mean() > 0.9, kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal": {"class_weights": [0.4, 2.5]}}, r"class_weights has 2 numbers, there are 3 classes"),
        ({"focal": {"alpha": 1}}, r"loss.focal has unknown key\(s\) \['alpha'\]; known: gamma, class_weights"),
        ({"ordinal": {"form": "softmax"}}, "loss.ordinal.form must be one of coral, corn, got 'softmax'"),
        ({"ordinal": {"weigth": 1}}, "loss.ordinal has unknown key"),
        ({"dice": -1}, "loss.dice must be a number of at least 0, got -1"),
        ({"focal": {"gamma": float("nan")}}, "loss.focal.gamma must be"),
        ({"focal": {"class_weights": [1, -1, 1]}}, r"class_weights\[1\] must be"),
        ({"dice": 0, "ordinal": {"weight": 0}, "focal": {"class_weights": [0, 0, 0]}}, "nothing would be trained"),
        ({"soft_labels": 0}, "`soft_labels` must be a positive"),
        ({"soft_labels": 0.5, "ordinal": {"form": "corn"}}, "soft_labels needs loss.ordinal.form=coral"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(StagewiseError, match=message):
        LandslideObjective(3, **options)


def test_corn_without_its_head_is_refused():
    with pytest.raises(StagewiseError, match=r"needs a CORN head; set network.head=corn"):
        LandslideObjective(3, ordinal={"form": "corn"})(head("coral")(features()), mask())


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(StagewiseError, match="the mask has the class 2, there are 2 from 0"):
        LandslideObjective(2)(head("softmax", 2)(features()), torch.full((2, 6, 6), 2))
