import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stagewise

HERE = Path(__file__).parent


def spawn(*arguments):
    # the folder that holds the package, wherever it is installed
    path = os.pathsep.join([str(Path(stagewise.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "ddp_script.py"), str(HERE), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stderr[-3000:]
    return json.loads(results[-1].removeprefix("RESULT "))


@pytest.mark.slow
def test_two_ranks_stay_equal_through_thaw_freeze_and_rollback_and_a_resume(tmp_path):
    whole = spawn(tmp_path / "whole")
    assert whole["outcomes"] == ["kept", "rolled back", "kept", "kept"]
    assert whole["trainable"] == [14, 14, 12, 14, 14, 14]
    assert whole["differences"] == [0.0] * 6
    resumed = spawn(tmp_path / "again", tmp_path / "whole" / "run_epoch_2.ckpt")
    assert set(resumed["differences"]) == {0.0} and resumed["outcomes"] == whole["outcomes"]
    assert resumed["total"] == whole["total"]
