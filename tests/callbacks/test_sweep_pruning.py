"""Runs of a sweep that are stopped because most of the others were better at the same evaluation."""

import json
import math

import pytest

from stagewise.callbacks import BestMedianCheckpoint, SweepPruning


@pytest.fixture
def go(tiny, tmp_path):
    def run(scores, others=(), name="9", ckpt_path=None, extra=(), **kwargs):
        for number, values in enumerate(others):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            content = {"monitor": "val/score", "values": values}
            (tmp_path / str(number) / "evaluations.json").write_text(json.dumps(content))
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"mode": "min", "startup_runs": 3, "warmup": 1, **kwargs}
        pruning = SweepPruning(str(folder), str(tmp_path), "val/score", **settings)
        module, callbacks = tiny.TinyModule(scores=scores), [pruning, *extra]
        trainer = tiny.fit(folder, module, callbacks, ckpt_path=ckpt_path, max_epochs=len(scores))
        return trainer.current_epoch, pruning

    return run


OTHERS = [[5, 4, 3, 2], [6, 5, 4, 3], [7, 6, 5, 4]]


def test_a_run_worse_than_the_median_of_the_others_at_the_same_evaluation_is_stopped(go, tmp_path):
    epochs, pruning = go([9, 5.5, 5.5, 1], OTHERS)
    assert epochs == 2 and pruning.pruned  # 9 against a median of 6 falls into the warm-up, 5.5 against 5 does not
    assert pruning.reason == "pruned at evaluation 2: val/score 5.5, median of 3 runs 5"
    written = json.loads((tmp_path / "9" / "evaluations.json").read_text())
    assert written == {"monitor": "val/score", "values": [9.0, 5.5]}


def test_its_best_value_counts_and_as_good_as_the_median_is_good_enough(go):
    assert go([4, 9, 9, 3], OTHERS)[0] == 4  # 4 is the median of the others' best at evaluation 3
    assert go([-4, -9, -9, -3], [[-value for value in values] for values in OTHERS], mode="max")[0] == 4
    assert go([-4, -9, -9, -5], [[-value for value in values] for values in OTHERS], mode="max")[0] == 4
    assert go([-9, -9, -9, -1], [[-value for value in values] for values in OTHERS], mode="max")[0] == 2


def test_few_others_other_metrics_and_runs_that_ended_before_do_not_count(go, tmp_path):
    assert go([9, 9, 9], OTHERS[:2])[0] == 3
    assert go([9, 9, 9], [*OTHERS[:2], [1]])[0] == 3
    (tmp_path / "2" / "evaluations.json").write_text(json.dumps({"monitor": "other", "values": [1, 1, 1]}))
    assert go([9, 9, 9])[0] == 3


def test_nan_is_worse_than_anything_and_is_none_of_the_others(go):
    assert go([math.nan, math.nan, 1], OTHERS)[0] == 2
    assert go([5, 5, 5], [*OTHERS[:2], [math.nan, math.nan, math.nan]])[0] == 3


def test_a_run_that_is_not_in_the_sweeps_folder_is_left_alone(go, tmp_path):
    epochs, _ = go([9, 9, 9], OTHERS, name="first/9")  # such as the run that one of the sweep starts from
    assert epochs == 3 and not (tmp_path / "first" / "9" / "evaluations.json").exists()


def test_a_pruned_run_stays_stopped_and_one_that_was_killed_goes_on(go, tmp_path):
    best = BestMedianCheckpoint(str(tmp_path / "kept"), "run", monitor="val/score")
    go([9, 5.5, 5.5, 1], OTHERS, extra=[best])
    for number in (2, 1):
        again = BestMedianCheckpoint(str(tmp_path / "again"), "run", monitor="val/score")
        checkpoint = tmp_path / "kept" / f"run_epoch_{number}.ckpt"
        _, pruning = go([9, 5.5, 5.5, 1], OTHERS, ckpt_path=checkpoint, extra=[again])
        assert pruning.pruned and pruning.values == [9.0, 5.5]


@pytest.mark.parametrize("argument", [{"startup_runs": 0}, {"warmup": -1}, {"mode": "best"}])
def test_arguments_that_cannot_work_are_refused(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        SweepPruning("sweep/0", "sweep", "val/score", **argument)
