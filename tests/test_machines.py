"""Several processes as users start them: two machines under torchrun and SLURM, and sweeps whose runs take several."""

import csv
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TRAINING = runpy.run_path(str(HERE / "test_train.py"))
ON_CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.sync_batchnorm=false", "~logger"]
SMALL = ["experiment=geopak_phase0", *TRAINING["SMALL"], *ON_CPU]
TWO = ["trainer=ddp", "trainer.devices=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def started(folder: Path, command: list[str], name: str, **more: str) -> subprocess.Popen:
    with open(folder / f"{name}.log", "w") as file:
        environment = {**ENVIRONMENT, **more}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def two_machines(folder: Path, launcher: str, overrides: list[list[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of ``train.py`` on two machines of one process each, their data and caches apart."""
    port, programs = str(free_port()), []
    for number, own in enumerate(overrides):
        paths = [f"paths.data={folder}/data_{number}", f"paths.cache={folder}/cache_{number}"]
        arguments = ["train.py", *SMALL, "trainer=ddp_multinode", *paths, *own]
        environment = {}
        if launcher == "torchrun":
            address = f"--rdzv-endpoint=127.0.0.1:{port}"
            torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", address]
            command = [sys.executable, "-m", *torchrun, *arguments]
        else:  # what srun sets
            of_all = {"NTASKS": 2, "NNODES": 2, "NTASKS_PER_NODE": 1, "JOB_ID": 1, "JOB_NAME": "a", "LOCALID": 0}
            found = {**of_all, "NODELIST": "127.0.0.1", "PROCID": number, "NODEID": number}
            environment = {f"SLURM_{key}": str(value) for key, value in found.items()} | {"MASTER_PORT": port}
            command = [sys.executable, *arguments]
        programs.append(started(folder, command, f"machine_{number}", **environment))
    codes = [program.wait(timeout=300) for program in programs]
    return codes, [(folder / f"machine_{number}.log").read_text() for number in range(2)]


@pytest.mark.parametrize("launcher", ["slurm", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_machines_train_one_run(tmp_path, launcher):
    shared = [f"paths.checkpoints={tmp_path}/runs"]
    codes, outputs = two_machines(tmp_path, launcher, [shared, shared])
    assert codes == [0, 0], outputs
    assert (tmp_path / "runs" / "phase0" / "phase0_best.ckpt").is_file()
    caches = [len(list((tmp_path / f"cache_{number}" / "features").iterdir())) for number in range(2)]
    assert caches[0] == caches[1] > 1
    assert "epoch 1/1 val" in outputs[0] and "epoch 1/1" not in outputs[1]


def test_machines_that_do_not_share_the_run_s_folder_are_refused_before_training(tmp_path):
    own = [[f"paths.checkpoints={tmp_path}/runs_{number}"] for number in range(2)]
    codes, outputs = two_machines(tmp_path, "torchrun", own)
    assert 0 not in codes
    words = f"wrote to run_dir='{tmp_path}/runs_0/phase0'; pass paths.checkpoints=DIR on a disk that all machines share"
    assert "error: process 1 on" in outputs[0] and words in outputs[0]
    assert not list(tmp_path.glob("runs_*/*"))


def test_a_machine_with_other_data_ends_the_run_before_it_trains(tmp_path):
    shared = [f"paths.checkpoints={tmp_path}/runs"]
    codes, outputs = two_machines(tmp_path, "torchrun", [shared, [*shared, "datamodule.generated.seed=7"]])
    assert 0 not in codes
    assert "error: process 1 on" in outputs[0] and "has other data at" in outputs[0]
    assert "copy the same data to every machine" in outputs[0] and "epoch 1" not in outputs[0]


def test_a_launcher_that_says_nothing_is_asked_for(tmp_path):
    done = TRAINING["program"]("train.py", *SMALL, "trainer=ddp_multinode", f"paths.checkpoints={tmp_path}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "LOCAL_WORLD_SIZE, SLURM_NTASKS_PER_NODE is set" in done.stderr and "torchrun" in done.stderr


def sweep(folder: Path, *overrides: str) -> subprocess.Popen:
    """Two runs of two processes each, one after the other."""
    paths = [f"paths.{name}={folder}/{name}" for name in ("checkpoints", "data", "cache")]
    arguments = [*SMALL, *TWO, *paths, "seed=0,1", f"hydra.sweep.dir={folder}/sweep", *overrides]
    return started(folder, [sys.executable, "train.py", "-m", *arguments], "sweep", PYTHONPATH=str(HERE))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "sweep" / "sweep.csv") as file:
        return list(csv.DictReader(file))


def test_a_run_that_loses_a_process_does_not_take_the_sweep_down(tmp_path):
    ends = "+callbacks.ends={_target_: failing_callback.FailingCallback, seed: '${seed}', rank: 1}"
    code = sweep(tmp_path, ends).wait(timeout=300)
    output = (tmp_path / "sweep.log").read_text()
    assert code == 1, output
    assert [(row["seed"], row["status"]) for row in rows_of(tmp_path)] == [
        ("1", "done"),
        ("0", "failed: OverflowError: rank 1 ends here"),
    ]
    assert "on_train_batch_start" in (tmp_path / "sweep" / "0" / "error.txt").read_text()
    assert "1 of 2 runs failed" in output.splitlines()[-1]


@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_of_several_processes_is_saved_when_its_sweep_ends(tmp_path, signal_, code):
    program, saved = sweep(tmp_path, "demo_epochs.phase0=1000"), tmp_path / "sweep" / "0" / "resume.ckpt"
    while not saved.exists() and program.poll() is None:
        time.sleep(0.1)
    program.send_signal(signal_)
    assert program.wait(timeout=60) == code
    output, deadline = tmp_path / "sweep.log", time.monotonic() + 60
    while "preempted by SIGTERM, saved as" not in output.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert f"preempted by SIGTERM, saved as {saved}" in output.read_text()
