"""The fits of ``full_size.py``: in turn with a bare loop, alone with the real loader, alone under torch's profiler."""

import argparse
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from bare_loop import Bare, InTurn
from flops import flops_of
from full_size_tasks import Workload, config_of, from_memory, switched
from hydra.utils import instantiate
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import DictConfig

FETCH, STEP = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"
ROWS, PROFILED = 40, 5  # of the profile's table, and steps in it


class Switches(L.Callback):
    """Puts the command line's switches on, once the network is on its device and before there is an optimizer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.apply = switched(options)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """After the module's setup."""
        self.apply(pl_module.network)


class Durations(SimpleProfiler):
    """Lightning's, without its long table."""

    def describe(self) -> None:
        """Prints nothing."""


class Profile(L.Callback):
    """Records a few steps and writes the operations that took longest."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.after = path, after
        self.recorder: Any = torch.profiler.profile()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts and stops."""
        if batch_idx == self.after:
            self.recorder.start()
        if batch_idx == self.after + PROFILED:
            self.recorder.stop()
            by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            self.path.write_text(self.recorder.key_averages().table(sort_by=by, row_limit=ROWS) + "\n")


def trained(cfg: DictConfig, data: Any, steps: int, callbacks: list[L.Callback], **more: Any) -> L.Trainer:
    """One epoch of so many steps with the experiment's callbacks and loggers, without an evaluation."""
    logging.getLogger("stagewise").setLevel(logging.ERROR)  # of random weights, and of stages that val never judged
    warnings.filterwarnings("ignore")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module: Any = instantiate(cfg.lightning_module)
    module.zero_shot = {}  # of drains: answers before training, which no step needs
    used = [instantiate(one) for one in cfg.callbacks.values() if one]
    loggers = [instantiate(one) for one in cfg.logger.values()]
    quiet: dict[str, Any] = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    quiet |= {"val_check_interval": None, "check_val_every_n_epoch": 1}  # that of drains needs an evaluation
    length = {"max_epochs": 1, "limit_train_batches": steps}
    trainer: L.Trainer = instantiate(
        cfg.trainer, callbacks=[*callbacks, *used], logger=loggers, **quiet, **length, **more
    )
    trainer.fit(module, datamodule=data)
    return trainer


def in_turn_with_bare(workload: Workload, options: argparse.Namespace, folder: str) -> tuple[InTurn, int]:
    """Blocks of ours and of the bare loop by turns, and the operations of a step."""
    flops = []

    def bare_of(module: Any) -> Bare:
        bare = Bare(module, workload.loss, bf16=options.precision == "bf16")
        flops.append(flops_of(bare))
        bare.batches = iter(bare.data.train_dataloader())  # from the first one on, as ours
        switched(options)(bare.network)
        return bare

    turns = InTurn(options.block, bare_of)
    steps, cfg = turns.steps(options.pairs), config_of(workload, options, folder)
    cfg.datamodule.loader.num_workers = 0  # the batches are made once, before the clock starts
    trained(cfg, from_memory(cfg, steps + 1), steps, [turns, Switches(options)])
    return turns, flops[0]


def alone(workload: Workload, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """Share of a step spent waiting for the real loader, and the most memory in use, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("full_size.py")), "--child", folder]
    command += ["--workloads", workload.experiment, "--options", json.dumps(vars(options))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(workload: Workload, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """What :func:`alone` asks for. Under a GPU the share is an upper bound: its queue may be full meanwhile."""
    cfg, profiler = config_of(workload, options, folder), Durations()
    steps = options.block * (options.pairs + 1)
    trained(cfg, instantiate(cfg.datamodule), steps, [Switches(options)], profiler=profiler)
    spent = [sum(profiler.recorded_durations[name][options.block : steps]) for name in (FETCH, STEP)]
    return {"share_in_data": spent[0] / sum(spent), "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Of the GPU's memory; without one, of this process's resident set, libraries included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def profile(workload: Workload, options: argparse.Namespace, folder: str, path: Path) -> None:
    """Writes the operations that took longest in a few steps, batches from memory."""
    cfg, after = config_of(workload, options, folder), options.block
    cfg.datamodule.loader.num_workers = 0
    steps = after + PROFILED + 1
    trained(cfg, from_memory(cfg, steps + 1), steps, [Profile(path, after), Switches(options)])
