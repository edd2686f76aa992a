import json
from functools import partial

import pytest
import timm
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import OmegaConf

from stagewise.callbacks import BestMedianCheckpoint, StagedUnfreezing
from stagewise.callbacks.stage_progress import StageProgress
from stagewise.callbacks.supported import is_supported
from stagewise.callbacks.trainable import BatchNormGuard, frozen_batchnorms, set_trainable
from stagewise.lightning_modules.optim import GroupedOptimizer

BACKBONE = "network.backbone"
HEADS = {"open": ["heads"], "epochs": 2}
BODY = {"open": ["body"], "epochs": 2}


def backbone(state):
    return [name for name in state if name.startswith(BACKBONE)]


# --- stages ---


def test_frozen_parameters_and_statistics_stay_bitwise_constant_under_weight_decay(tiny, staged, tmp_path):
    module = tiny.TinyModule(scores=[3, 2, 1])
    before = tiny.weights(module)
    tiny.fit(tmp_path, module, [staged({"heads": HEADS}, at_end="last")])
    after = tiny.weights(module)
    assert tiny.same(before, after, backbone(before))
    assert not tiny.same(before, after, ["network.head.weight"])


def test_a_stale_zero_gradient_of_a_frozen_parameter_does_not_let_weight_decay_move_it():
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.5)
    layer(torch.zeros(1, 2)).sum().backward()
    before = layer.weight.detach().clone()
    set_trainable(layer, {"bias"})
    optimizer.step()
    assert torch.equal(layer.weight, before)


def test_every_parameter_of_an_opened_group_moves_even_zero_biases_and_unit_norms(tiny, staged, tmp_path):
    module = tiny.TinyModule(scores=[3, 2, 1])
    module.network.backbone[0].bias.data.zero_()
    before = tiny.weights(module)
    tiny.fit(tmp_path, module, [staged({"all": {"open": ["heads", "body"], "epochs": 1}}, at_end="last")])
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {name for name, _ in module.named_parameters()}


def test_stages_follow_each_other_and_the_last_stops_the_fit(tiny, staged, tmp_path):
    module, stages, seen = tiny.TinyModule(scores=[4, 3, 2, 1]), staged({"heads": HEADS, "all": BODY}), tiny.Snapshots()
    trainer = tiny.fit(tmp_path, module, [stages, seen])
    assert trainer.current_epoch == 4
    assert stages.reason.startswith("epochs") and not stages.red_flag
    assert [len(names) for names in seen.trainable] == [2] * 8 + [14] * 8


def test_plateau_ends_a_stage_and_names_itself(tiny, staged, tmp_path):
    stages = staged({"heads": {"open": ["heads"], "patience": 2}})
    trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=[5, 4, 6, 6, 1]), [stages])
    assert trainer.current_epoch == 4 and stages.reason.startswith("plateau")


def test_min_delta_is_for_patience_and_the_best_is_the_best(tiny, staged, tmp_path):
    stages = staged({"heads": {"open": ["heads"], "patience": 2, "min_delta": 0.5}})
    trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=[5, 4.9, 4.8, 1]), [stages])
    assert trainer.current_epoch == 3 and stages.progress.best == pytest.approx(4.8)


def test_a_stage_can_end_after_steps_and_inside_an_epoch(tiny, staged, tmp_path):
    stages, seen = staged({"heads": {"open": ["heads"], "steps": 2}, "all": BODY}), tiny.Snapshots()
    tiny.fit(tmp_path, tiny.TinyModule(scores=[3, 2, 1, 1, 1]), [stages, seen], val_check_interval=2)
    # the second stage is two whole passes long, though it began in the middle of one
    assert [len(names) for names in seen.trainable] == [2] * 2 + [14] * 8


def test_only_freezes_what_came_before(tiny, staged, tmp_path):
    seen = tiny.Snapshots()
    stages = staged({"heads": {"open": ["heads"], "epochs": 1}, "body": {**BODY, "only": True}})
    tiny.fit(tmp_path, tiny.TinyModule(scores=[3, 2, 1]), [stages, seen])
    assert all(name.startswith(BACKBONE) for name in seen.trainable[-1])
    assert seen.lrs[-1] == {"heads": 0.0, "body": 0.02}


def test_a_late_group_starts_its_own_warm_up_and_a_closed_one_has_lr_zero(tiny, staged, tmp_path):
    optimizer = GroupedOptimizer(partial(torch.optim.SGD), tiny.GROUPS, {"warmup_steps": 3}, prefix="network")
    seen, stages = tiny.Snapshots(), staged({"heads": {"open": ["heads"], "epochs": 1}, "all": BODY})
    tiny.fit(tmp_path, tiny.TinyModule(scores=[3, 2, 1], optimizer=optimizer), [stages, seen])
    body = [lrs["body"] for lrs in seen.lrs]
    assert body[:4] == [0.0] * 4
    assert body[4:9] == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02])


def test_gradients_of_an_accumulation_window_are_dropped_at_a_change_of_stage(tiny, staged, tmp_path):
    stages = staged({"heads": {"open": ["heads"], "patience": 1}, "all": BODY}, on_no_gain="keep")
    grads = {}

    class Watch(Callback):
        def on_validation_end(self, trainer, pl_module):
            parameter = pl_module.network.head.weight
            grads[stages.progress.evaluations] = parameter.grad is not None

    module = tiny.TinyModule(scores=[5, 4, 6, 1])
    tiny.fit(tmp_path, module, [stages, Watch()], accumulate_grad_batches=2, val_check_interval=1, max_epochs=1)
    # after batches 1 and 3 the window is open; the stage changes after batch 3
    assert stages.progress.index == 1 and grads == {1: True, 2: False, 3: False, 4: False}


# --- roll-back ---


def test_a_stage_without_gain_is_undone_the_last_one_included(tiny, staged, tmp_path):
    module, stages, seen = tiny.TinyModule(scores=[4, 3, 5, 6]), staged({"heads": HEADS, "all": BODY}), tiny.Snapshots()
    tiny.fit(tmp_path, module, [stages, seen])
    assert tiny.same(tiny.weights(module), seen.evaluations[1])
    report = json.loads((tmp_path / "stages" / "stages.json").read_text())
    assert [row["outcome"] for row in report["stages"]] == ["kept", "rolled back"]
    assert [row["gain"] for row in report["stages"]] == [None, -2.0]


def test_a_stage_that_the_trainer_cuts_off_is_judged_as_well(tiny, staged, tmp_path):
    module, stages, seen = tiny.TinyModule(scores=[4, 3, 5]), staged({"heads": HEADS, "all": BODY}), tiny.Snapshots()
    tiny.fit(tmp_path, module, [stages, seen], max_epochs=3)
    assert tiny.same(tiny.weights(module), seen.evaluations[1])
    assert stages.reason is None and stages.progress.records[-1]["outcome"] == "rolled back"


def test_stages_that_never_began_are_named(tiny, staged, tmp_path):
    with pytest.warns(UserWarning, match=r"before the stages \['all'\] began; give it more epochs"):
        tiny.fit(tmp_path, tiny.TinyModule(scores=[4]), [staged({"heads": HEADS, "all": BODY})], max_epochs=1)


def test_a_stage_in_the_middle_is_undone_before_the_next_begins(tiny, staged, tmp_path):
    plan = {"heads": {"open": ["heads"], "epochs": 1}, "a": {"open": ["body"], "epochs": 1}, "b": BODY}
    module, seen = tiny.TinyModule(scores=[4, 5, 3, 2]), tiny.Snapshots()
    starts = []

    class Start(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            starts.append(tiny.weights(pl_module))

    tiny.fit(tmp_path, module, [staged(plan), seen, Start()])
    assert tiny.same(starts[2], seen.evaluations[0])


@pytest.mark.parametrize("at_end, evaluation", [("best", 1), ("last", 2)])
def test_the_module_ends_with_its_best_or_its_last(tiny, staged, tmp_path, at_end, evaluation):
    module, seen = tiny.TinyModule(scores=[4, 3, 5]), tiny.Snapshots()
    stages = staged({"heads": {"open": ["heads"], "epochs": 3}}, at_end=at_end)
    tiny.fit(tmp_path, module, [stages, seen])
    assert tiny.same(tiny.weights(module), seen.evaluations[evaluation])


def test_on_no_gain_keep_goes_on_and_stop_stops(tiny, staged, tmp_path):
    plan = {"heads": HEADS, "all": BODY}
    kept = staged({**plan, "more": BODY}, on_no_gain="keep", at_end="last")
    trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3, 5, 6, 7, 7]), [kept])
    assert trainer.current_epoch == 6 and {row["outcome"] for row in kept.progress.records} == {"kept"}
    assert not (tmp_path / "stages" / "best_weights.pt").exists()
    stopped = staged({**plan, "more": BODY}, on_no_gain="stop")
    trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3, 5, 6, 7, 7]), [stopped])
    assert trainer.current_epoch == 4 and stopped.reason.startswith("no gain")


def test_nan_is_never_the_best(tiny, staged, tmp_path):
    stages = staged({"heads": {"open": ["heads"], "epochs": 3}})
    tiny.fit(tmp_path, tiny.TinyModule(scores=[float("nan"), 3, float("nan")]), [stages])
    assert stages.progress.best == 3 and stages.progress.best_evaluation == 2


def test_a_full_sanity_check_is_the_score_to_beat(tiny, staged, tmp_path):
    module, stages = tiny.TinyModule(scores=[4, 3], start=1.0), staged({"heads": HEADS})
    before = tiny.weights(module)
    tiny.fit(tmp_path, module, [stages], num_sanity_val_steps=-1)
    assert stages.start_value == 1.0 and tiny.same(before, tiny.weights(module))


def test_a_resumed_run_keeps_the_score_to_beat(tiny, tmp_path):
    checkpoint = None
    for _ in range(2):  # Lightning repeats the sanity check where the checkpoint is of the end of an epoch
        stages = StagedUnfreezing({"heads": HEADS}, monitor="val/score", dirpath=str(tmp_path))
        every = BestMedianCheckpoint(str(tmp_path), "run", monitor="val/score")
        module = tiny.TinyModule(scores=[4, 3], start=1.0 if checkpoint is None else 5.0)
        tiny.fit(tmp_path, module, [stages, every], checkpoint, num_sanity_val_steps=-1)
        assert (stages.start_value, stages.progress.best, every.best_score) == (1.0, 1.0, 1.0)
        assert stages.stage_summary() == "stages by val/score: heads 3 (-2, rolled back)"
        checkpoint = tmp_path / "run_epoch_1.ckpt"


def test_a_stage_that_gains_nothing_says_so_without_a_minus():
    progress = StageProgress("max", best_before=0.5, stage_best=0.5)
    assert f"{progress.gain:+.4g}" == "+0"


def test_a_partial_sanity_check_does_not_count(tiny, staged, tmp_path):
    stages = staged({"heads": HEADS})
    tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3], start=1.0), [stages], num_sanity_val_steps=1)
    assert stages.start_value is None and stages.progress.evaluations == 2 and stages.progress.best == 3


def test_trainer_validate_does_not_count(tiny, staged, tmp_path):
    stages = staged({"heads": HEADS})
    trainer = tiny.make_trainer(tmp_path, [stages])
    trainer.validate(tiny.TinyModule(scores=[4]), tiny.loader(), verbose=False)
    assert stages.progress.evaluations == 0


def test_the_last_stage_does_not_end_before_min_epochs(tiny, staged, tmp_path):
    stages = staged({"heads": {"open": ["heads"], "epochs": 1}})
    trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3, 2, 1]), [stages], min_epochs=3)
    assert trainer.current_epoch == 3 and stages.progress.evaluations == 3


def test_best_weights_are_whole_plain_and_three_generations(tiny, staged, tmp_path):
    tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3, 2]), [staged({"heads": {"open": ["heads"], "epochs": 3}})])
    files = sorted(path.name for path in (tmp_path / "stages").iterdir())
    assert files == ["best_weights.previous.pt", "best_weights.previous_2.pt", "best_weights.pt", "stages.json"]
    assert torch.load(tmp_path / "stages" / "best_weights.pt", weights_only=True)["evaluation"].endswith("-3")


# --- batch normalisation ---


class SelfTraining(Callback):
    """Calls train() at the worst moment, as some modules do."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        forward = pl_module.network.forward
        pl_module.network.forward = lambda inputs: forward((pl_module.train(), inputs)[1])


def test_frozen_batchnorm_stays_frozen_though_something_calls_train(tiny, staged, tmp_path):
    module = tiny.TinyModule(scores=[1])
    before = tiny.weights(module)
    tiny.fit(tmp_path, module, [staged({"heads": HEADS}, at_end="last"), SelfTraining()])
    assert tiny.same(before, tiny.weights(module), backbone(before))


def test_thawed_batchnorm_trains_again_although_lightning_restores_the_mode_of_before(tiny, staged, tmp_path):
    modes = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            modes.append(pl_module.network.backbone[1].training)

    tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3, 2, 1]), [staged({"heads": HEADS, "all": BODY}), Watch()])
    assert modes == [False] * 8 + [True] * 8


@pytest.mark.parametrize("mode, constant", [("frozen_eval", True), ("batch_stats", True), ("train", False)])
def test_batchnorm_modes(tiny, staged, tmp_path, mode, constant):
    module = tiny.TinyModule(scores=[1])
    before = tiny.weights(module)
    tiny.fit(tmp_path, module, [staged({"heads": HEADS}, batchnorm=mode, at_end="last")])
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert tiny.same(before, tiny.weights(module), statistics) is constant
    assert module.network.backbone[1].track_running_stats


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.BatchNorm1d(3),
        torch.nn.BatchNorm2d(3),
        torch.nn.BatchNorm3d(3),
        torch.nn.SyncBatchNorm(3),
        torch.nn.BatchNorm2d(3, affine=False),
        timm.layers.BatchNormAct2d(3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_kind_of_batch_normalisation_is_held_and_let_go(layer):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), layer).requires_grad_(False)
    assert frozen_batchnorms(net) == [layer]
    guard = BatchNormGuard("frozen_eval")
    guard.apply(net)
    assert not layer.training
    guard.apply(net.requires_grad_(True))
    guard.resume_training()
    assert layer.training and not layer._forward_pre_hooks


def test_a_tied_parameter_is_open_when_either_of_its_names_is(tiny, staged):
    module = tiny.TinyModule()
    blocks = module.network.backbone[2]
    blocks[3].weight = blocks[0].weight  # the last block shares with the first
    plan = staged({"top": {"open": {"body": {"last": 0.25}}}}).plan(module)
    assert plan.rows[0]["trainable"] == 36 + 6  # the shared weight and the last bias


# --- refusals ---


def test_hydra_s_own_lists_and_dicts_will_do(staged):
    stages = OmegaConf.create({"a": {"open": ["heads"], "epochs": 1}, "b": {"open": {"body": ["0"]}}})
    assert [stage.open for stage in staged(stages).stages] == [{"heads": True}, {"body": ["0"]}]


@pytest.mark.parametrize(
    "stages, words",
    [
        ({}, "is empty"),
        ({"a": {"open": None, "epochs": 1}}, "names no groups"),
        ({"a": {"open": ["heads"], "patience": 0}}, "patience.*from 1 on"),
        ({"a": {"open": ["heads"]}, "b": {"open": ["body"], "epochs": 1}}, "`stages.a` never ends"),
        ({"a": {"open": ["heads"], "epoch": 1}}, "does not know.*epoch"),
        ({"a": {"open": {"body": {"last": 30}}}}, "share in"),
        ({"a": {"open": {"body": False}}}, "must be true"),
    ],
)
def test_a_description_that_cannot_work_is_refused_at_once(staged, stages, words):
    with pytest.raises(ValueError, match=words):
        staged(stages)


@pytest.mark.parametrize("opening, words", [(["clip"], "'clip'.*heads"), ({"body": ["layer9"]}, "'layer9'.*'0'")])
def test_an_unknown_group_or_submodule_is_refused_before_training(tiny, staged, tmp_path, opening, words):
    with pytest.raises(ValueError, match=words):
        tiny.fit(tmp_path, tiny.TinyModule(scores=[1]), [staged({"a": {"open": opening, "epochs": 1}})])


def test_a_monitor_that_is_never_logged_is_an_error_naming_what_is(tiny, tmp_path):
    stages = StagedUnfreezing({"heads": HEADS}, monitor="val/accuracy")
    with pytest.raises(ValueError, match=r"val/accuracy.*val/score"):
        tiny.fit(tmp_path, tiny.TinyModule(scores=[1]), [stages])


def test_sharded_strategies_and_averaged_weights_are_refused(tiny, staged, tmp_path):
    assert not is_supported(FSDPStrategy())
    average = EMAWeightAveraging(decay=0.9)
    with pytest.raises(ValueError, match="averaged weights"):
        tiny.fit(tmp_path, tiny.TinyModule(scores=[1]), [staged({"heads": HEADS}), average])


def test_plan_needs_no_trainer_and_names_what_nobody_takes(tiny, staged):
    optimizer = GroupedOptimizer(
        partial(torch.optim.SGD), {"body": {"modules": ["backbone"], "lr": 0.1}}, prefix="network"
    )
    plan = staged({"top": {"open": {"body": {"last": 0.3}}}}).plan(tiny.TinyModule(optimizer=optimizer))
    assert plan.rows[0]["trainable"] == 42 and plan.rows[0]["total"] == 231
    assert plan.unclaimed == ["network.head.weight", "network.head.bias"]
    assert "top" in str(plan) and "network.head.bias" in str(plan)


def test_a_stage_that_opens_nothing_new_says_so(tiny, staged, tmp_path, caplog):
    caplog.set_level("INFO")
    plan = {"heads": {"open": ["heads"], "epochs": 1}, "again": {"open": ["heads"], "epochs": 1}}
    tiny.fit(tmp_path, tiny.TinyModule(scores=[2, 1]), [staged(plan)])
    assert "none of them new" in caplog.text


# --- resume ---


PLAN = {"heads": HEADS, "all": {"open": ["body"], "patience": 2}, "more": {"open": ["body"], "epochs": 2}}
SCORES = [6, 5, 4, 7, 8, 3, 9]


def run(tiny, folder, ckpt_path=None, checkpoints=None, **kwargs):
    module, seen = tiny.TinyModule(scores=SCORES), tiny.Snapshots()
    stages = StagedUnfreezing(PLAN, monitor="val/score", dirpath=str(folder))
    best = BestMedianCheckpoint(str(checkpoints or folder / "checkpoints"), "run", monitor="val/score")
    tiny.fit(folder, module, [stages, seen, best], ckpt_path=ckpt_path, **kwargs)
    return module, stages, seen, best


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder / "checkpoints", run(tiny, folder)


@pytest.mark.parametrize("epoch", range(1, 7))
def test_resume_from_any_epoch_is_bitwise_the_run_that_was_never_killed(tiny, whole, tmp_path, epoch):
    source, (module, stages, seen, _) = whole
    again, resumed, seen_again, best = run(tiny, tmp_path, source / f"run_epoch_{epoch}.ckpt")
    assert tiny.same(tiny.weights(module), tiny.weights(again))
    assert seen_again.trainable == seen.trainable[4 * epoch :] and seen_again.lrs == seen.lrs[4 * epoch :]
    assert resumed.reason == stages.reason and resumed.progress.records == stages.progress.records
    assert best.best_score == 3


def test_a_finished_run_trains_no_more_and_still_ends_with_its_best(tiny, whole, tmp_path):
    source, (module, _, _, _) = whole
    again, _, seen, _ = run(tiny, tmp_path, source / "run_epoch_7.ckpt")
    assert not seen.trainable and tiny.same(tiny.weights(module), tiny.weights(again))


def test_state_loads_with_weights_only_and_is_plain(whole):
    state = torch.load(whole[0] / "run_epoch_5.ckpt", weights_only=True)["callbacks"]
    assert json.loads(json.dumps(state["StagedUnfreezing"])) == state["StagedUnfreezing"]
    assert state["StagedUnfreezing"]["index"] == 2 and len(state["StagedUnfreezing"]["records"]) == 2


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_renamed_stages_and_groups_are_refused_with_the_difference(tiny, staged, whole, tmp_path):
    checkpoint = str(whole[0] / "run_epoch_3.ckpt")
    with pytest.raises(ValueError, match=r"other stages.*\n.*'more'.*\n.*'most'"):
        renamed = {**{name: PLAN[name] for name in ("heads", "all")}, "most": PLAN["more"]}
        tiny.fit(tmp_path, tiny.TinyModule(scores=SCORES), [staged(renamed)], ckpt_path=checkpoint)
    moved = {"heads": {"modules": ["head", "backbone.0"], "lr": 0.05}, "body": tiny.GROUPS["body"]}
    optimizer = GroupedOptimizer(partial(torch.optim.AdamW), moved, prefix="network")
    with pytest.raises(ValueError, match=r"heads: 2 parameters.*4 parameters"):
        tiny.fit(tmp_path, tiny.TinyModule(SCORES, optimizer=optimizer), [staged(PLAN)], ckpt_path=checkpoint)
    swapped = {name: tiny.GROUPS[name] for name in ("body", "heads")}
    optimizer = GroupedOptimizer(partial(torch.optim.AdamW), swapped, prefix="network")
    with pytest.raises(ValueError, match="other optimizer groups"):
        tiny.fit(tmp_path, tiny.TinyModule(SCORES, optimizer=optimizer), [staged(PLAN)], ckpt_path=checkpoint)


def test_a_resume_without_the_best_weights_is_refused(tiny, tmp_path):
    run(tiny, tmp_path)
    for path in (tmp_path / "stages").glob("*.pt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="on_no_gain='keep'"):
        run(tiny, tmp_path / "again", tmp_path / "checkpoints" / "run_epoch_5.ckpt")


# --- stages that train nothing ---


class Frozen(Callback):
    """Counts training batches and evaluations."""

    def __init__(self):
        self.batches = self.evaluations = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1

    def on_validation_end(self, trainer, pl_module):
        self.evaluations += 1


def test_a_stage_that_trains_nothing_is_one_evaluation_that_the_next_has_to_beat(tiny, staged, tmp_path):
    module, stages, seen = (
        tiny.TinyModule(scores=[4, 3], start=1.0),
        staged({"frozen": {"open": []}, "heads": HEADS}),
        Frozen(),
    )
    before = tiny.weights(module)
    tiny.fit(tmp_path, module, [stages, seen], num_sanity_val_steps=-1)
    first, second = stages.records
    assert (first["outcome"], first["best"], first["trainable"], first["epochs"]) == ("evaluated", 1.0, 0, 0)
    assert (second["outcome"], second["gain"]) == ("rolled back", -2.0) and tiny.same(before, tiny.weights(module))
    assert (seen.batches, seen.evaluations) == (8, 3)
    assert stages.stage_summary() == "stages by val/score: frozen 1 (evaluated), heads 3 (-2, rolled back)"


def test_a_plan_that_trains_nothing_at_all_ends_before_the_first_batch(tiny, staged, tmp_path):
    stages, seen = staged({"frozen": {"open": []}}), Frozen()
    tiny.fit(tmp_path, tiny.TinyModule(start=1.0), [stages, seen], num_sanity_val_steps=-1)
    assert (seen.batches, seen.evaluations) == (0, 1) and stages.reason.startswith("nothing trains")


def test_a_later_stage_that_trains_nothing_is_passed_over(tiny, staged, tmp_path):
    plan = {"heads": HEADS, "frozen": {"open": [], "only": True}, "all": BODY}
    stages = staged(plan)
    trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=[4, 3, 2, 1]), [stages])
    assert [row["outcome"] for row in stages.records] == ["kept", "evaluated", "kept"] and trainer.current_epoch == 4


@pytest.mark.parametrize("start, sanity, words", [(1.0, 0, "num_sanity_val_steps=-1"), (None, -1, "gave no number")])
def test_a_first_stage_that_trains_nothing_needs_its_evaluation(tiny, staged, tmp_path, start, sanity, words):
    with pytest.raises(ValueError, match=words):
        tiny.fit(tmp_path, tiny.TinyModule(start=start), [staged({"a": {"open": []}})], num_sanity_val_steps=sanity)
