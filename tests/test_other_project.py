"""Somebody else's repository (tests/other_project) in a new environment that has the wheel, killed on the way."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 24  # batches of a whole run: 4 epochs of 6

CHECKED_TRAINING = """
import runpy, sys
from pathlib import Path

from stagewise.callbacks import BestMedianCheckpoint, DurableCheckpointIO, ExactResume, LossRamp
from stagewise.callbacks import MetricRedFlags, RareClassCollapseStopping, StagedUnfreezing
from stagewise.datamodules import GroupBalancedBatchSampler, ResumableDataLoader
from stagewise.lightning_modules import GroupedOptimizer, Quantile
import callbacks, classifier, datamodules, stagewise

for module in (callbacks, classifier, datamodules):
    assert Path(module.__file__).is_relative_to(Path.cwd()), module.__file__
assert Path(stagewise.__file__).is_relative_to(sys.prefix), stagewise.__file__
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def sees_ours(python: Path, wheel: Path) -> None:
    """Third-party packages are those of the running environment: a path alone, so its editable install stays out."""
    call([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel])
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")


def is_fresh(python: Path, wheel: Path) -> None:
    """Everything from the registry, as a user installs it."""
    if importlib.util.find_spec("uv") is None:
        pytest.skip("uv is not installed; `make setup` installs it")
    call([sys.executable, "-m", "uv", "pip", "install", "--python", python, "-c", ROOT / "requirements.lock", wheel])


def call(command: list[object]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(
    params=[sees_ours, pytest.param(is_fresh, marks=pytest.mark.slow)], ids=lambda install: install.__name__
)
def project(request, wheel, tmp_path):
    """Starts a script of the project with the new environment's Python."""
    python = tmp_path / "venv" / "bin" / "python"
    call([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"])
    request.param(python, wheel)
    shutil.copytree(
        ROOT / "tests" / "other_project", tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PL_GLOBAL_SEED")}
    environment |= {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    started = []

    def start(folder, *script):
        command = [str(python), *(script or ["train.py"]), f"run_dir={folder}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path / "project", env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes


def result_of(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)


def test_it_trains_survives_a_kill_and_stays_finished(project, tmp_path):
    """Two chains of real starts at the same time, since a start is mostly imports."""
    killed, whole = project(tmp_path / "killed"), project(tmp_path / "whole", "-c", CHECKED_TRAINING)
    wait_for(tmp_path / "killed" / "resume.ckpt", killed)
    wait_for(tmp_path / "killed" / "stages" / "stages.json", killed)  # the first stage has just ended
    killed.kill()
    assert killed.wait() == -9
    resumed = project(tmp_path / "killed")
    whole = result_of(whole)
    finished = project(tmp_path / "whole")
    resumed, finished = result_of(resumed), result_of(finished)

    assert whole["batches"] == TOTAL and list(whole["stages"]) == ["head", "top"]
    assert 0 < resumed["batches"] < TOTAL and finished["batches"] == 0
    assert resumed == {**whole, "batches": resumed["batches"]}
    assert finished == {**whole, "batches": 0}
