import math

import pytest
import torch

from stagewise.callbacks import BestMedianCheckpoint, StagedUnfreezing


def fit(tiny, folder, scores, callbacks=(), ckpt_path=None, max_epochs=None, start=None, sanity=0, **kwargs):
    best = BestMedianCheckpoint(str(folder / "ckpt"), "run", **{"monitor": "val/score", **kwargs})
    module, seen = tiny.TinyModule(scores=scores, start=start), tiny.Snapshots()
    options = {"max_epochs": max_epochs or len(scores), "num_sanity_val_steps": sanity}
    tiny.fit(folder, module, [*callbacks, best, seen], ckpt_path=ckpt_path, **options)
    return best, seen


def names(folder):
    return sorted(path.name for path in (folder / "ckpt").iterdir())


def load(path):
    return torch.load(path, weights_only=True)


def test_every_epoch_and_the_best_are_written(tiny, tmp_path):
    best, seen = fit(tiny, tmp_path, [3, 1, 2])
    assert names(tmp_path) == ["run_best.ckpt", "run_epoch_1.ckpt", "run_epoch_2.ckpt", "run_epoch_3.ckpt"]
    assert (best.best_score, best.best_epoch) == (1, 2)
    assert tiny.same(load(best.best_model_path)["state_dict"], seen.evaluations[1])


def test_every_epoch_off_writes_the_best_alone(tiny, tmp_path):
    fit(tiny, tmp_path, [1, 2], every_epoch=False)
    assert names(tmp_path) == ["run_best.ckpt"]


def test_nan_and_the_sanity_check_never_win(tiny, tmp_path):
    best, _ = fit(tiny, tmp_path, [math.nan, 3, math.nan], start=0.0, sanity=-1)
    assert best.best_score == 3 and best.best_epoch == 2


def test_mode_max(tiny, tmp_path):
    assert fit(tiny, tmp_path, [0.2, 0.9, 0.5], mode="max")[0].best_epoch == 2


def test_a_window_keeps_one_lucky_evaluation_from_winning(tiny, tmp_path):
    best, _ = fit(tiny, tmp_path, [5, 1, 5, 4, 3, 4], window=3)
    assert best.best_score == 3.0 and best.best_epoch == 2  # the median of 5 and 1, before the window is full
    best, _ = fit(tiny, tmp_path, [5, 5, 5, 1, 5, 4, 4], window=3)
    assert best.best_score == 4 and best.best_epoch == 6


def test_keep_leaves_the_ones_that_were_beaten(tiny, tmp_path):
    fit(tiny, tmp_path, [4, 3, 2], keep=2, every_epoch=False)
    assert names(tmp_path) == ["run_best.ckpt", "run_best_2.ckpt"]
    epochs = [load(tmp_path / "ckpt" / name)["callbacks"] for name in names(tmp_path)]
    assert [next(iter(state.values()))["best_epoch"] for state in epochs] == [3, 2]


def test_a_resume_into_another_folder_keeps_the_best_score_and_the_old_files(tiny, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    fit(tiny, old, [5, 1], max_epochs=2)
    before = names(old)
    best, _ = fit(tiny, new, [5, 1, 3, 2], ckpt_path=old / "ckpt" / "run_epoch_2.ckpt")
    assert best.best_score == 1 and best.best_model_path == str(old / "ckpt" / "run_best.ckpt")
    assert names(old) == before and names(new) == ["run_epoch_3.ckpt", "run_epoch_4.ckpt"]


def test_an_epoch_carries_the_decision_of_its_own_evaluation(tiny, staged, tmp_path):
    plan = {"heads": {"open": ["heads"], "epochs": 1}, "all": {"open": ["body"], "epochs": 1}}
    # the checkpoint comes first in the list, and still saves after the decision
    fit(tiny, tmp_path, [2, 1], callbacks=[staged(plan)])
    first, last = (load(tmp_path / "ckpt" / f"run_epoch_{epoch}.ckpt")["callbacks"] for epoch in (1, 2))
    assert first["StagedUnfreezing"]["index"] == 1 and last["StagedUnfreezing"]["finished"]


def test_weights_that_were_rolled_back_are_not_the_best(tiny, staged, tmp_path):
    plan = {"heads": {"open": ["heads"], "epochs": 1}, "all": {"open": ["body"], "epochs": 1}}
    # a stage judged by another metric than the checkpoint: rolled back where the checkpoint sees its best
    best, seen = fit(tiny, tmp_path, [1, 2], callbacks=[staged(plan)], mode="max")
    assert best.best_epoch == 1
    assert tiny.same(load(best.best_model_path)["state_dict"], seen.evaluations[0])


def test_a_monitor_that_is_never_logged_is_an_error_naming_what_is(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"val/other.*val/score"):
        fit(tiny, tmp_path, [1], monitor="val/other")


@pytest.mark.parametrize("arguments", [{"window": 0}, {"keep": 0}, {"mode": "least"}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BestMedianCheckpoint("ckpt", "run", monitor="val/score", **arguments)


def test_the_score_to_beat_wins_where_nothing_beats_it(tiny, tmp_path):
    stages = StagedUnfreezing({"heads": {"open": ["heads"], "epochs": 4}}, monitor="val/score", dirpath=str(tmp_path))
    best, _ = fit(tiny, tmp_path, [9, 9, 2, 2], [stages], start=3.0, sanity=-1, window=3)
    assert (best.best_score, best.best_epoch) == (2.0, 4)  # the medians are 9, 9, 9, 2: without the 3
    stages = StagedUnfreezing({"heads": {"open": ["heads"], "epochs": 2}}, monitor="val/score", dirpath=str(tmp_path))
    best, _ = fit(tiny, tmp_path, [3, 2], [stages], start=1.0, sanity=-1)
    assert (best.best_score, best.best_epoch) == (1.0, 0)
    assert tiny.same(load(best.best_model_path)["state_dict"], tiny.weights(tiny.TinyModule()))


def test_the_evaluation_of_a_stage_that_trains_nothing_can_win(tiny, tmp_path):
    plan = {"frozen": {"open": []}, "heads": {"open": ["heads"], "epochs": 2}}
    stages = StagedUnfreezing(plan, monitor="val/score", dirpath=str(tmp_path))
    best, _ = fit(tiny, tmp_path, [3, 2], [stages], start=1.0, sanity=-1)
    assert (best.best_score, best.best_epoch) == (1.0, 0)
    assert names(tmp_path) == ["run_best.ckpt", "run_epoch_0.ckpt", "run_epoch_1.ckpt", "run_epoch_2.ckpt"]
    fresh = tiny.TinyModule()
    assert tiny.same(load(best.best_model_path)["state_dict"], tiny.weights(fresh))
