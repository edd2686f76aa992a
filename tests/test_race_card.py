"""``make bench``: no benchmark is forgotten, every result is in the card, a failure is named and does not end the rest."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
README = BENCHMARKS.with_name("README.md")


@pytest.fixture
def script(monkeypatch):
    """Imports one of the benchmarks' modules under its plain name, which no other test may find."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").is_file():
            del sys.modules[name]


@pytest.fixture
def card(script):
    return script("race_card")


def test_every_script_that_writes_a_result_is_in_the_list(card):
    writes = re.compile(r"^\s*from timing import .*\bwrite\b|\btiming\.write\(", re.MULTILINE)
    scripts = {path.stem for path in BENCHMARKS.glob("*.py") if writes.search(path.read_text())}
    assert len(scripts) > 20
    assert scripts == {race.name for race in card.RACES}


def test_every_result_that_is_kept_is_in_the_card_with_its_figures(card):
    kept = {stem: content for stem, content in card.results().items() if not stem.endswith(card.QUICK)}
    assert len(kept) > 15
    for stem, content in kept.items():
        line = card.race_of(stem).line
        assert str(next(iter(content["table"][0].values()))) in card.section(stem, content)
        if line and stem == card.race_of(stem).name:
            assert card.cell(content, line.ours), f"{stem}.json has no {line.ours}"
            assert not line.beside or card.cell(content, line.beside), f"{stem}.json has no {line.beside}"


def test_readme_shows_the_lines_as_they_were_measured(card):
    assert card.telling().count("\n") == 11
    assert card.telling() in README.read_text(), "python benchmarks/race_card.py --readme prints what belongs there"


def test_a_full_result_stands_before_a_quick_one(card, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "RESULTS", tmp_path)
    for stem in ("sampler", "sampler_quick", "cell_loss_quick"):
        (tmp_path / f"{stem}.json").write_text("{}")
    assert set(card.results()) == {"sampler", "cell_loss_quick"}
    (tmp_path / "unknown.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"unknown\.json belongs to no benchmark"):
        [card.race_of(stem) for stem in card.results()]


def test_failures_are_named_and_the_others_run(card, tmp_path, monkeypatch, capsys):
    scripts = {"bad": "print('why'); 1 / 0", "slow": "import time; time.sleep(60)", "good": "print('fine')"}
    scripts["real"] = "import os, sys; assert os.path.isdir(sys.argv[1]) and sys.argv[2] == '--quick'"
    for name, code in scripts.items():
        (tmp_path / f"{name}.py").write_text(code)
    race = card.Race
    races = [
        race("bad"),
        race("slow", limit_s=1),
        race("good"),
        race("away", data="x"),
        race("real", data="here"),
        race("lone", peers=("no_such",)),
    ]
    for name, value in {"FOLDER": tmp_path, "CARD": tmp_path / "results.md", "RACES": races}.items():
        monkeypatch.setattr(card, name, value)
    monkeypatch.setattr(card, "RESULTS", tmp_path)
    monkeypatch.setattr(card, "lines", lambda found: [{"what": "none"}])
    monkeypatch.setattr(sys, "argv", ["race_card.py", f"--data={tmp_path}"])
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit) as end:
        card.main()
    assert end.value.code == 1
    states = re.findall(r"^\| (\w+) +\| ([\w ]+?) +\|", (tmp_path / "results.md").read_text(), re.MULTILINE)
    expected = [("bad", "failed"), ("slow", "too slow"), ("good", "ran"), ("away", "skipped"), ("real", "ran")]
    expected.append(("lone", "skipped"))
    assert states[1:] == expected
    assert "ZeroDivisionError" in (tmp_path / "results.md").read_text()


def test_a_race_runs_where_its_peers_are(card, tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\n")  # lacks nothing
    other.chmod(0o755)
    race = card.Race("any", peers=("json", "no_such"))
    assert race.why_not(tmp_path, [sys.executable]).startswith("needs no_such: pip install")
    assert race.interpreter([sys.executable, str(other)]) == str(other)
    assert card.Race("any", peers=("json",)).interpreter([sys.executable, str(other)]) == sys.executable


def test_operations_of_frozen_attention_count_too(script):
    attention, x = (
        torch.nn.MultiheadAttention(64, 4, batch_first=True).requires_grad_(False).eval(),
        torch.randn(2, 10, 64),
    )
    with torch.no_grad():
        found = script("flops").counted(lambda: attention(x, x, x, need_weights=False))
    tokens, projections, products = 2 * 10, 4 * 64, 2 * 10  # of a token: queries, keys, values, output; scores and sums
    assert found == 2 * tokens * 64 * (projections + products)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_convolution_in_groups_counts_its_groups_in_the_gradients_too(script, groups):
    convolution, picture = torch.nn.Conv2d(8, 8, 3, groups=groups, bias=False), torch.randn(2, 8, 10, 10)
    forward = 2 * 2 * 8 * 8 * (8 * 8 // groups) * 9  # twice a multiplication for each pixel, pair of channels and tap
    counted = script("flops").counted
    assert counted(lambda: convolution(picture)) == forward
    assert counted(lambda: convolution(picture).sum().backward()) == 2 * forward
    assert counted(lambda: convolution(picture.requires_grad_()).sum().backward()) == 3 * forward
