import importlib.util
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
