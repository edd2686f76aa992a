"""Are shards read at least as fast as files, and in how much memory?

    python benchmarks/streaming.py            # --pictures N, --batches N, --workers N, --threads N, --pairs N, --quick

Training batches of 64 from the same JPEG files of 256 px through the real GeolocationDataModule: as files, and as
shards (``storage=litdata``) that ``convert`` made of them; the crops to 224 px, the quotas and the loader are the same.
Warm: all is in memory. Cold: before each block what it reads is put out of the page cache, as where data is larger than
memory; each block is an epoch of its own. Remote: shards of a ``local:`` store, each copied by litdata into a cache
that is empty before each block. Memory is the resident size of fresh processes before an epoch and at its peak.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from feature_cache import write_pictures
from ten_million_rows import peak_gb
from timing import MIN_PAIRS, Seconds, agree, parse, parser_of, ratio, show, spread, verdict, write

from stagewise.datamodules import GeolocationDataModule

BAR, BATCH, PX, WINDOW = 1.0, 64, 224, 2
FILES, SHARDS, REMOTE = "files", "shards", "shards, remote"


def opened(root: str, options: argparse.Namespace, **more: Any) -> GeolocationDataModule:
    """The data module, ready to train."""
    data = GeolocationDataModule(
        root,
        cells={"min_cluster_size": 8, "min_samples": 3, "min_size": 8},
        loader={"batches_per_epoch": options.batches, "num_workers": options.workers},
        image={"px": PX},
        checks={"images": False},
        cache_dir=str(Path(root.removeprefix("local:")).parent / "cache"),
        **more,
    )
    data.setup("fit")
    return data


def contestants(root: Path, options: argparse.Namespace) -> dict[str, GeolocationDataModule]:
    """Files, their shards, and the shards as if they lay elsewhere."""
    store = root / "store"
    if not store.is_dir():
        made = opened(str(root / "files"), options).convert(str(store), shard_mb=options.shard_mb)
        print(made)
    more = {"storage": "litdata", "streaming": {"window": WINDOW, "cache_gb": options.cache_mb / 1e3}}
    return {
        FILES: opened(str(root / "files"), options),
        SHARDS: opened(str(store), options, **more),
        REMOTE: opened(f"local:{store}", options, **more),
    }


def endless(data: GeolocationDataModule) -> Iterator[dict[str, Any]]:
    """Training batches, epoch after epoch, with the workers of the first."""
    loader = data.train_dataloader()
    epoch = 0
    while True:
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        yield from loader
        epoch += 1


def forget(folder: Path) -> None:
    """Puts the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def blocks(
    modules: dict[str, GeolocationDataModule], before: Callable[[str], None], options: argparse.Namespace
) -> Seconds:
    """Seconds of an epoch of each in turn; what comes before a block is not timed."""
    batches = {name: endless(data) for name, data in modules.items()}
    seconds: Seconds = {name: [] for name in modules}
    for pair in range(options.pairs + 1):
        for name in modules:
            before(name)
            start = time.perf_counter()
            for _ in range(options.batches):
                next(batches[name])
            if pair:  # the first one starts the workers
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measured(root: Path, options: argparse.Namespace) -> dict[str, Seconds]:
    """Seconds by temperature and contestant."""
    modules = contestants(root, options)
    agree("crops of the first rows of val", difference(modules), 0)
    store = modules[REMOTE].store
    assert store

    def empty(name: str) -> None:
        forget(root / ("files" if name == FILES else "store"))
        if name == REMOTE:
            for folder in ("train", "val"):
                shutil.rmtree(store.folder / folder, ignore_errors=True)

    local = {name: modules[name] for name in (FILES, SHARDS)}
    return {"warm": blocks(local, lambda name: None, options), "cold": blocks(modules, empty, options)}


def difference(modules: dict[str, GeolocationDataModule]) -> float:
    """Largest difference of val's pictures, which every contestant has in the same order."""
    files, *others = (data.dataset("val") for data in modules.values())
    return max(float((files[i]["image"] - other[i]["image"]).abs().max()) for other in others for i in range(16))


def child(root: Path, name: str, options: argparse.Namespace) -> None:
    """Goes through an epoch in a fresh process; prints its largest memory, and of a remote store that of its copies."""
    options.workers, data = 0, contestants(root, options)[name]
    held, before = 0, peak_gb()
    for _ in data.train_dataloader():
        if name == REMOTE and data.store:
            held = max(held, sum(path.stat().st_size for path in data.store.folder.rglob("*.bin")))
    print(json.dumps({"peak_gb": peak_gb(), "epoch_mb": (peak_gb() - before) * 1e3, "copies_mb": held / 1e6}))


def memory(root: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Largest memory of one process of each."""
    found = {}
    for name in (FILES, SHARDS, REMOTE):
        command = [sys.executable, __file__, "--child", str(root), name, "--batches", str(options.batches)]
        command += ["--cache-mb", str(options.cache_mb), "--threads", str(options.threads)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[name] = json.loads(output.splitlines()[-1])
    return found


def report(options: argparse.Namespace, seconds: dict[str, Seconds], peaks: dict[str, dict[str, float]]) -> None:
    """Table, JSON, and whether the bars are met."""
    rows, gains, rates = [], {}, {}
    for state, of in seconds.items():
        for name, values in of.items():
            key = f"{name}, {state}"
            rates[key] = spread([BATCH * options.batches / s for s in values])
            gains[key] = ratio(of[FILES], values)
            cells = {"images a second": show(rates[key], "{:,.0f}"), "times the files": show(gains[key], "{:.3f}")}
            rows.append({"reader": key, **cells, "peak GB": f"{peaks[name]['peak_gb']:.3f}"})
            rows[-1] |= {"of it in the epoch, MB": f"{peaks[name]['epoch_mb']:.0f}"}
    figures = {"images_per_second": rates, "ratio": gains, "memory": peaks, "window": WINDOW}
    write("streaming", options, figures, rows)
    for state in seconds:
        median = gains[f"{SHARDS}, {state}"]["median"]
        print(verdict(f"shards / files, {state}", median, BAR, at_most=False))
    print(verdict("copies of a remote store, MB", peaks[REMOTE]["copies_mb"], options.cache_mb, at_most=True))


def main() -> None:
    parser = parser_of(__doc__, pairs=15)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--batches", type=int, default=20, help="of an epoch and of a block (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of the loaders (default: %(default)s)")
    parser.add_argument("--shard-mb", type=float, default=1.0, help="of a shard (default: %(default)s)")
    parser.add_argument(
        "--cache-mb", type=float, default=48.0, help="of a remote store's copies (default: %(default)s)"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parse(parser)
    if options.child:
        return child(Path(options.child[0]), options.child[1], options)
    if options.quick:
        options.pictures, options.batches, options.pairs = 600, 3, MIN_PAIRS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "files", options.pictures)
        report(options, measured(root, options), memory(root, options))


if __name__ == "__main__":
    main()
