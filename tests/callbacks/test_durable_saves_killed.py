"""Killed, refused and interrupted saves, by the benchmark that has the scenarios, on our IO alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "durable_saves.py"
LOSSES = ("unreadable", "older than the last completed", "wrong content", "file itself not whole")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, mounts and reads /proc as Linux does")


def killed(folder, kills, megabytes):
    """The figures of a run, which lost nothing."""
    sizes = ["--kills", str(kills), "--megabytes", str(megabytes), "--pairs", "5", "--results", str(folder)]
    command = [sys.executable, str(SCRIPT), "--quick", "--only", "durable", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return json.loads((folder / "durable_saves_durable_quick.json").read_text())["figures"]


def check(figures, kills):
    timed, steps = (figures["kills"][kind]["durable"] for kind in ("timed", "steps"))
    assert len(timed["kills"]) == kills and len(steps["kills"]) > 5
    assert any("run.ckpt.part" in kill["after"] for kill in steps["kills"])
    for found in (timed["found"], steps["found"]):
        assert not any(found[loss] for loss in (*LOSSES, "orphans after the restart"))
    outcomes = {name: seen["durable"] for name, seen in figures["refusals"].items() if "skipped" not in seen["durable"]}
    assert "parent is a file" in outcomes
    assert all(seen["error"] and not seen["orphans"] for seen in outcomes.values()), outcomes


def test_a_killed_or_refused_save_loses_nothing(tmp_path):
    check(killed(tmp_path, kills=5, megabytes=8), kills=5)


@pytest.mark.slow
def test_forty_kills_within_a_save_lose_nothing(tmp_path):
    figures = killed(tmp_path, kills=40, megabytes=40)
    check(figures, kills=40)
    parts = [kill["part"] for kill in figures["kills"]["timed"]["durable"]["kills"]]
    assert min(parts) < 0.1 and max(parts) > 0.9
