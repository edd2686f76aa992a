import math
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from stagewise.lightning_modules.optim import GroupedOptimizer, block_paths
from stagewise.lightning_modules.schedule import OpenedGroupSchedule, check_schedule

ADAMW = partial(torch.optim.AdamW, weight_decay=0.5)


class Model(nn.Module):
    """Stands in for a LightningModule: a network, and a trainer that knows how long the fit is."""

    def __init__(self, total_steps=20):
        super().__init__()
        self.network = nn.Module()
        self.network.clip = nn.Module()
        self.network.clip.stem = nn.Linear(2, 2)
        self.network.clip.blocks = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
        self.network.clip.norm = nn.LayerNorm(2)
        self.network.clip_head = nn.Linear(2, 2)
        self.trainer = SimpleNamespace(
            estimated_stepping_batches=total_steps,
            train_dataloader=[],
            num_training_batches=5,
            accumulate_grad_batches=1,
        )


GROUPS = {"heads": {"modules": ["clip_head"], "lr": 0.1}, "clip": {"modules": ["clip"], "lr": 0.01}}


def build(groups=None, schedule=None, model=None):
    made = GroupedOptimizer(ADAMW, groups or GROUPS, schedule, prefix="network")(model or Model())
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def names(optimizer, model):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [name_of[id(p)] for p in group["params"]] for group in optimizer.param_groups}


def lrs(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


# --- groups ---


def test_the_partition_is_total_and_a_prefix_of_a_name_is_not_a_path():
    model = Model()
    taken = names(build(model=model)[0], model)
    assert sorted(name for group in taken.values() for name in group) == sorted(
        name for name, _ in model.named_parameters()
    )
    assert taken["heads"] == ["network.clip_head.weight", "network.clip_head.bias"]


def test_the_first_group_that_names_a_parameter_takes_it():
    model = Model()
    groups = {"norm": {"modules": ["clip.norm"], "lr": 1.0}, **GROUPS}
    taken = names(build(groups, model=model)[0], model)
    assert taken["norm"] == ["network.clip.norm.weight", "network.clip.norm.bias"]
    assert not set(taken["norm"]) & set(taken["clip"])


def test_a_tied_parameter_counts_once():
    model = Model()
    model.network.clip_head.weight = model.network.clip.stem.weight
    optimizer, _ = build(model=model)
    every = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))


def test_a_path_is_looked_up_below_the_prefix_and_then_from_the_root():
    model = Model()
    model.loss = nn.Linear(1, 1)
    groups = {**GROUPS, "loss": {"modules": ["loss"], "lr": 1.0}}
    assert names(build(groups, model=model)[0], model)["loss"] == ["loss.weight", "loss.bias"]


@pytest.mark.parametrize(
    "groups, words",
    [
        ({"heads": GROUPS["heads"]}, r"No group takes.*network\.clip\.stem\.weight.*more"),
        ({**GROUPS, "again": GROUPS["clip"]}, r"`groups\.again\.modules` has 'network\.clip', whose .* group 'clip'"),
        (
            {"clip": GROUPS["clip"], "rest": {"modules": ["clip_head", "clip.norm"], "lr": 1.0}},
            r"'network\.clip\.norm', whose parameters are all in the group 'clip' before it; .* put 'rest' first",
        ),
        ({**GROUPS, "typo": {"modules": ["clap"], "lr": 1}}, "'clap', which matches no parameter.*'clip'"),
        ({"clip": {"modules": "clip", "lr": 1}}, "must be a list"),
        ({"clip": {"modules": ["clip"]}}, "needs modules and lr"),
        ({"clip": {"modules": ["clip"], "lr": 1, "decay": 1}}, "knows"),
        ({"clip/a": {"modules": ["clip"], "lr": 1}}, "'/'"),
        ({"clip": {"modules": ["clip"], "lr": 1, "layer_decay": 2}}, r"layer_decay.*\(0, 1\]"),
    ],
)
def test_groups_that_cannot_work_are_refused(groups, words):
    with pytest.raises(ValueError, match=words):
        build(groups)


def test_a_group_has_its_own_weight_decay_and_scale():
    groups = {**GROUPS, "clip": {"modules": ["clip"], "lr": 0.01, "weight_decay": 0.0, "lr_scale": 0.5}}
    heads, clip = build(groups)[0].param_groups
    assert (heads["weight_decay"], clip["weight_decay"], clip["lr"]) == (0.5, 0.0, 0.005)


@pytest.mark.parametrize(
    "name, first, last, blocks",
    [
        ("resnet10t", "network.layer1.0", "network.layer4.0", 4),  # its stem is a longer list, of other things
        ("resnet50", "network.layer1.0", "network.layer4.2", 16),
        ("convnext_atto", "network.stages.0.blocks.0", "network.stages.3.blocks.1", 12),
        ("vit_tiny_patch16_224", "network.blocks.0", "network.blocks.11", 12),
    ],
)
def test_blocks_are_those_of_all_stages_in_order(name, first, last, blocks):
    found = block_paths(nn.ModuleDict({"network": timm.create_model(name)}), ["network"])
    assert (found[0], found[-1], len(found)) == (first, last, blocks)


def test_layer_decay_falls_from_block_to_block_over_all_stages():
    module = nn.ModuleDict({"network": timm.create_model("convnext_atto")})
    groups = {"net": {"modules": ["network"], "lr": 1.0, "layer_decay": 0.5}}
    made = GroupedOptimizer(partial(torch.optim.SGD), groups)(module)["optimizer"].param_groups
    rate = {id(p): group["lr"] for group in made for p in group["params"]}
    rates = [rate[id(p)] for p in module.parameters()]
    assert rates == sorted(rates) and rates[0] == 0.5**12 and rates[-1] == 1.0 and len(set(rates)) == 13


def test_layer_decay_makes_a_group_of_each_block():
    groups = {**GROUPS, "clip": {"modules": ["clip"], "lr": 1.0, "layer_decay": 0.5}}
    rates = {group["name"]: group["lr"] for group in build(groups)[0].param_groups}
    blocks = {"clip/0": 0.125, "clip/1": 0.25, "clip/2": 0.5, "clip/3": 1.0}
    assert rates == {"heads": 0.1, "clip/stem": 0.0625, **blocks, "clip": 1.0}


def test_norms_and_biases_can_go_without_weight_decay():
    model = Model()
    groups = {**GROUPS, "clip": {"modules": ["clip"], "lr": 0.01, "decay_1d": False}}
    optimizer = build(groups, model=model)[0]
    decay = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decay == {"heads": 0.5, "clip": 0.5, "clip/1d": 0.0}
    shapes = {group["name"]: {p.ndim for p in group["params"]} for group in optimizer.param_groups}
    assert shapes == {"heads": {1, 2}, "clip": {2}, "clip/1d": {1}}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    before = model.network.clip.norm.weight.detach().clone()
    sum(p.sum() * 0 for p in model.parameters()).backward()
    optimizer.step()
    assert torch.equal(model.network.clip.norm.weight, before)


def test_blocks_and_shapes_divide_a_group_together():
    groups = {**GROUPS, "clip": {"modules": ["clip"], "lr": 1.0, "layer_decay": 0.5, "decay_1d": False}}
    rates = {group["name"]: group["lr"] for group in build(groups)[0].param_groups}
    assert rates["clip/1"] == rates["clip/1/1d"] == 0.25 and rates["clip/stem/1d"] == 0.0625
    assert rates["clip/1d"] == 1.0 and "clip" not in rates  # behind the blocks there is a norm alone


def test_extras_are_plain_and_the_state_is_a_round_trip(tmp_path):
    model = Model()
    optimizer, scheduler = build(model=model, schedule={"warmup_steps": 2})
    model.network.clip_head(torch.ones(1, 2)).sum().backward()
    lrs(optimizer, scheduler, 3)
    optimizer.param_groups[1]["opened_at"] = 2
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")
    state, schedule = torch.load(tmp_path / "state.pt", weights_only=True)
    again, scheduler_again = build(model=Model(), schedule={"warmup_steps": 2})
    again.load_state_dict(state)
    scheduler_again.load_state_dict(schedule)
    assert again.param_groups[1]["opened_at"] == 2 and again.param_groups[1]["modules"] == ["network.clip"]
    scheduler.refresh()
    scheduler_again.refresh()
    assert lrs(again, scheduler_again, 4) == lrs(optimizer, scheduler, 4)


# --- schedule ---


def test_constant_needs_no_trainer():
    assert lrs(*build(), 3) == [[0.1, 0.01]] * 3


def test_cosine_falls_to_zero_after_the_last_step():
    optimizer, scheduler = build(schedule={"shape": "cosine"})
    rates = [heads for heads, _ in lrs(optimizer, scheduler, 20)]
    assert rates[0] == 0.1 and rates[10] == pytest.approx(0.05) and rates == sorted(rates, reverse=True)
    assert rates[-1] > 0 and optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("clock, late", [("group", [0.0025, 0.005, 0.0075, 0.01]), ("global", [0.01] * 4)])
def test_a_late_group_warms_up_by_its_own_clock(clock, late):
    optimizer, scheduler = build(schedule={"warmup_steps": 3, "clock": clock})
    optimizer.param_groups[1]["opened_at"] = None
    scheduler.refresh()
    assert [clip for _, clip in lrs(optimizer, scheduler, 8)] == [0.0] * 8
    optimizer.param_groups[1]["opened_at"] = 8
    scheduler.refresh()
    assert [clip for _, clip in lrs(optimizer, scheduler, 4)] == pytest.approx(late)


def test_a_late_group_still_ends_at_zero_with_the_fit():
    optimizer, scheduler = build(schedule={"shape": "cosine"})
    lrs(optimizer, scheduler, 10)
    optimizer.param_groups[1]["opened_at"] = 10
    scheduler.refresh()
    rates = [clip for _, clip in lrs(optimizer, scheduler, 10)]
    assert rates[0] == 0.01 and rates[5] == pytest.approx(0.005) and optimizer.param_groups[1]["lr"] == 0.0


def test_step_drops_at_its_epochs():
    schedule = {"shape": "step", "at_epoch": [1, 3], "factor": 0.1}
    rates = [heads for heads, _ in lrs(*build(schedule=schedule), 20)]
    assert rates == pytest.approx([0.1] * 5 + [0.01] * 10 + [0.001] * 5)


def test_refresh_takes_no_step_and_is_idempotent():
    optimizer, scheduler = build(schedule={"shape": "cosine"})
    lrs(optimizer, scheduler, 7)
    before = [group["lr"] for group in optimizer.param_groups]
    scheduler.refresh()
    assert [group["lr"] for group in optimizer.param_groups] == before and scheduler.last_epoch == 7


def test_a_checkpoint_does_not_overrule_the_configured_shape():
    _, cosine = build(schedule={"shape": "cosine"})
    _, constant = build()
    constant.load_state_dict(cosine.state_dict())
    assert constant.schedule["shape"] == "constant"


def test_an_optimizer_of_anyone_can_be_scheduled():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OpenedGroupSchedule(optimizer, check_schedule({"warmup_steps": 1}), math.inf, math.inf)
    assert lrs(optimizer, scheduler, 2) == [[0.5], [1.0]]


@pytest.mark.parametrize(
    "schedule, words",
    [
        ({"shape": "square"}, "one of.*square"),
        ({"clock": "wall"}, "one of.*wall"),
        ({"warmup": 3}, "does not know.*warmup"),
        ({"warmup_steps": -1}, "not be negative"),
        ({"shape": "step"}, "needs at_epoch and factor"),
        ({"shape": "cosine", "factor": 0.1, "at_epoch": 1}, "only with it"),
    ],
)
def test_schedules_that_cannot_work_are_refused(schedule, words):
    with pytest.raises(ValueError, match=words):
        GroupedOptimizer(ADAMW, GROUPS, schedule)


@pytest.mark.parametrize("total", [math.inf, -1])
def test_cosine_without_an_end_is_refused(total):
    with pytest.raises(ValueError, match="max_epochs"):
        build(schedule={"shape": "cosine"}, model=Model(total))
