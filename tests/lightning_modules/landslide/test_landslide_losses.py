import pytest
import torch
from coral_pytorch.dataset import levels_from_labelbatch
from coral_pytorch.losses import coral_loss as their_coral
from coral_pytorch.losses import corn_loss as their_corn
from kornia.losses import focal_loss as their_focal
from segmentation_models_pytorch.losses import DiceLoss
from torch.nn import functional as F

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide import ordinal
from stagewise.lightning_modules.landslide.fused import focal_coral
from stagewise.lightning_modules.landslide.losses import dice_loss, focal_loss, shares_of

WEIGHTS = [0.4, 2.5, 2.0]
CLASSES = (2, 3, 5)


def case(classes=3, ignored=True, scale=2.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(2, classes, 6, 5, generator=generator, dtype=dtype)
    mask = torch.randint(-1 if ignored else 0, classes, (2, 6, 5), generator=generator)
    assert set(range(classes)) <= set(mask.unique().tolist())
    return logits.requires_grad_(), mask


def weights_of(classes):
    return [0.4 + 0.7 * k for k in range(classes)]


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def plain(logits, mask, weights, gamma=2.5, coral_weight=0.3, table=None):
    """What ``focal_coral`` must give, by autograd."""
    if table is None:
        focal = focal_loss(logits, mask, weights, gamma)
        return focal + coral_weight * ordinal.coral_loss(ordinal.cumulative_log_odds(logits), mask)
    shares = torch.tensor(table, dtype=logits.dtype)[mask.clamp(min=0)].movedim(-1, 1)
    labelled = mask >= 0
    above = shares.flip(1).cumsum(1).flip(1)[:, 1:]  # P(y > k)
    each = F.binary_cross_entropy_with_logits(ordinal.cumulative_log_odds(logits), above, reduction="none")
    coral = (each.sum(1) * labelled).sum() / labelled.sum()
    return focal_loss(logits, shares, weights, gamma, labelled) + coral_weight * coral


# Every loss of an int mask as (logits, mask) -> number, for the promises that all of them make.
LOSSES = {
    "focal": lambda z, y: focal_loss(z, y, weights_of(z.shape[1])),
    "dice": dice_loss,
    "coral": lambda z, y: ordinal.coral_loss(ordinal.cumulative_log_odds(z), y),
    "coral head": lambda z, y: ordinal.coral_loss(z[:, 1:], y),
    "corn": lambda z, y: ordinal.corn_loss(z[:, 1:], y),
    "fused": lambda z, y: focal_coral(z, y, weights_of(z.shape[1]))[0],
    "fused soft": lambda z, y: focal_coral(
        z, y, weights_of(z.shape[1]), soft_labels=ordinal.soft_label_table(z.shape[1], 0.5).tolist()
    )[0],
    "focal soft": lambda z, y: focal_loss(
        z,
        ordinal.soft_label_table(z.shape[1], 0.5)[y.clamp(min=0)].movedim(-1, 1),
        weights_of(z.shape[1]),
        labelled=y >= 0,
    ),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# --- what all of them promise ---


@every_loss
@pytest.mark.parametrize("classes", CLASSES)
def test_without_labels_the_loss_is_0_and_so_is_the_gradient(loss, classes):
    logits, mask = case(classes)
    value = loss(logits, torch.full_like(mask, -1))
    assert value.item() == 0
    assert torch.equal(gradient(value, logits), torch.zeros_like(logits))


@every_loss
def test_ignored_pixels_neither_count_nor_pull(loss):
    logits, mask = case()
    value = loss(logits, mask)
    pull = gradient(value, logits)
    ignored = (mask < 0).unsqueeze(1).expand_as(logits)
    assert pull[ignored].abs().max() == 0 and pull[~ignored].abs().max() > 0
    changed = torch.where(ignored, logits.detach() + 7 * torch.randn_like(logits), logits.detach())
    torch.testing.assert_close(loss(changed, mask), value)
    wider = [F.pad(x, (0, 4), value=fill) for x, fill in ((logits, 3.0), (mask, -1))]
    torch.testing.assert_close(loss(*wider), value)


@every_loss
def test_hopeless_logits_leave_it_finite_and_the_gradient_too(loss):
    logits = torch.tensor([[[-1e4]], [[0.0]], [[1e4]]]).unsqueeze(0).requires_grad_()
    value = loss(logits, torch.tensor([[[0]]]))
    assert value.isfinite() and value > 0.5
    assert gradient(value, logits).isfinite().all()


@pytest.mark.parametrize("name", ["focal", "coral", "fused", "fused soft", "focal soft", "dice"])
def test_a_constant_on_all_logits_changes_nothing(name):
    logits, mask = case(dtype=torch.float64)
    for constant in (-50.0, 3.0, 1000.0):
        torch.testing.assert_close(LOSSES[name](logits + constant, mask), LOSSES[name](logits, mask))


@pytest.mark.parametrize("name", ["coral", "fused", "fused soft"])
@pytest.mark.parametrize(("truth", "near", "far"), [(0, 1, 2), (2, 1, 0)])
def test_further_wrong_costs_more(name, truth, near, far):
    mask = torch.full((1, 4, 4), truth)
    at = [4 * F.one_hot(torch.full((1, 4, 4), k), 3).movedim(-1, 1).float() for k in (truth, near, far)]
    weigh = lambda z: focal_coral(z, mask, [1, 1, 1], soft_labels=None)[0]  # noqa: E731  equal weights: order alone
    cost = [(weigh if name == "fused" else lambda z: LOSSES[name](z, mask))(z).item() for z in at]
    assert cost[0] < cost[1] < cost[2]


# --- focal ---


@pytest.mark.parametrize("classes", CLASSES)
def test_focal_with_gamma_0_is_torchs_cross_entropy(classes):
    logits, mask = case(classes)
    torch.testing.assert_close(
        focal_loss(logits, mask, [1.0] * classes, gamma=0.0), F.cross_entropy(logits, mask, ignore_index=-1)
    )
    weights = weights_of(classes)
    theirs = F.cross_entropy(logits, mask, torch.tensor(weights), ignore_index=-1, reduction="sum") / (mask >= 0).sum()
    torch.testing.assert_close(focal_loss(logits, mask, weights, gamma=0.0), theirs)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 2.5])
def test_focal_is_kornias_over_the_labelled_pixels(gamma):
    logits, mask = case()
    theirs = their_focal(logits, mask, None, gamma, "sum", torch.tensor(WEIGHTS), -1) / (mask >= 0).sum()
    ours = focal_loss(logits, mask, WEIGHTS, gamma)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


def test_a_class_keeps_its_weight_in_a_batch_without_the_others():
    logits, _ = case()
    mask = torch.zeros(2, 6, 5, dtype=torch.long)
    assert focal_loss(logits, mask, [0.4, 1, 1]).item() == pytest.approx(
        0.4 * focal_loss(logits, mask, [1, 1, 1]).item()
    )


@pytest.mark.parametrize("classes", CLASSES)
def test_soft_labels_of_one_class_are_hard_labels(classes):
    logits, mask = case(classes)
    shares = shares_of(mask, classes)
    hard = focal_loss(logits, mask, weights_of(classes))
    torch.testing.assert_close(focal_loss(logits, shares, weights_of(classes), labelled=mask >= 0), hard)
    torch.testing.assert_close(focal_loss(logits, shares, weights_of(classes)), hard)


def test_class_weights_matter_under_soft_labels():
    logits, mask = case()
    table = ordinal.soft_label_table(3, 0.5)
    shares = table[mask.clamp(min=0)].movedim(-1, 1)
    fused = [focal_coral(logits, mask, w, 2.5, 0.3, table.tolist())[1] for w in (WEIGHTS, [0.4, 2.5, 6.0])]
    dense = [focal_loss(logits, shares, w, 2.5, mask >= 0) for w in (WEIGHTS, [0.4, 2.5, 6.0])]
    assert fused[1] > 1.2 * fused[0] and dense[1] > 1.2 * dense[0]
    torch.testing.assert_close(fused, dense)


# --- Dice ---


def test_dice_is_smps_when_every_class_is_there():
    logits, mask = case()
    torch.testing.assert_close(dice_loss(logits, mask), DiceLoss("multiclass", ignore_index=-1)(logits, mask))


def test_dice_asks_nothing_of_a_class_that_is_not_there():
    logits, mask = case()
    mask[mask == 2] = -1
    theirs = DiceLoss("multiclass", ignore_index=-1)(logits, mask) * 3 / 2  # theirs counts the absent class as right
    torch.testing.assert_close(dice_loss(logits, mask), theirs)


def test_dice_of_a_right_map_is_0_and_of_a_wrong_one_1():
    _, mask = case(ignored=False)
    right = 40 * shares_of(mask, 3)
    assert dice_loss(right, mask) < 1e-6
    assert dice_loss(right.roll(1, 1), mask) > 1 - 1e-6


# --- CORAL and CORN ---


def flat(levels, mask):
    keep = mask.flatten() >= 0
    return levels.movedim(1, -1).flatten(0, -2)[keep], mask.flatten()[keep]


@pytest.mark.parametrize("classes", CLASSES)
def test_coral_is_coral_pytorchs(classes):
    logits, mask = case(classes)
    levels = ordinal.cumulative_log_odds(logits)
    x, y = flat(levels, mask)
    theirs = their_coral(x, levels_from_labelbatch(y, classes))
    torch.testing.assert_close(ordinal.coral_loss(levels, mask), theirs)
    *_, fused = focal_coral(logits, mask, weights_of(classes))
    torch.testing.assert_close(fused, theirs)


@pytest.mark.parametrize("classes", CLASSES)
def test_corn_is_coral_pytorchs(classes):
    logits, mask = case(classes)
    conditionals = logits[:, 1:]
    torch.testing.assert_close(ordinal.corn_loss(conditionals, mask), their_corn(*flat(conditionals, mask), classes))


def test_cumulative_log_odds_are_those_of_the_softmax():
    logits, _ = case(5)
    p = logits.softmax(1)
    above = p.flip(1).cumsum(1).flip(1)[:, 1:]
    torch.testing.assert_close(ordinal.cumulative_log_odds(logits).sigmoid(), above)


@pytest.mark.parametrize("classes", CLASSES)
def test_probabilities_of_a_coral_head_are_differences_of_its_cumulative_ones(classes):
    generator = torch.Generator().manual_seed(0)
    levels = 3 * torch.randn(2, classes - 1, 4, 4, generator=generator).sort(1, descending=True).values
    p = ordinal.class_probabilities({"logits": ordinal.coral_log_probabilities(levels)})
    above = F.pad(levels.sigmoid(), (0, 0, 0, 0, 1, 0), value=1.0)
    torch.testing.assert_close(p, above - F.pad(above[:, 1:], (0, 0, 0, 0, 0, 1)))
    torch.testing.assert_close(p.sum(1), torch.ones(2, 4, 4))
    back = ordinal.cumulative_log_odds(ordinal.coral_log_probabilities(levels))
    torch.testing.assert_close(back, levels)  # so both forms of CORAL are one loss


@pytest.mark.parametrize("classes", CLASSES)
def test_probabilities_of_a_corn_head_are_products_of_its_conditional_ones(classes):
    conditionals = 3 * torch.randn(2, classes - 1, 4, 4, generator=torch.Generator().manual_seed(0))
    log_p = ordinal.corn_log_probabilities(conditionals)
    p = ordinal.class_probabilities({"logits": log_p})
    torch.testing.assert_close(p, log_p.exp())  # they sum to 1 by themselves
    above = 1 - p.cumsum(1)[:, :-1]
    torch.testing.assert_close(above, conditionals.sigmoid().cumprod(1))


def test_corn_is_the_cross_entropy_of_the_classes_it_implies_over_its_tasks():
    logits, mask = case(4)
    conditionals = logits[:, 1:]
    log_p = ordinal.corn_log_probabilities(conditionals)
    tasks = (mask.clamp(max=2) + 1).sum()  # levels that a pixel takes part in; none where it is -1
    entropy = F.nll_loss(log_p, mask, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(ordinal.corn_loss(conditionals, mask), entropy / tasks)


def test_a_level_far_out_keeps_the_middle_class_possible():
    for score in (-200.0, 0.0, 200.0):
        log_p = ordinal.coral_log_probabilities(torch.tensor([[score + 1, score - 1]]))
        assert log_p.isfinite().all()
        assert log_p.logsumexp(1).item() == pytest.approx(0, abs=1e-5)
    assert ordinal.coral_log_probabilities(torch.zeros(1, 2)).isfinite().all()


# --- soft ordinal labels ---


@pytest.mark.parametrize("classes", CLASSES)
def test_soft_labels_sum_to_1_fall_with_distance_and_sharpen_with_tau(classes):
    table = ordinal.soft_label_table(classes, 0.5)
    torch.testing.assert_close(table.sum(1), torch.ones(classes))
    for y in range(classes):
        order = sorted(range(classes), key=lambda k: abs(k - y))
        assert table[y, order].diff().max() <= 0 and table[y].argmax() == y
    torch.testing.assert_close(ordinal.soft_label_table(classes, 0.01), torch.eye(classes))


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_tau_that_is_not_positive_is_refused(tau):
    with pytest.raises(StagewiseError, match="`soft_labels` must be a positive number"):
        ordinal.soft_label_table(3, tau)


# --- the fused form ---


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.5])
@pytest.mark.parametrize("tau", [None, 0.5])
def test_fused_is_the_plain_sum_and_its_gradient(classes, gamma, tau):
    logits, mask = case(classes)
    weights = weights_of(classes)
    table = None if tau is None else ordinal.soft_label_table(classes, tau).tolist()
    total, focal, coral = focal_coral(logits, mask, weights, gamma, 0.3, table)
    expected = plain(logits, mask, weights, gamma, 0.3, table)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(focal + 0.3 * coral, total)
    torch.testing.assert_close(gradient(total * 3, logits), gradient(expected * 3, logits), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tau", [None, 0.7])
def test_fused_gradient_is_the_numerical_one(tau):
    logits, mask = (x[:, ..., :2, :2].detach() for x in case(4, dtype=torch.float64))
    table = None if tau is None else ordinal.soft_label_table(4, tau).tolist()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: focal_coral(z, mask, weights_of(4), 2.5, 0.3, table)[0], logits)


def test_fused_takes_any_memory_layout():
    logits, mask = case()
    total = focal_coral(logits, mask, WEIGHTS)[0]
    last = logits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    other = focal_coral(last, mask, WEIGHTS)[0]
    torch.testing.assert_close(other, total)
    torch.testing.assert_close(gradient(other, last), gradient(total, logits))


def test_fused_works_without_gradients_and_twice_on_one_graph():
    logits, mask = case()
    with torch.no_grad():
        quiet = focal_coral(logits, mask, WEIGHTS)[0]
    total = focal_coral(logits, mask, WEIGHTS)[0]
    torch.testing.assert_close(total, quiet)
    first, second = (torch.autograd.grad(total, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_on_a_gpu_is_the_cpus():
    logits, mask = case()
    total = focal_coral(logits, mask, WEIGHTS)[0]
    there = logits.detach().cuda().requires_grad_()
    other = focal_coral(there, mask.cuda(), WEIGHTS)[0]
    torch.testing.assert_close(other.cpu(), total)
    torch.testing.assert_close(gradient(other, there).cpu(), gradient(total, logits))


@pytest.mark.slow
def test_fused_compiles_to_the_same_numbers():
    from stagewise.lightning_modules.landslide.fused import with_gradient

    logits, mask = case()
    compiled = torch.compile(with_gradient, fullgraph=True)
    for ours, theirs in zip(
        with_gradient(logits.detach(), mask, WEIGHTS, 2.5, 0.3, None),
        compiled(logits.detach(), mask, WEIGHTS, 2.5, 0.3, None),
    ):
        torch.testing.assert_close(ours, theirs)
