"""How fast do the real networks train, beside a bare PyTorch loop, and how much of the device do they use?

    python benchmarks/full_size.py      # --workloads A,B, --precision bf16, --channels-last, --compile, --no-fused,
                                        # --benchmark, --batch N, --block N, --pairs N, --workers N, --threads N,
                                        # --profile, --sweep [SWITCHES], --keep, --folder DIR, --quick

GeoPak Phase 1 and 2 (CLIP ViT-B/16 + ResNet-50, batch 64), landslide V2.5 (U-Net with EfficientNet-B4, 28 channels,
batch 4) and drains (CLIP ViT-L/14, batch 16), composed from their experiments with the callbacks, loggers and trainer
settings that act within an epoch. Weights are random and the data is generated, which changes no time. LossRamp and
ExactResume are left out: callback_overhead.py has them. Blocks of steps alternate within one fit, batches from memory.
The bare loop has the same network, losses, optimizer, clipping, autocast and switches, and the losses of both must
agree. MFU is the counted operations of the real step over what the device could do at most, by its data sheet, or in
one large matrix product where it has none here. In a process of its own, with the real loader on pictures from the
disk: the most memory in use, and the share of a step spent waiting for a batch.

On a GPU the bars are 0.97 of the bare loop's pictures a second, and 40 % MFU for Phase 2 at batch 64 on an H200; where
that is missed the profile is written. Without one the table is of the CPU and no bar applies. ``--sweep`` tries every
combination of the switches. For a machine without a package index, carry the wheels: here
``pip wheel --no-deps -w wheels .`` and ``pip download --no-deps -d wheels NAME …`` for each requirement it lacks
(rasterio of the extra ``geo`` too), there ``pip install --no-index --no-deps wheels/*.whl``.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flops import peak_of
from full_size_fit import alone, child, in_turn_with_bare, profile
from full_size_tasks import WORKLOADS, Workload
from timing import RESULTS, agree, machine, parse, parser_of, ratio, show, spread, verdict, write

BAR, MFU_BAR, MFU_WORKLOAD = 0.97, 0.40, "geopak_phase2"
PARITY_STEPS, TOLERANCE = 10, {"32": 1e-3, "bf16": 2e-2}
SWITCHES: dict[str, tuple[Any, Any]] = {
    "precision": ("32", "bf16"),
    "channels_last": (False, True),
    "compile": (False, True),
    "fused": (False, True),
    "benchmark": (False, True),
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    gpu = torch.cuda.is_available()
    parser = parser_of(__doc__, pairs=7)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="some of the default, %(default)s")
    parser.add_argument("--precision", choices=SWITCHES["precision"], default="bf16" if gpu else "32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True, help="AdamW")
    parser.add_argument("--benchmark", action="store_true", help="cuDNN chooses its convolutions by trial")
    parser.add_argument("--batch", help="pictures a step, for all or for each with , between (default: the recipe's)")
    parser.add_argument(
        "--block", type=int, default=20 if gpu else 1, help="steps timed at once (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=4, help="of the real loader (default: %(default)s)")
    parser.add_argument("--sweep", nargs="?", const=",".join(SWITCHES), help="all combinations of these (default: all)")
    parser.add_argument("--profile", action="store_true", help="writes the operations that take longest")
    parser.add_argument("--keep", action="store_true", help="and the other workloads' figures of an earlier run here")
    parser.add_argument("--folder", help="keeps the generated data there, and uses what is there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    return parser


def measured(workload: Workload, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Speed of both loops, parity and MFU of one workload."""
    torch.compiler.reset()  # of what another combination of switches has compiled
    turns, flops = in_turn_with_bare(workload, options, folder)
    parity = agree(f"{workload.experiment}: losses", turns.parity(PARITY_STEPS), TOLERANCE[options.precision])
    batch, device = options.batch[workload.experiment], turns.bare.module.device
    peak, source = peak_of(device, options.precision == "bf16" or workload.in_half(device))
    return {
        "title": f"{workload.title.split(',')[0]}, the demo's small network" if options.quick else workload.title,
        "batch": batch,
        "switches": {name: getattr(options, name) for name in SWITCHES},
        "images_per_s": {name: spread([batch / s for s in v]) for name, v in of_both(turns).items()},
        "ratio": ratio(turns.bare_s, turns.ours),
        "gflop_a_picture": flops / batch / 1e9,
        "mfu": spread([flops / s / peak for s in turns.ours]),
        "peak_flops": {"per_s": peak, "source": source},
        "parity": parity,
    }


def of_both(turns: Any) -> dict[str, list[float]]:
    """Seconds of a step."""
    return {"ours": turns.ours, "bare loop": turns.bare_s}


def row_of(found: dict[str, Any]) -> dict[str, str]:
    """A line of the table; what was not measured is empty."""
    on = [f"{name}={value}" if name == "precision" else name for name, value in found["switches"].items() if value]
    speed = found["images_per_s"]
    row = {
        "network": found["title"],
        "batch": f"{found['batch']}",
        "switches": " ".join(on),
        "images/s, ours": show(speed["ours"]),
        "images/s, bare loop": show(speed["bare loop"]),
        "ours / bare loop": show(found["ratio"], "{:.3f}"),
        "GFLOP a picture": f"{found['gflop_a_picture']:.1f}",
        "MFU": show(found["mfu"], "{:.1%}"),
    }
    if "peak_mb" in found:
        row |= {"peak MB": f"{found['peak_mb']:.0f}", "share in data": f"{found['share_in_data']:.1%}"}
    return row


def race(options: argparse.Namespace, folder: str) -> None:
    """Every workload with the switches of the command line."""
    figures = earlier() if options.keep else {}
    for name in options.workloads.split(","):
        by_itself = alone(WORKLOADS[name], options, folder)  # first: this process may not give its networks back
        figures[name] = measured(WORKLOADS[name], options, folder) | by_itself
        figures = {own: figures[own] for own in WORKLOADS if own in figures}
        write("full_size", options, figures, [row_of(one) for one in figures.values()])  # what is measured is kept
        if options.profile or short_of_mfu(name, figures[name]):
            path = RESULTS / f"full_size_{name}{'_quick' if options.quick else ''}_profile.txt"
            profile(WORKLOADS[name], options, folder, path)
            print(f"the operations that took longest: {path}")
    for name, found in figures.items():
        if torch.cuda.is_available():
            print(verdict(f"{name}: ours / bare loop", found["ratio"]["median"], BAR, at_most=False))
        else:
            print(f"{name}: ours / bare loop {found['ratio']['median']:.3f}; the bar of {BAR} is for a GPU")


def earlier() -> dict[str, Any]:
    """Figures of a run on the same device with the same torch; none where there was no such run."""
    path = RESULTS / "full_size.json"
    content = json.loads(path.read_text()) if path.is_file() else {"machine": {}}
    same = all(content["machine"].get(key) == machine()[key] for key in ("cpu", "gpu", "torch", "torch_threads"))
    figures: dict[str, Any] = content["figures"] if same else {}
    return figures


def short_of_mfu(name: str, found: dict[str, Any]) -> bool:
    """Whether the bar on MFU applies, and is missed; says so."""
    if name != MFU_WORKLOAD or not torch.cuda.is_available() or found["batch"] != WORKLOADS[name].batch:
        return False
    print(verdict(f"{name}: MFU", found["mfu"]["median"], MFU_BAR, at_most=False))
    return bool(found["mfu"]["median"] < MFU_BAR)


def sweep(options: argparse.Namespace, folder: str) -> None:
    """Every combination of the switches; one that fails is a line that says why."""
    figures: dict[str, Any] = {}
    rows: list[dict[str, str]] = []
    names = options.sweep.split(",")
    for name in options.workloads.split(","):
        for values in itertools.product(*(SWITCHES[switch] for switch in names)):
            chosen = argparse.Namespace(**vars(options) | dict(zip(names, values)))
            try:
                found = measured(WORKLOADS[name], chosen, folder)
            except (Exception, SystemExit) as error:  # a compiler's errors have no common base
                print(f"{name} with {dict(zip(names, values))}: failed: {error}")
                continue
            figures.setdefault(name, []).append(found)
            rows.append(row_of(found))
            write("full_size_sweep", options, figures, rows)
    for name, tried in figures.items():
        best = max(tried, key=lambda found: found["images_per_s"]["ours"]["median"])
        print(f"{name}: fastest with {best['switches']}: {show(best['images_per_s']['ours'])} images a second")


def batches_of(options: argparse.Namespace) -> dict[str, int]:
    """Pictures a step of each workload: the recipe's unless the command line says otherwise; if quick, 8 at most."""
    names = options.workloads.split(",")
    given = (
        [int(number) for number in options.batch.split(",")] if options.batch else [WORKLOADS[n].batch for n in names]
    )
    chosen = dict(zip(names, given * len(names) if len(given) == 1 else given, strict=True))
    return {name: min(size, 8) if options.quick else size for name, size in chosen.items()}


@contextmanager
def folder_of(options: argparse.Namespace) -> Iterator[str]:
    """For generated data; what is not to be kept goes with the run."""
    if options.folder:
        yield str(Path(options.folder).absolute())
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    if given.child:
        options = argparse.Namespace(**json.loads(given.options))
        torch.set_num_threads(options.threads)
        print(json.dumps(child(WORKLOADS[given.workloads], options, given.child)))
        return
    options = parse(parser)
    for name, known in (("workloads", WORKLOADS), ("sweep", SWITCHES)):
        if unknown := sorted(set((getattr(options, name) or next(iter(known))).split(",")) - set(known)):
            parser.error(f"--{name} has {', '.join(unknown)}; known: {', '.join(known)}")
    options.batch = batches_of(options)
    with folder_of(options) as folder:
        options.folder = None  # a path of this machine
        (sweep if options.sweep else race)(options, folder)


if __name__ == "__main__":
    main()
