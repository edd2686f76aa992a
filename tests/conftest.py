"""What tests of several folders share."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seeded():
    """A test that draws numbers draws the same ones every time: what fails here fails for the next reader too."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: what an earlier build left in ``build/`` would go into it, and two builds at once collide."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".git", *ignored))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = folder.glob("*.whl")
    return built


LONG = ("test_train.py", "test_landslide.py", "test_exact_resume.py", "test_other_project.py", "test_drains.py")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONG)}  # two processes end together when these start first
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
