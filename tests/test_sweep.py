"""Sweeps on a program that trains nothing: the table, runs that fail, launchers, what is refused before any run."""

import csv
import logging
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

from stagewise import train
from stagewise.command_line import check_swept, offering_names
from stagewise.lightning_modules.sweep_figure import draw_sweep
from stagewise.sweep_space import check_storage, sweep_rates
from stagewise.sweep_table import collect, swept_columns

PROGRAM = Path(__file__).with_name("sweep_program.py")
OURS = runpy.run_path(str(PROGRAM), run_name="stagewise.sweep_program")
NO_PICTURE = "hydra.callbacks.sweep.draw=null"


def sweep(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, list[dict[str, str]]]:
    command = [sys.executable, PROGRAM, *arguments, NO_PICTURE, f"hydra.sweep.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder.parent)
    return done, table(folder)


def table(folder: Path) -> list[dict[str, str]]:
    path = folder / "sweep.csv"
    return list(csv.DictReader(path.open())) if path.is_file() else []


@pytest.fixture
def in_process(monkeypatch):
    """Runs a program of Hydra's in this process, with the logging of before at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def go(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program.py", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code
        return 0

    yield go
    root.handlers[:], root.level = handlers, level
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="basic"),
        pytest.param(["launcher=joblib"], id="joblib"),
        pytest.param(["launcher=submitit_local"], id="submitit", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_fails_stands_in_the_table_and_the_others_go_on(tmp_path, launcher):
    done, rows = sweep(tmp_path / "sweep", "-m", "x=1,-1,2.5,0", *launcher)
    assert done.returncode == 1, done.stderr[-2000:]
    assert [(r["x"], r["score"]) for r in rows] == [("2.5", "0.5"), ("1", "2.0"), ("-1", ""), ("0", "")]
    failed = "failed: ValueError: x must not be negative, got -1"
    assert [r["status"] for r in rows] == ["done", "done", failed, "no score"]
    assert "1 of 4 runs failed" in done.stdout.splitlines()[-1] and "Traceback" not in done.stdout + done.stderr
    assert "and more words" in (tmp_path / "sweep" / "1" / "error.txt").read_text()
    if launcher == ["launcher=joblib"]:
        assert len({path.name for path in tmp_path.glob("sweep/*/process_*")}) in (
            1,
            2,
        )  # a short run may find one free


def test_a_preempted_run_ends_the_sweep_with_its_code_and_the_table_so_far(in_process, tmp_path):
    code = in_process(OURS["main"], "-m", "x=1,101,2.5", NO_PICTURE, f"hydra.sweep.dir={tmp_path}")
    assert code == 75 and [row["x"] for row in table(tmp_path)] == ["1"]


def test_optuna_counts_a_failed_run_as_failed_and_proposes_the_same_again(in_process, tmp_path):
    def go(folder: str, trials: int) -> list[dict[str, str]]:
        study = ["sweep=optuna", "~callbacks.pruning", "x=interval(-3,6)", f"hydra.sweeper.n_trials={trials}"]
        in_process(OURS["main"], *study, NO_PICTURE, f"hydra.sweep.dir={tmp_path}/{folder}")
        return table(tmp_path / folder)

    rows, again = go("a", 5), go("b", 3)
    assert [r["status"].split(":")[0] for r in rows] == ["done"] * 4 + ["failed"]
    rates = [float(r["optimizer.groups.body.lr"]) for r in rows]
    assert all(1e-6 <= rate <= 1e-4 for rate in rates) and len(set(rates)) == 5
    best = OmegaConf.load(tmp_path / "a" / "optimization_results.yaml")
    assert best.best_value == float(rows[0]["score"]) == min(float(r["score"]) for r in rows[:4])
    assert {(r["job"], r["x"]) for r in again} == {(r["job"], r["x"]) for r in rows if int(r["job"]) < 3}


def test_a_sweep_goes_on_without_the_runs_that_have_ended(in_process, monkeypatch, tmp_path):
    made = []

    def run(cfg):
        made.append((cfg.x, cfg.resume))
        if cfg.x == 2 and len(made) == 2:
            raise RuntimeError("out of memory")
        return float(cfg.x)

    monkeypatch.setattr(train, "run", run)
    task = train.main.__wrapped__.__wrapped__
    main = hydra.main(version_base="1.3", config_path=None, config_name="program")(task)
    again = [NO_PICTURE, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert in_process(main, "-m", "x=1,2", *again) == 1
    assert table(tmp_path / "sweep")[1]["status"] == "failed: RuntimeError: out of memory"
    assert in_process(main, "-m", "x=1,2", *again, "resume=auto") == 0
    assert made == [(1, None), (2, None), (2, "auto")]
    assert [(r["status"], r["score"]) for r in table(tmp_path / "sweep")] == [("done", "1.0"), ("done", "2.0")]
    assert in_process(main, "-m", "x=3,2", *again, "resume=auto") == 0
    assert made[3:] == [(3, None)]  # the run of x=1 in that folder is another one


def test_a_chain_of_phases_ends_with_the_first_that_fails(in_process, monkeypatch, tmp_path):
    made = []

    def run(cfg):
        made.append(cfg.name)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train, "run", run)
    chain = ["-m", "experiment=geopak_phase0,geopak_phase1", f"hydra.sweep.dir={tmp_path}/chain"]
    assert in_process(train.main, *chain, f"paths.checkpoints={tmp_path}/runs") == 1
    assert made == ["phase0"]  # phase 1 would start from an older phase 0


def config(*overrides: str, **sweeper):
    settings = {"overrides": {"task": list(overrides)}, "sweeper": sweeper, "runtime": {"choices": {"mode": "a"}}}
    return OmegaConf.create({**OURS["CONFIG"], "fold": "???", "hydra": settings})


def test_the_rates_are_those_of_the_groups_that_a_stage_opens():
    cfg = config("seed=1")
    sweep_rates(cfg, [0.3, 1, 3])
    assert dict(cfg.hydra.sweeper.params) == {
        "optimizer.groups.body.lr": "3e-06,1e-05,3e-05",
        "optimizer.groups.head.lr": "0.0003,0.001,0.003",
    }
    tied = "optimizer.groups.more.lr=${optimizer.groups.head.lr}"
    assert OmegaConf.to_container(cfg.hydra.overrides.task) == ["seed=1", tied]
    cfg = config("optimizer.groups.body.lr=1e-4,1e-3")
    sweep_rates(cfg, {"low": 0.1, "high": 10})
    assert dict(cfg.hydra.sweeper.params) == {"optimizer.groups.head.lr": "tag(log, interval(0.0001, 0.01))"}


def test_rates_without_an_open_group_or_of_several_experiments_are_refused():
    with pytest.raises(ValueError, match="sweep one at a time"):
        sweep_rates(config("experiment=a,b"), [1])
    cfg = config()
    cfg.callbacks.stages.stages = {"nothing": {"open": []}}
    with pytest.raises(ValueError, match="no stage opens"):
        sweep_rates(cfg, [1])


@pytest.mark.parametrize("key", ["x", "fold", "optimizer.groups.body.lr", "+new", "++x"])
def test_a_key_that_is_there_can_be_swept(key):
    check_swept(config(), [f"{key}=1,2", "seed=3"])


def test_a_swept_key_that_does_not_exist_is_refused_with_the_nearest_names():
    words = r"no optimizer\.groups\.boddy\.lr to sweep; the nearest: optimizer\.groups\.body\.lr, "
    with pytest.raises(ValueError, match=words):
        check_swept(config(), ["optimizer.groups.boddy.lr=1,2"])
    with pytest.raises(ValueError, match=r"no body\.lr to sweep; the nearest: optimizer\.groups\.body\.lr"):
        check_swept(config(), ["body.lr=choice(1,2)"])
    check_swept(config(), ["mode=a,b", "of_mode_b=1,2"])  # which keys there are depends on the mode


def test_a_mistyped_command_ends_before_any_run_with_the_nearest_names(in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "run", lambda cfg: pytest.fail("a run was started"))
    swept = ["-m", "experiment=geopak_phase2", "optimizer.groups.clipp.lr=1e-5,1e-6", f"hydra.sweep.dir={tmp_path}/a"]
    assert in_process(train.main, *swept) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: there is no optimizer.groups.clipp.lr to sweep; the nearest: optimizer.groups.clip.lr"
    )
    assert not (tmp_path / "a").exists()
    assert in_process(train.main, "experiment=geopak_phase2", "optimizer.groups.clipp.lr=1e-5") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: there is no optimizer.groups.clipp.lr; the nearest: optimizer.groups.clip.lr")


def test_a_plugin_that_is_not_installed_is_named_with_what_installs_it(in_process, tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "other.yaml").write_text(
        "# @package _global_\ndefaults: [default, override /hydra/sweeper: other]"
    )
    main = offering_names("program")(OURS["main"])
    assert in_process(main, "--config-dir", tmp_path, "sweep=other") == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: other is a plugin of Hydra's that is not installed")
    )


def test_a_run_that_was_pruned_is_neither_calibrated_nor_tested():
    module = SimpleNamespace(finish=print)
    assert train.finish_of(module, [SimpleNamespace(), SimpleNamespace(pruned=False)]) is print
    assert train.finish_of(module, [SimpleNamespace(pruned=True)]) is None


@pytest.mark.parametrize("url", ["sqlite:////proc/nowhere/a.db", "sqlite:///{folder}/text.db", "other://host/a"])
def test_a_storage_that_cannot_be_written_is_refused_in_one_line(tmp_path, url):
    (tmp_path / "text.db").write_text("no database at all, but some words" * 9)
    url = url.format(folder=tmp_path)
    with pytest.raises(
        OSError, match=rf"cannot write hydra\.sweeper\.storage='{re.escape(url)}' \([^)]+.*; pass"
    ) as error:
        check_storage({"storage": url})
    assert "\n" not in str(error.value)


def test_a_storage_that_can_be_written_is_left_as_it_is(tmp_path):
    check_storage({"storage": None})
    check_storage({"storage": f"sqlite:///{tmp_path}/new.db"})
    assert not list(tmp_path.iterdir())


def rows_of_a_sweep():
    rows = [
        {"job": 0, "status": "done", "lr": "1e-05", "kind": "a", "score": 2.0},
        {"job": 1, "status": "done", "lr": "1e-05", "kind": "b", "score": 1.0},
        {"job": 2, "status": "pruned at evaluation 3: worse", "lr": "0.001", "kind": "a", "score": 9.0},
        {"job": 3, "status": "failed: ValueError: no", "lr": "0.1", "kind": "b", "score": None},
    ]
    return [{"monitor": "val/loss", "mode": "min", "run_dir": ".", **row} for row in rows]


def test_the_picture_has_a_panel_for_each_key_and_every_run_in_it(tmp_path, monkeypatch):
    from stagewise.lightning_modules import sweep_figure

    drawn = []
    monkeypatch.setattr(sweep_figure, "save", lambda figure, path: (figure.savefig(path), drawn.append(figure)))
    rows = rows_of_a_sweep()
    assert swept_columns(rows) == ["lr", "kind"]
    draw_sweep(rows, ["lr", "kind"], str(tmp_path / "sweep.png"))
    (figure,) = drawn
    first, second = figure.axes
    assert first.get_xscale() == "log" and (first.get_xlabel(), second.get_xlabel()) == ("lr", "kind")
    points = {c.get_label(): c.get_offsets().tolist() for c in first.collections if not c.get_label().startswith("_")}
    assert points["run"] == [[1e-05, 2.0]] and points["best"] == [[1e-05, 1.0]] and points["pruned"] == [[0.001, 9.0]]
    assert [x for x, _ in points["failed"]] == [0.1] and first.get_xlim()[1] > 0.1
    assert Image.open(tmp_path / "sweep.png").width > 600


def test_a_run_that_was_moved_aside_is_not_in_the_table(tmp_path):
    for name in ("0", "0_until_2026-01-01_00-00-00"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text('{"job": 0, "monitor": "m", "mode": "min", "score": 1.0}')
    assert len(collect(tmp_path)) == 1
