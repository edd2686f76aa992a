"""What the benchmarks share: blocks timed in turn, ratios with their spread, tables, JSON with the machine.

It answers no question of its own. Two implementations are timed A B A B … in one process, so that whatever else the
machine does falls on both, and a figure is the median of the ratios of neighbours with its smallest and largest.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
MIN_PAIRS = 5
Seconds = dict[str, list[float]]
AGREED: dict[str, float] = {}  # what agree() found in this process
PACKAGES = (
    "stagewise torch torchvision lightning torchmetrics timm open_clip_torch segmentation-models-pytorch hydra-core "
    "scikit-learn imbalanced-learn litdata onnxruntime kornia coral-pytorch finetuning-scheduler transformers monai "
    "pytorch-toolbelt pytorch-metric-learning pydensecrf2 pyflwdir xdem whitebox-workflows"
).split()


def parser_of(doc: str | None, pairs: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, its figures say nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=pairs, help="measurements of each (default: %(default)s)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and sets the threads."""
    options = parser.parse_args()
    options.pairs = max(MIN_PAIRS, options.pairs)
    torch.set_num_threads(options.threads)
    return options


def in_turn(contestants: Mapping[str, Callable[[], Any]], pairs: int, block_s: float = 0.0) -> Seconds:
    """Times each in turn, ``pairs`` times, after one call that does not count.

    Args:
        contestants: name -> a call.
        pairs: measurements of each.
        block_s: a measurement repeats the call until about this long, for calls shorter than the clock's noise.

    Returns:
        Name -> seconds of one call, in order.
    """
    calls = {name: _calls_in(call, block_s) for name, call in contestants.items()}
    seconds: Seconds = {name: [] for name in contestants}
    for _ in range(pairs):
        for name, call in contestants.items():
            seconds[name].append(_seconds_of(call, calls[name]))
    return seconds


def _calls_in(call: Callable[[], Any], block_s: float) -> int:
    call()
    if not block_s:
        return 1
    return max(1, round(block_s / max(_seconds_of(call, 1), 1e-6)))


def _seconds_of(call: Callable[[], Any], calls: int) -> float:
    gc.collect()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Spread of the quotients of neighbouring measurements."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def show(figure: Mapping[str, float], form: str = "{:.3g}", scale: float = 1.0) -> str:
    """``median (min-max)``.

    >>> show({"median": 2.0, "min": 1.0, "max": 3.0})
    '2 (1-3)'
    """
    median, low, high = (form.format(figure[key] * scale) for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def as_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns aligned, in Markdown."""
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    line = "| " + " | ".join("{}" for _ in width) + " |"
    head = [line.format(*(name.ljust(w) for name, w in width.items())), line.format(*("-" * w for w in width.values()))]
    return "\n".join(head + [line.format(*(row[name].ljust(w) for name, w in width.items())) for row in rows])


def verdict(what: str, figure: float, bar: float, at_most: bool) -> str:
    """Says whether a bar was met, and nothing fails when it was not."""
    met = figure <= bar if at_most else figure >= bar
    return f"{what}: {figure:.4g}, bar {'<=' if at_most else '>='} {bar:g}: {'met' if met else 'MISSED'}"


def agree(what: str, difference: float, tolerance: float) -> float:
    """Prints the largest difference of two implementations and ends the script when they do not agree."""
    AGREED[what] = difference
    print(f"parity, {what}: largest difference {difference:.2e} (allowed {tolerance:.0e})")
    if not difference <= tolerance:
        raise SystemExit(f"{what} differ by {difference:.3g}, more than {tolerance:g}: the timings compare nothing.")
    return difference


def write(
    name: str, options: argparse.Namespace, figures: Mapping[str, Any], rows: Sequence[Mapping[str, str]]
) -> None:
    """Prints the table and writes all of it to ``benchmarks/results/NAME.json`` (``NAME_quick.json``)."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'_quick' if options.quick else ''}.json"
    content = {"options": vars(options), "measured": when(), "machine": machine(), "versions": versions()}
    content |= {"parity": AGREED, "figures": dict(figures), "table": list(rows)}
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(f"\n{as_table(rows)}\n\nwritten to {path}")


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Of ourselves, of what we stand on and of the peers, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def when() -> dict[str, str]:
    """The day, and the commit that the working tree started from."""
    return {"date": time.strftime("%Y-%m-%d"), "commit": git("rev-parse", "--short", "HEAD")}


def git(*arguments: str) -> str:
    """What git answers about this repository; nothing where there is none."""
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
