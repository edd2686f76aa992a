"""What do the callbacks of this package, of Lightning and of finetuning-scheduler do in the same situation?

    python benchmarks/peers_callbacks.py            # --only NAME, --quick

Seven scenarios on a module of a few hundred weights, on the CPU, two processes where a scenario needs them; every cell
is what this run observed, and a refusal or a failure shows its exception. finetuning-scheduler goes by epochs and with
restore_best=False where no setting says otherwise. ``--quick`` leaves out most kills and the second DDP strategy.

thaw       weights of two DDP ranks after each epoch, backbone frozen in epoch 0: the largest difference
resume     killed and resumed, against the run that was not: steps with another trainable set, largest difference of
           the weights in the end. Lightning's loaders start an epoch anew after a resume in the middle of it, so the
           peers get the same batch at each step, in order, and a difference is the callback's; the rows without a
           callback show both kinds of data. Ours has other batches at each step, shuffled.
optimizer  of the thawed parameters, how many are in the optimizer, and how many moved
batchnorm  what moves in the batch normalisation of a frozen backbone
median     of errors over an odd number of samples on two ranks
batches    samples of each of four groups (least-most in a batch, two are wanted) on each rank
undo       loss of the weights that the module is left with when every stage after the first one does harm
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from peers_scenarios import (
    BATCH,
    CONTESTANTS,
    FTS,
    LIGHTNING,
    OURS,
    Tiny,
    attempt,
    best_file,
    data,
    frozen_batchnorm,
    largest_change,
    loader,
    quiet,
    thawed_parameters,
    thawing,
    trainer_of,
    undone_stages,
)
from timing import as_table, parse, parser_of, write

from stagewise.callbacks import ExactResume
from stagewise.datamodules import ResumableDataLoader

EPOCHS, THAW = 6, 2
POINTS = {  # where it is killed, in steps, and what a user of ModelCheckpoint would have written
    "mid-epoch, frozen": (12, {"every_n_train_steps": 4}),
    "end of the last frozen epoch": (16, {"every_n_epochs": 1}),
    "last batch of the last frozen epoch": (16, {"every_n_train_steps": 8}),
    "mid-epoch, thawed": (28, {"every_n_train_steps": 4}),
    "end of a thawed epoch": (32, {"every_n_epochs": 1}),
}
NONE, NONE_DISTINCT = "no callback, the same batch", "no callback, other batches"
RANKS = 2
CHILD, CHILD_S = Path(__file__).with_name("peers_ddp.py"), 180
PACKAGES = ("torch", "lightning", "finetuning-scheduler", "torchmetrics", "pytorch-metric-learning", "stagewise")
Rows = Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]


class Killed(Exception):
    """What ends a run from outside."""


class TrainableSets(Callback):
    """Notes what trains at each step, and ends the run before a step like a kill would."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at, self.sets = kill_at, {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Leaves, or notes."""
        if trainer.global_step == self.kill_at:
            raise Killed
        names = (name for name, value in pl_module.named_parameters() if value.requires_grad)
        self.sets[trainer.global_step] = frozenset(names)


def resumed(contestant: str, point: str) -> dict[str, Any]:
    """Trains, trains and kills, resumes; compares the last with the first."""
    steps, saving = POINTS[point]
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as folder:
        expected, weights, _ = one_run(contestant, whole, saving)
        try:
            one_run(contestant, folder, saving, kill_at=steps)
        except Killed:
            seen, again, first = one_run(contestant, folder, saving, path=newest(contestant, folder))
    ahead = [step for step in expected if step >= steps]
    return {
        "resumed at step": first,
        "other trainable set": f"{sum(expected[step] != seen.get(step) for step in ahead)} of {len(ahead)} steps",
        "largest difference of weights": largest_change(weights, again),
    }


def one_run(
    contestant: str, folder: str, saving: dict[str, int], kill_at: int | None = None, path: str | None = None
) -> tuple[dict[int, frozenset[str]], dict[str, torch.Tensor], int]:
    """A fit: what trained at each step, the weights in the end, and the first step."""
    sets, module = TrainableSets(kill_at), Tiny(contestant)
    callbacks = thawing(contestant, folder, THAW, EPOCHS, restore_best=False)
    if contestant == OURS:
        callbacks, train = [*callbacks, ExactResume(folder, every_n_steps=4)], resumable()
    else:
        callbacks.append(best_file(contestant, folder, save_top_k=-1, **saving))
        train = loader(distinct=contestant == NONE_DISTINCT)
    trainer_of(folder, [*callbacks, sets], EPOCHS).fit(module, train, loader(seed=2), ckpt_path=path)
    return sets.sets, module.state_dict(), min(sets.sets)


def resumable() -> ResumableDataLoader:
    return ResumableDataLoader(data(), batch_size=BATCH, shuffle=True, seed=0)


def newest(contestant: str, folder: str) -> str | None:
    """The checkpoint to go on from."""
    if contestant == OURS:
        return ExactResume.find(folder)
    return str(max(Path(folder).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns))


def resume(quick: bool) -> Rows:
    points = list(POINTS)[:1] if quick else list(POINTS)
    for contestant in (NONE_DISTINCT, NONE, *CONTESTANTS):
        for point in points:
            yield contestant, point, partial(resumed, contestant, point)


def optimizer(quick: bool) -> Rows:
    settings = {"both heads train at once": 0, "the second head's loss starts at the thaw": 1}
    for setting, aux_from in settings.items():
        for contestant in CONTESTANTS:
            yield contestant, setting, partial(in_folder, thawed_parameters, contestant, aux_from=aux_from)


def batchnorm(quick: bool) -> Rows:
    for contestant in CONTESTANTS:
        yield contestant, "defaults", partial(in_folder, frozen_batchnorm, contestant)
    untracked = {"frozen_bn_track_running_stats": False}
    yield FTS, "frozen_bn_track_running_stats=False", partial(in_folder, frozen_batchnorm, FTS, **untracked)


def undo(quick: bool) -> Rows:
    settings = {LIGHTNING: "one harmful stage, EarlyStopping", FTS: "two, restore_best", OURS: "two, defaults"}
    for contestant in CONTESTANTS:
        yield contestant, settings[contestant], partial(in_folder, undone_stages, contestant)


def in_folder(scenario: Callable[..., dict[str, Any]], contestant: str, **options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return scenario(contestant, folder, **options)


def on_two_ranks(scenario: str, quick: bool) -> Rows:
    """The rows that ``peers_ddp.py`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        lines, failure = spawn([scenario, folder, *(["--quick"] if quick else [])], Path(folder))
    for line in lines:
        row = json.loads(line)
        yield row["contestant"], row["setting"], partial(dict, row["observed"])
    if failure:
        yield "all that follow" if lines else "all", "", partial(dict, failed=failure)


def spawn(arguments: list[str], folder: Path) -> tuple[list[str], str | None]:
    """Runs both ranks; what rank 0 reported, and how a rank ended that did not end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [folder / f"rank{rank}.txt" for rank in range(RANKS)]
    ranks = [start_rank(rank, port, arguments, log) for rank, log in enumerate(logs)]
    failure = None
    try:
        for rank in ranks:
            rank.wait(timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        failure = f"TimeoutExpired: no end after {CHILD_S} s"
    for rank in ranks:
        rank.kill()
    output = [log.read_text().splitlines() for log in logs]
    bad = [lines[-1] for rank, lines in zip(ranks, output) if (rank.poll() or 0) > 0 and lines]
    return [line.removeprefix("ROW ") for line in output[0] if line.startswith("ROW ")], bad[0] if bad else failure


def start_rank(rank: int, port: str, arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """One process, started as Lightning's launcher would."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS), "NODE_RANK": "0"}
    own = {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(CHILD), *arguments]
    with log.open("w") as output:
        return subprocess.Popen(command, env={**os.environ, **rendezvous, **own}, stdout=output, stderr=output)


SCENARIOS: dict[str, Callable[[bool], Rows]] = {
    "thaw": partial(on_two_ranks, "thaw"),
    "resume": resume,
    "optimizer": optimizer,
    "batchnorm": batchnorm,
    "median": partial(on_two_ranks, "median"),
    "batches": partial(on_two_ranks, "batches"),
    "undo": undo,
}


def show(value: Any) -> str:
    """Four digits of a number, the items of a list."""
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    quiet()
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("--only", choices=SCENARIOS, help="this one alone; nothing is written")
    options = parse(parser)
    found = [
        {"scenario": name, "contestant": contestant, "setting": setting, "observed": attempt(call)}
        for name in ([options.only] if options.only else SCENARIOS)
        for contestant, setting, call in SCENARIOS[name](options.quick)
    ]
    table = [{**row, "observed": "; ".join(f"{k} {show(v)}" for k, v in row["observed"].items())} for row in found]
    if options.only:
        print(as_table(table))
    else:
        versions = {package: version(package) for package in PACKAGES}
        write("peers_callbacks", options, {"versions": versions, "observed": found}, table)


if __name__ == "__main__":
    main()
