import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from stagewise.callbacks import BestMedianCheckpoint, RareClassCollapseStopping

GOOD = [[50, 0, 0], [2, 28, 0], [1, 1, 28]]
POOR = [[50, 0, 0], [27, 3, 0], [1, 1, 28]]  # recall of rare 0.1
FEW = [[50, 0, 0], [5, 0, 0], [1, 1, 28]]  # 5 samples of rare
MAJORITY = [[50, 0, 0], [30, 0, 0], [30, 0, 0]]
RECALL = {"recall": {"floor": 0.3, "patience": 2}}


class Dictate(Callback):
    """Puts the matrices of the test into the module's metric, one an evaluation."""

    def __init__(self, matrices):
        self.matrices = matrices

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        matrix = self.matrices[min(pl_module.evaluation, len(self.matrices) - 1)]
        pl_module.val_confusion.confmat = torch.tensor(MAJORITY if trainer.sanity_checking else matrix)


def fit(tiny, folder, matrices, *callbacks, scores=None, **kwargs):
    collapse = RareClassCollapseStopping(**{"confusion": "val_confusion", "rules": RECALL, **kwargs})
    module = tiny.TinyModule(scores=scores or [9, 8, 7, 6, 5, 4, 3])
    every = [Dictate(matrices), collapse, *callbacks]
    trainer = tiny.fit(folder, module, every, max_epochs=len(matrices), num_sanity_val_steps=-1)
    return trainer, collapse, module


def test_a_rare_class_below_its_floor_for_its_patience_stops_the_fit(tiny, tmp_path):
    trainer, collapse, _ = fit(tiny, tmp_path, [GOOD, POOR, GOOD, POOR, POOR, POOR], rare=["rare"])
    assert trainer.current_epoch == 5 and collapse.red_flag
    assert collapse.reason == "collapse: recall of rare 0.100 < 0.300, epoch 5"


def test_only_the_rare_classes_are_watched(tiny, tmp_path):
    assert fit(tiny, tmp_path, [POOR, POOR, POOR], rare=["rarest"])[1].reason is None


def test_a_class_has_its_own_floor_and_patience(tiny, tmp_path):
    trainer, collapse, _ = fit(tiny, tmp_path, [GOOD] * 3, per_class={"rare": {"floor": 0.99, "patience": 1}}, rare=[])
    assert trainer.current_epoch == 1 and "rare 0.933 < 0.990" in collapse.reason


def test_too_few_samples_are_no_evidence_neither_for_nor_against(tiny, tmp_path):
    assert fit(tiny, tmp_path, [FEW] * 4)[1].reason is None
    assert fit(tiny, tmp_path, [POOR, FEW, POOR, GOOD])[0].current_epoch == 3


def test_predictions_that_all_go_to_one_class_stop_the_fit(tiny, tmp_path):
    trainer, collapse, _ = fit(tiny, tmp_path, [MAJORITY] * 3, rules={"share": {"max": 0.98, "patience": 2}})
    assert trainer.current_epoch == 2 and "share of common 1.000 > 0.980" in collapse.reason


def test_flag_warns_and_lets_the_fit_go_on(tiny, tmp_path, caplog):
    trainer, collapse, _ = fit(tiny, tmp_path, [POOR] * 3, action="flag")
    assert trainer.current_epoch == 3 and collapse.red_flag and collapse.reason is None
    assert "collapse: recall of rare 0.100 < 0.300, epoch" in caplog.text


def test_baselines_make_floors_fractions(tiny, staged, tmp_path):
    # majority: 50 of 110 samples, so half of it is 0.227
    assert "< 0.227" in fit(tiny, tmp_path, [POOR] * 2, rules={"recall": {"floor": 0.5}}, baseline="majority")[1].reason
    path = tmp_path / "recalls.json"
    path.write_text(json.dumps({"rare": 0.4}))
    assert fit(tiny, tmp_path, [POOR] * 2, rules={"recall": {"floor": 0.2}}, baseline=str(path))[1].reason is None
    plan = {"heads": {"open": ["heads"], "epochs": 1}, "all": {"open": ["body"], "epochs": 3}}
    rules = {"recall": {"floor": 0.5}}
    options = {"rules": rules, "baseline": "previous_stage"}
    trainer, collapse, _ = fit(tiny, tmp_path, [GOOD, POOR, POOR], staged(plan), **options)
    assert trainer.current_epoch == 2 and "rare 0.100 < 0.467" in collapse.reason


def test_start_after_waits_for_the_end_of_a_stage(tiny, staged, tmp_path):
    plan = {"heads": {"open": ["heads"], "epochs": 2}, "all": {"open": ["body"], "epochs": 4}}
    trainer, _, _ = fit(tiny, tmp_path, [POOR] * 6, staged(plan), start_after="stage:heads")
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("stages_first", [True, False])
def test_rollback_goes_to_a_healthy_evaluation_although_the_sick_ones_score_better(
    tiny, staged, tmp_path, stages_first
):
    plan = {"heads": {"open": ["heads"], "epochs": 1}, "all": {"open": ["body"], "epochs": 9}}
    stages, seen = staged(plan), tiny.Snapshots()
    collapse = RareClassCollapseStopping("val_confusion", RECALL, action="rollback")
    order = [stages, collapse] if stages_first else [collapse, stages]
    module = tiny.TinyModule(scores=[9, 8, 2, 1, 1])
    trainer = tiny.fit(tmp_path, module, [Dictate([GOOD, GOOD, POOR, POOR, POOR]), *order, seen])
    assert trainer.current_epoch == 4 and stages.reason.startswith("collapse: recall of rare")
    assert stages.progress.best == 8 and tiny.same(tiny.weights(module), seen.evaluations[1])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_the_strikes_survive_a_resume(tiny, tmp_path):
    best = BestMedianCheckpoint(str(tmp_path), "run", monitor="val/score")
    fit(tiny, tmp_path, [POOR], best)
    collapse = RareClassCollapseStopping("val_confusion", RECALL)
    checkpoint = tmp_path / "run_epoch_1.ckpt"
    trainer = tiny.fit(tmp_path, tiny.TinyModule([1]), [Dictate([POOR]), collapse], ckpt_path=checkpoint)
    assert trainer.current_epoch == 2 and collapse.reason


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"confusion": "val_matrix"}, "'val_matrix'.*val_confusion"),
        ({"rare": ["sindh"]}, "'sindh'.*common"),
        ({"per_class": {"sindh": {"floor": 0.1}}}, "'sindh'"),
        ({"rules": {"recall": {"floor": 30}}}, "share between 0 and 1"),
        ({"rules": {}}, "`rules`"),
        ({"action": "panic"}, "`action`"),
        ({"action": "rollback"}, "needs a StagedUnfreezing"),
        ({"start_after": "heads"}, "stage:NAME"),
        ({"baseline": "no.json"}, r"no file 'no.json'"),
    ],
)
def test_names_and_numbers_that_make_no_sense_are_refused(tiny, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        fit(tiny, tmp_path, [GOOD], **arguments)
