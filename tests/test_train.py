"""The programs from end to end, on small generated data in the true format."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from stagewise import evaluate, predict, train
from stagewise.lightning_modules import GeolocationModule

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "demo=geopak",
    "datamodule.generated.rows={train:140,val:70,test:70}",
    "datamodule.loader.batches_per_epoch=3",
    "datamodule.cells={max_radius_km:200,min_size:4,min_cluster_size:8,min_samples:3}",
    "demo_epochs={phase0:1,phase1:2,phase2:3}",
    "frozen_views=1",
    "trainer.log_every_n_steps=1",
    "encoder_tops={clip:{last:0.30,also:[ln_post,proj]},scene:[layer4]}",  # the recipe's, not the demo's
]


def settings(folder: Path, experiment: str, *overrides: str) -> list[str]:
    paths = [f"paths.checkpoints={folder}/runs", f"paths.data={folder}/data", f"paths.cache={folder}/cache"]
    return [f"experiment={experiment}", *SMALL, *paths, *overrides]


def configured(folder: Path, experiment: str, *overrides: str):
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return compose("train", settings(folder, experiment, *overrides))


def run(folder: Path, experiment: str, *overrides: str) -> float | None:
    return train.run(configured(folder, experiment, *overrides))


def program(*arguments: str, cwd: Path = ROOT, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All three phases, trained once."""
    folder = tmp_path_factory.mktemp("geopak")
    for experiment in ("geopak_phase0", "geopak_phase1", "geopak_phase2"):
        run(folder, experiment)
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_a_phase_leaves_everything_the_recipe_asks_for(trained):
    folder = trained / "runs" / "phase1"
    names = {p.name for p in folder.iterdir()}
    assert {"phase1_epoch_1.ckpt", "phase1_epoch_2.ckpt", "phase1_best.ckpt", "log.txt", "losses.csv"} <= names
    assert {"curves.png", "map.png", "summary.json", "csv", "tensorboard"} <= names
    summary = json.loads((folder / "summary.json").read_text())
    keys = "experiment monitor mode best best_epoch best_checkpoint epochs stopped_by start_from start_value seconds"
    assert list(summary) == keys.split()
    assert summary["start_from"].endswith("phase0_best.ckpt") and summary["epochs"] == 2
    assert summary["best_checkpoint"].endswith("phase1_best.ckpt")


def test_losses_csv_has_exactly_the_columns_of_the_recipe(trained):
    with open(trained / "runs" / "phase1" / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    losses = "epoch split loss_total loss_province loss_geocell loss_offset loss_aux".split()
    errors = "median_error_km mean_error_km p90_error_km".split()
    provinces = "sindh punjab khyber_pakhtunkhwa islamabad_capital_territory gilgit_baltistan balochistan azad_kashmir"
    assert list(rows[0]) == losses + errors + [f"{p}_acc" for p in provinces.split()]
    assert [(r["epoch"], r["split"]) for r in rows] == [("1", "train"), ("1", "val"), ("2", "train"), ("2", "val")]
    assert all(float(value) >= 0 for row in rows for key, value in row.items() if key != "split")


def test_the_total_is_the_weighted_sum_with_the_ramp(trained):
    with open(trained / "runs" / "phase1" / "losses.csv") as file:
        rows = [
            {k: float(v) for k, v in r.items() if k != "split"} for r in csv.DictReader(file) if r["split"] == "train"
        ]
    for row, ramp in zip(rows, (0.2, 0.4), strict=True):
        parts = 0.5 * row["loss_province"] + row["loss_geocell"] + ramp * row["loss_offset"] + 0.1 * row["loss_aux"]
        assert row["loss_total"] == pytest.approx(parts, rel=1e-4)


def test_a_checkpoint_is_self_contained_and_safe_to_open(trained):
    checkpoint = torch.load(trained / "runs" / "phase2" / "phase2_best.ckpt", weights_only=True)
    state = checkpoint["geolocation"]
    assert {"geography", "calibration", "metrics", "start_from"} <= set(state)
    assert state["start_from"].endswith("phase1_best.ckpt")
    assert {"val/median_km", "val/loss", "val/accuracy/sindh"} <= set(state["metrics"])
    assert checkpoint["provenance"]["datamodule"]["_target_"].startswith("stagewise.")


def test_phase_2_starts_from_the_score_of_phase_1(trained):
    one, two = (json.loads((trained / "runs" / f"phase{k}" / "summary.json").read_text()) for k in (1, 2))
    assert two["start_value"] == pytest.approx(one["best"], rel=1e-3)
    assert two["best"] <= two["start_value"] + 1e-3 or "kept" not in two["stopped_by"]


def test_frozen_encoders_stay_bitwise_and_phase_2_moves_only_their_tops(trained):
    zero, one, two = (
        torch.load(trained / "runs" / f"phase{k}" / f"phase{k}_epoch_{n}.ckpt", weights_only=True)["state_dict"]
        for k, n in ((0, 1), (1, 2), (2, 3))
    )
    encoders = [k for k in zero if k.startswith(("network.clip.", "network.scene."))]
    assert all(torch.equal(zero[k], one[k]) for k in encoders)
    moved = {k for k in encoders if not torch.equal(one[k], two[k])}
    tops = (
        "network.clip.transformer.resblocks.3.",
        "network.clip.ln_post",
        "network.clip.proj",
        "network.scene.layer4",
    )
    assert moved and all(k.startswith(tops) for k in moved)


def evaluated(folder: Path, **overrides: str) -> dict[str, float]:
    checkpoint = folder / "runs" / "phase2" / "phase2_best.ckpt"
    changes = [f"{k}={v}" for k, v in {"checkpoint": checkpoint, **overrides}.items()]
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return evaluate.run(compose("evaluate", changes))


def test_evaluation_prints_the_ladder_and_writes_flat_metrics(copied, capsys):
    metrics = evaluated(copied, split="test")
    printed = capsys.readouterr().out
    for words in (
        "end to end",
        "oracle cell",
        "oracle province",
        "centre only",
        "majority centroid",
        "nearest features",
    ):
        assert words in printed
    written = json.loads((copied / "runs" / "phase2" / "evaluation_test" / "metrics.json").read_text())
    assert written == metrics and all(isinstance(v, float) for v in written.values())
    assert {"test/median_km", "test/oracle_cell_median_km", "test/province_accuracy", "test/ece"} <= set(written)
    assert (copied / "runs" / "phase2" / "evaluation_test" / "map.png").stat().st_size > 10_000


def test_evaluation_on_val_repeats_the_figure_of_training(copied):
    best = json.loads((copied / "runs" / "phase2" / "summary.json").read_text())["best"]
    assert evaluated(copied, split="val")["val/median_km"] == pytest.approx(best, rel=1e-3)


def test_prediction_writes_csv_geojson_and_a_map_for_each_picture(copied, tmp_path):
    checkpoint = copied / "runs" / "phase2" / "phase2_best.ckpt"
    source = copied / "data" / "geopak" / "images" / "test"
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose(
            "predict", [f"checkpoint={checkpoint}", f"input={source}", f"output={tmp_path}/out", "options.limit=3"]
        )
    assert predict.run(cfg) == 3
    with open(tmp_path / "out" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(20 < float(r["latitude"]) < 40 for r in rows)
    assert len(json.loads((tmp_path / "out" / "predictions.geojson").read_text())["features"]) == 3
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_a_run_before_is_kept_and_a_run_that_fails_at_the_start_changes_nothing(copied):
    folder = copied / "runs"
    before = (folder / "phase0" / "phase0_best.ckpt").read_bytes()
    with pytest.raises(ValueError, match="no_such_group"):
        run(copied, "geopak_phase0", "+callbacks.stages.stages.warm_up.open.no_such_group=true")
    assert (folder / "phase0" / "phase0_best.ckpt").read_bytes() == before
    assert not list(folder.glob("phase0_until_*"))
    run(copied, "geopak_phase0")
    (kept,) = folder.glob("phase0_until_*")
    assert (kept / "phase0_best.ckpt").read_bytes() == before


def test_a_red_flag_stops_the_run_and_says_why(copied, caplog):
    stop = [
        "rare.action=stop",
        "callbacks.collapse.rules.recall={floor:1.0,patience:1}",
        "callbacks.collapse.min_support=1",
    ]
    run(copied, "geopak_phase1", *stop)
    summary = json.loads((copied / "runs" / "phase1" / "summary.json").read_text())
    assert "recall of" in summary["stopped_by"] and "1.0" in summary["stopped_by"]
    assert summary["epochs"] == 1
    assert "phase1 ended by a red flag: collapse: recall of" in caplog.text
    assert summary["stopped_by"] in (copied / "runs" / "phase1" / "log.txt").read_text()


def test_ctrl_c_leaves_a_usable_checkpoint_and_closed_files(copied, monkeypatch):
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 2:
                raise KeyboardInterrupt

    cfg = configured(copied, "geopak_phase1")
    with open_dict(cfg):
        cfg.callbacks.interrupt = {"_target_": "builtins.object"}
    made = train.instantiate
    monkeypatch.setattr(
        train, "instantiate", lambda c, **k: Interrupt() if c.get("_target_") == "builtins.object" else made(c, **k)
    )
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train.run(cfg)
    folder = copied / "runs" / "phase1"
    assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "interrupted"
    from stagewise.lightning_modules import load_module

    module = load_module(str(folder / "phase1_interrupted.ckpt"))
    assert len(module.predict_images([copied / "data/geopak/images/test/00000.jpg"])) == 1


def best_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "phase1_best.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "number, code",
    [
        pytest.param(signal.SIGTERM, 75, id="SIGTERM"),
        pytest.param(signal.SIGKILL, -9, id="SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_resume_auto_goes_on_after_a_signal_and_a_finished_run_stays_finished(copied, number, code):
    again = copied / "runs" / "again"
    own = [f"run_dir={again}", "resume=auto", "callbacks.resume.every_n_steps=1", "datamodule.loader.num_workers=1"]
    command = [sys.executable, "train.py", *settings(copied, "geopak_phase1", *own)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not (again / "resume.ckpt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        said = "".join(process.communicate())
    assert process.returncode == code, said[-2000:]
    if number == signal.SIGTERM:
        assert f"preempted by SIGTERM, saved as {again}/resume.ckpt" in said
        assert "go on with the same command and resume=auto" in said
        assert "preempted" in json.loads((again / "summary.json").read_text())["stopped_by"]
    run(copied, "geopak_phase1", *own)
    first, second = best_weights(copied / "runs" / "phase1"), best_weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with open(again / "losses.csv") as ours, open(copied / "runs" / "phase1" / "losses.csv") as whole:
        assert ours.read() == whole.read()
    before = {path: path.stat().st_mtime_ns for path in again.glob("*.ckpt")}
    run(copied, "geopak_phase1", *own)
    assert before == {path: path.stat().st_mtime_ns for path in again.glob("*.ckpt")}
    assert not list((copied / "runs").glob("again_until_*"))


def test_a_stopped_run_on_shards_ends_as_one_that_was_not(copied, monkeypatch):
    instantiate(configured(copied, "geopak_phase0").datamodule).convert(f"{copied}/store", shard_mb=0.02)
    shards = ["frozen_views=0", "demo_epochs.phase0=2", "~logger"]
    shards += ["datamodule.storage=litdata", f"datamodule.root=local:{copied}/store"]
    run(copied, "geopak_phase0", *shards, f"run_dir={copied}/whole")
    step, stopped = GeolocationModule.training_step, []

    def stop(self, batch, batch_idx):
        if self.trainer.current_epoch == 1 and batch_idx == 1 and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GeolocationModule, "training_step", stop)
    with pytest.raises(SystemExit, match="preempted"):
        run(copied, "geopak_phase0", *shards, f"run_dir={copied}/again")
    run(copied, "geopak_phase0", *shards, f"run_dir={copied}/again", "resume=auto")
    whole, again = (torch.load(copied / one / "resume.ckpt", weights_only=True) for one in ("whole", "again"))
    assert whole["global_step"] == again["global_step"] == 6
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert (copied / "whole" / "losses.csv").read_text() == (copied / "again" / "losses.csv").read_text()


def test_resume_from_a_file_trains_in_a_folder_of_its_own(copied):
    old, new = copied / "runs" / "phase1", copied / "runs" / "new"
    before = sorted((path, path.stat().st_mtime_ns) for path in old.rglob("*"))
    run(copied, "geopak_phase1", f"run_dir={new}", f"resume={old}/phase1_epoch_1.ckpt")
    first, second = best_weights(old), best_weights(new)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in old.rglob("*"))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["resume=nowhere.ckpt"], r"no checkpoint at resume='nowhere\.ckpt'; pass a file, or resume=auto"),
        (["resume=auto", "callbacks.resume=null"], r"resume=auto needs callbacks\.resume"),
    ],
)
def test_a_resume_that_cannot_work_is_refused(tmp_path, overrides, words):
    with pytest.raises((ValueError, OSError), match=words):
        run(tmp_path, "geopak_phase0", *overrides)


def test_a_missing_start_names_the_command_that_makes_it(tmp_path):
    done = program("train.py", *settings(tmp_path, "geopak_phase2"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "phase1_best.ckpt" in done.stderr
    assert "python train.py experiment=geopak_phase1 demo=geopak" in done.stderr


@pytest.mark.parametrize("target", ["/proc/nowhere", "occupied"])
def test_an_output_folder_that_cannot_be_written_is_refused_before_training(tmp_path, target):
    (tmp_path / "occupied").write_text("a file")
    folder = target if target.startswith("/") else tmp_path / target
    with pytest.raises(OSError, match=r"cannot write to run_dir=.*paths\.checkpoints"):
        run(tmp_path, "geopak_phase0", f"run_dir={folder}/run")


@pytest.mark.parametrize(
    ("is_terminal", "asked", "bars"), [(False, [], False), (True, [], None), (False, ["enable_progress_bar"], None)]
)
def test_a_log_file_gets_no_progress_bars_unless_they_are_asked_for(is_terminal, asked, bars, monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: is_terminal))
    trainer = OmegaConf.create({"max_epochs": 1, **dict.fromkeys(asked, True)})
    assert train.bars_of(trainer).get("enable_progress_bar") is bars


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_ends_in_one_line(copied):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # smaller than a checkpoint

    overrides = settings(copied, "geopak_phase1", f"run_dir={copied}/full", "~logger", "frozen_views=0")
    done = program("train.py", *overrides, preexec_fn=limit)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error:" in done.stderr and "pass paths.checkpoints=" in done.stderr.splitlines()[-1]


def test_a_sweep_keeps_the_phases_checkpoint_and_ends_with_a_table(copied):
    best = copied / "runs" / "phase2" / "phase2_best.ckpt"
    before = best.read_bytes()
    swept = ["optimizer.groups.clip.lr=1e-5,3e-6", "demo_epochs.phase2=1", f"hydra.sweep.dir={copied}/sweep"]
    done = program("train.py", "-m", *settings(copied, "geopak_phase2", *swept))
    assert done.returncode == 0, done.stderr[-2000:]
    assert best.read_bytes() == before
    with open(copied / "sweep" / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert {float(r["optimizer.groups.clip.lr"]) for r in rows} == {1e-5, 3e-6}
    scores = [float(r["score"]) for r in rows]
    assert scores == sorted(scores) and len(scores) == 2
    assert all((Path(r["run_dir"]) / "phase2_best.ckpt").is_file() for r in rows)
