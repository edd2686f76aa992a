import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def _load(name):
    # by path: tests have no packages, and pytest imports them by file
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    return _load("tiny")


@pytest.fixture(scope="session")
def exact():
    return _load("exact")


@pytest.fixture
def staged():
    from stagewise.callbacks import StagedUnfreezing

    def make(stages, **kwargs):
        return StagedUnfreezing(stages, **{"monitor": "val/score", **kwargs})

    return make


@pytest.fixture(scope="session")
def spawned():
    """Runs a script of this folder in a process of its own, and gives what it printed."""
    import stagewise

    def run(script, *arguments, timeout=900):
        # the folder that holds the package, wherever it is installed
        path = os.pathsep.join([str(Path(stagewise.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert results, done.stderr[-3000:]
        return json.loads(results[-1].removeprefix("RESULT "))

    return run
