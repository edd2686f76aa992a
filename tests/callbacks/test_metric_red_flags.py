import math

import pytest
import torch

from stagewise.callbacks import BestMedianCheckpoint, MetricRedFlags


def fit(tiny, folder, rule, scores, **kwargs):
    flags = MetricRedFlags({"rule": {"metric": "val/score", **rule}})
    trainer = tiny.fit(folder, tiny.TinyModule(scores=scores), [flags], **{"max_epochs": len(scores), **kwargs})
    return trainer, flags


def test_rising_for_counts_times_in_a_row_worse_than_the_time_before(tiny, tmp_path):
    trainer, flags = fit(tiny, tmp_path, {"rising_for": 3}, [1, 2, 3, 2.5, 3, 4, 5, 6, 7])
    assert trainer.current_epoch == 7 and flags.red_flag
    assert flags.reason == "red flag 'rule': val/score rising for 3 (2.5, 3, 4, 5), epoch 7"


def test_a_plateau_is_not_rising_and_mode_max_turns_it_round(tiny, tmp_path):
    assert fit(tiny, tmp_path, {"rising_for": 2}, [1, 2, 2, 2])[1].reason is None
    trainer, flags = fit(tiny, tmp_path, {"rising_for": 2, "mode": "max"}, [0.9, 0.8, 0.7, 0.6])
    assert trainer.current_epoch == 3 and flags.red_flag


def test_below_needs_patience_in_a_row_and_nan_is_no_evidence(tiny, tmp_path):
    rule = {"below": 0.001, "patience": 2}
    assert fit(tiny, tmp_path, rule, [0.0, 1.0, 0.0])[1].reason is None
    trainer, flags = fit(tiny, tmp_path, rule, [1.0, 0.0, math.nan, 0.0, 1.0])
    assert trainer.current_epoch == 4 and "below 0.001" in flags.reason


def test_train_metrics_are_read_at_the_end_of_each_epoch(tiny, tmp_path):
    trainer, flags = fit(tiny, tmp_path, {"metric": "train/loss", "above": 0.0, "patience": 2}, [1, 1, 1, 1])
    assert trainer.current_epoch == 2 and flags.reason.endswith("epoch 2")


def test_the_sanity_check_does_not_count(tiny, tmp_path):
    trainer, _ = fit(tiny, tmp_path, {"above": 0, "patience": 2}, [1, 1, 1], num_sanity_val_steps=-1)
    assert trainer.current_epoch == 2


def test_a_metric_that_is_never_logged_is_an_error_naming_what_is(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"val/loss.*val/score"):
        fit(tiny, tmp_path, {"metric": "val/loss", "above": 0}, [1, 1, 1])


def test_a_resume_goes_on_counting_and_a_stopped_run_stays_stopped(tiny, tmp_path):
    def go(scores, ckpt_path=None, **kwargs):
        flags = MetricRedFlags({"rule": {"metric": "val/score", "rising_for": 3}})
        best = BestMedianCheckpoint(str(tmp_path), "run", monitor="val/score")
        trainer = tiny.fit(tmp_path, tiny.TinyModule(scores=scores), [flags, best], ckpt_path=ckpt_path, **kwargs)
        return trainer, flags

    go([1, 2, 3], max_epochs=3)
    trainer, flags = go([1, 2, 3, 4, 5], tmp_path / "run_epoch_3.ckpt")
    assert trainer.current_epoch == 4 and flags.red_flag
    trainer, flags = go([1, 2, 3, 4, 5], tmp_path / "run_epoch_4.ckpt")
    assert trainer.global_step == 16 and flags.red_flag
    assert torch.load(tmp_path / "run_epoch_4.ckpt", weights_only=True)["callbacks"]["MetricRedFlags"]["reason"]


@pytest.mark.parametrize(
    "rule", [{"metric": "a"}, {"metric": "a", "below": 1, "above": 2}, {"below": 1}, {"metric": "a", "rising_for": 0}]
)
def test_rules_that_say_nothing_or_too_much_are_refused(rule):
    with pytest.raises(ValueError, match=r"rules\.x"):
        MetricRedFlags({"x": rule})
