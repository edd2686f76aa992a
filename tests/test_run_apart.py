"""How a run in processes of its own ended, as the sweep sees it."""

import json
import os

import pytest
from omegaconf import OmegaConf

from stagewise.run_apart import _outcome, must_run_apart
from stagewise.sweep import error_line


def tell(folder, rank, second, **outcome):
    path = folder / f"{rank}.json"
    path.write_text(json.dumps(outcome))
    os.utime(path, (second, second))


def test_the_score_is_that_of_the_first_process(tmp_path):
    tell(tmp_path, 1, 1, score=None)
    tell(tmp_path, 0, 0, score=0.5)
    assert _outcome(tmp_path, 0) == 0.5


def test_the_error_is_the_first_that_ended_a_process(tmp_path):
    others = {"message": "connection closed by peer", "is_users": False, "traceback": "of process 0"}
    tell(tmp_path, 0, 2, type="RuntimeError", **others)
    tell(tmp_path, 1, 1, type="QuotaError", message="too few rows", is_users=True, traceback="of process 1")
    with pytest.raises(ValueError, match="too few rows") as found:
        _outcome(tmp_path, 1)
    assert error_line(found.value) == "QuotaError: too few rows" and found.value.__notes__ == ["of process 1"]


@pytest.mark.parametrize(("code", "words"), [(-9, "was ended by SIGKILL"), (3, "left with code 3")])
def test_a_run_that_could_not_say_why_it_ended_fails_all_the_same(tmp_path, code, words):
    with pytest.raises(RuntimeError, match=f"the run {words}"):
        _outcome(tmp_path, code)


def test_a_run_that_was_preempted_ends_the_sweep(tmp_path):
    with pytest.raises(SystemExit) as end:
        _outcome(tmp_path, 75)
    assert end.value.code == 75


def test_a_run_outside_of_a_sweep_stays_in_its_program():
    assert not must_run_apart(OmegaConf.create({"trainer": {"strategy": {"_target_": "any"}}}))
