"""How long do the three folds of the fusion demo take beside a plain script, and how soon does a second run train?

    python benchmarks/fusion_demo.py              # --threads N, --pairs N, --quick

Ours is ``train.py -m experiment=fusion_v5 demo=fusion datamodule.fold=0,1,2`` in empty folders: crops, pictures alone,
forests, both stages, test, figures and a pooled report. ``peers_fusion.py`` is the same work, but for figures and
tables, in scikit-learn, timm and a bare PyTorch loop, for as many epochs as ours took. Both are timed in turn as whole
programs, on a generated clinic that is there before, and have to reach about the same kappa. Then fold 0 is started
again in the folders that it has trained in: until the first step of the stage that trains. At last both run once more
with a clock around their parts, which says what the wall time consists of.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_demo_parts import IMPORTS, OURS, PLAIN, REST
from lightning.pytorch import Callback, LightningModule, Trainer
from timing import parser_of, ratio, show, spread, verdict, write

from stagewise.datamodules.fusion.generated import write_generated_clinic

HERE = Path(__file__).resolve().parent
RATIO_BAR, START_BAR_S, KAPPA_TOLERANCE = 1.1, 10.0, 0.05
FOLDS, PATIENTS, QUICK_PATIENTS = (0, 1, 2), 300, 60
QUICK = ("plans.image.epochs=1", "plans.fusion.stages.open.epochs=1")
FIRST_STEP = "FUSION_DEMO_FIRST_STEP"


class FirstStep(Callback):
    """Notes when the first training step begins, and ends the program there."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """By the clock of the system, which the process that started this one reads as well."""
        Path(os.environ[FIRST_STEP]).write_text(repr(time.time()))
        os._exit(0)


class Demo:
    """The two programs on one clinic.

    Args:
        work: folder for everything.
        options: of the command line.
    """

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.work, self.options = work, options
        self.ours, self.plain = work / "ours", work / "plain"
        patients = QUICK_PATIENTS if options.quick else PATIENTS
        write_generated_clinic(work / "data" / "fusion", patients=patients, seed=0)

    def overrides(self) -> list[str]:
        """What puts a run of ours into its folders."""
        folders = {"checkpoints": self.ours / "runs", "cache": self.ours / "cache", "data": self.work / "data"}
        found = ["experiment=fusion_v5", "demo=fusion", *(f"paths.{name}={path}" for name, path in folders.items())]
        return found + (list(QUICK) if self.options.quick else [])

    def run_ours(self, *program: str) -> float:
        """Seconds of all folds, from nothing but the clinic."""
        shutil.rmtree(self.ours, ignore_errors=True)
        folds = f"datamodule.fold={','.join(map(str, FOLDS))}"
        return self.seconds_of(*program, "-m", *self.overrides(), folds, f"hydra.sweep.dir={self.ours}/sweep")

    def run_plain(self, *program: str) -> float:
        """Seconds of the same, for the epochs that the last run of ours took."""
        shutil.rmtree(self.plain, ignore_errors=True)
        alone, opened = (",".join(map(str, one)) for one in zip(*map(self.epochs_of, FOLDS)))
        clinic = str(self.work / "data" / "fusion")
        return self.seconds_of(*program, clinic, str(self.plain), "--alone", alone, "--opened", opened)

    def second_start(self) -> float:
        """Seconds from the start of the program to the first training step of fold 0, which has run before."""
        note = self.work / "first_step"
        clock = ("+callbacks.clock._target_=fusion_demo.FirstStep", f"run_dir={self.ours}/again")
        started = time.time()
        self.seconds_of("train.py", *self.overrides(), "datamodule.fold=0", *clock, **{FIRST_STEP: str(note)})
        return float(note.read_text()) - started

    def seconds_of(self, *command: str, **more: str) -> float:
        """Wall time of a program; ends the script with its output where it fails."""
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": str(self.options.threads), "PYTHONPATH": path, **more}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command], cwd=HERE.parent, env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
        return seconds

    def epochs_of(self, fold: int) -> tuple[int, int]:
        """That the last run of ours took: of the pictures alone, and of the stage that opens them."""
        opened = json.loads((self.ours / "sweep" / str(fold) / "summary.json").read_text())
        alone = json.loads((Path(opened["start_from"]).parent / "summary.json").read_text())
        return alone["epochs"], opened["epochs"]

    def kappas(self) -> dict[str, list[float]]:
        """Modality -> over the test rows of all folds, ours and the plain script's."""
        ours = json.loads((self.ours / "sweep" / "pooled" / "pooled.json").read_text())
        plain = json.loads((self.plain / "kappa.json").read_text())
        return {name: [ours[f"pooled/{name}/kappa"], value[0]] for name, value in plain.items()}

    def parts(self) -> dict[str, dict[str, float]]:
        """Program -> part -> seconds, of one more run of each."""
        found = {}
        for name, run in ((OURS, self.run_ours), (PLAIN, self.run_plain)):
            target = self.work / f"{name}.json"
            whole = run("benchmarks/fusion_demo_parts.py", name, str(target))
            own = json.loads(target.read_text())
            found[name] = {**own, REST: whole - sum(own.values())}
        return found


def measure(demo: Demo, pairs: int) -> dict[str, Any]:
    """All figures."""
    seconds: dict[str, list[float]] = {OURS: [], PLAIN: []}
    for number in range(pairs):
        seconds[OURS].append(demo.run_ours("train.py"))
        seconds[PLAIN].append(demo.run_plain("benchmarks/peers_fusion.py"))
        print(
            f"pair {number + 1}: " + ", ".join(f"{name} {own[-1]:.1f} s" for name, own in seconds.items()), flush=True
        )
    figures: dict[str, Any] = {
        "ratio": ratio(seconds[OURS], seconds[PLAIN]),
        "seconds": {name: spread(own) for name, own in seconds.items()},
        "epochs": [demo.epochs_of(fold) for fold in FOLDS],
        "kappa": demo.kappas(),
        "second_start_s": spread([demo.second_start() for _ in range(pairs)]),
    }
    return figures | {"parts": demo.parts()}


def rows_of(parts: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """The table of the parts."""
    names = [IMPORTS, *sorted({name for own in parts.values() for name in own} - {IMPORTS, REST}), REST]
    rows = [{"part, s": name, **{who: f"{own.get(name, 0.0):.1f}" for who, own in parts.items()}} for name in names]
    return [*rows, {"part, s": "all", **{who: f"{sum(own.values()):.1f}" for who, own in parts.items()}}]


def say(figures: dict[str, Any]) -> None:
    """The verdicts."""
    for name, (ours, plain) in figures["kappa"].items():
        print(f"parity, kappa of {name}: {ours:.3f} and {plain:.3f} (allowed to differ by {KAPPA_TOLERANCE})")
    for name, own in figures["seconds"].items():
        print(f"{name}: {show(own, '{:.1f}')} s")
    print(verdict(f"{OURS} / {PLAIN}, whole demo", figures["ratio"]["median"], RATIO_BAR, at_most=True))
    start = figures["second_start_s"]
    print(f"second run of a fold, until it trains: {show(start, '{:.1f}')} s")
    print(verdict("second start, s", start["median"], START_BAR_S, at_most=True))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, pairs=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Demo(Path(work), options), options.pairs)
    write("fusion_demo", options, figures, rows_of(figures["parts"]))
    say(figures)
    apart = max(abs(ours - plain) for ours, plain in figures["kappa"].values())
    if apart > KAPPA_TOLERANCE and not options.quick:
        sys.exit(f"the kappas differ by {apart:.3f}: the timings compare nothing.")


if __name__ == "__main__":
    main()
