"""Do 10 million rows fit in 2 GB, and does the first batch come within 10 s of ``setup``?

    python benchmarks/ten_million_rows.py            # --rows N, --repeats N, --quick

Writes a train.csv of that many rows with the recipe's skew, then reads it in fresh processes through the real
GeolocationDataModule: ``setup("fit")`` with the recipe's cell settings (picture checks off: they decode every file),
then the first training batch. "Cold" fits the geocells, "warm" finds them in the cache of an earlier run. "Peak" is
``ru_maxrss`` of the whole process, interpreter and libraries included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARE = {
    "Sindh": 58697,
    "Punjab": 7611,
    "Khyber Pakhtunkhwa": 4810,
    "Islamabad Capital Territory": 3971,
    "Gilgit-Baltistan": 2141,
    "Balochistan": 3265,
    "Azad Kashmir": 967,
}
CENTRES = ((25.9, 68.5), (31.0, 72.6), (34.1, 71.6), (33.69, 73.05), (35.6, 74.6), (28.7, 65.5), (33.9, 73.8))
SPREAD_DEG = (1.0, 1.3, 0.7, 0.12, 0.6, 1.6, 0.35)
TOWNS, TOWN_SPREAD_DEG, FILES, PEAK_GB, FIRST_BATCH_S = 60, 0.05, 64, 2.0, 10.0


def write_data(root: Path, rows: int) -> None:
    """``train.csv`` in pieces of a million rows, ``val.csv`` of 1,000, and the few JPEG files that all rows share."""
    import numpy as np
    import torch
    from torchvision.io import write_jpeg

    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(FILES):
        write_jpeg(
            torch.from_numpy(rng.integers(0, 255, (3, 256, 256), dtype=np.uint8)), str(root / f"images/{i:08}.jpg")
        )
    write_csv(root / "train.csv", rows, rng, (0.0, 0.8))
    write_csv(root / "val.csv", 1000, rng, (0.85, 0.95))


def write_csv(path: Path, rows: int, rng: Any, band: tuple[float, float]) -> None:
    """Rows in mixed order, in towns, as photos are.

    A split uses the share ``band`` of every fifth of a degree of latitude, so that splits lie 1 km apart.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    names, share = list(SHARE), np.array(list(SHARE.values())) / sum(SHARE.values())
    centre, spread = np.array(CENTRES), np.array(SPREAD_DEG)[:, None]
    towns = centre[:, None] + spread[:, None] * np.random.default_rng(1).normal(size=(len(names), TOWNS, 2))
    with open(path, "wb") as file:
        for start in range(0, rows, 1_000_000):
            number = np.arange(start, min(start + 1_000_000, rows))
            region = rng.choice(len(names), len(number), p=share)
            place = towns[region, rng.integers(TOWNS, size=len(number))]
            place += rng.normal(0, TOWN_SPREAD_DEG, place.shape)
            strip, inside = np.divmod(place[:, 0] * 5, 1)
            place[:, 0] = (strip + band[0] + (band[1] - band[0]) * inside) / 5
            piece = columns_of(number.tolist(), place, region)
            pa.csv.write_csv(piece, file, pa.csv.WriteOptions(include_header=start == 0))


def columns_of(number: list[int], place: Any, region: Any) -> Any:
    """A piece of the CSV; ids in no order, as hashes are."""
    import pyarrow as pa

    provinces = pa.DictionaryArray.from_arrays(pa.array(region, pa.int32()), list(SHARE))
    columns = {
        "id": [f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}" for i in number],
        "image": [f"images/{i % FILES:08}.jpg" for i in number],
        "latitude": place[:, 0].round(6),
        "longitude": place[:, 1].round(6),
        "province": provinces.cast(pa.string()),
        "province_id": region,
    }
    return pa.table(columns)


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def child(root: str, cache: str, threads: int) -> None:
    """Runs in the fresh process; prints its figures as one line of JSON."""
    import logging

    start, figures = time.perf_counter(), dict[str, Any]()
    import torch

    from stagewise.datamodules import GeolocationDataModule

    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    figures["import_s"] = time.perf_counter() - start
    cells = {"max_radius_km": 50, "min_cluster_size": 40, "min_samples": 10, "min_size": 40}
    regions = {"Balochistan": {"max_radius_km": 60}}
    regions = {name: regions.get(name, {}) for name in SHARE}
    data = GeolocationDataModule(root, regions=regions, cells=cells, checks={"images": False}, cache_dir=cache)
    start = time.perf_counter()
    data.setup("fit")
    figures |= {"setup_s": time.perf_counter() - start, "setup_gb": peak_gb()}
    start = time.perf_counter()
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    figures |= {"batch_s": time.perf_counter() - start, "peak_gb": peak_gb(), "batch_shape": list(batch["image"].shape)}
    print(json.dumps({**figures, "cells": len(data.splits.cell_table), "rows": len(data.splits.get("train"))}))


def run_child(root: Path, cache: str, threads: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", str(root), cache, "--threads", str(threads)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures | {"setup_and_batch_s": figures["setup_s"] + figures["batch_s"]}


def cold_and_warm(root: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Two processes that share a new cache folder."""
    with tempfile.TemporaryDirectory() as cache:
        return {name: run_child(root, cache, threads) for name in ("cold", "warm")}


def report(options: argparse.Namespace, runs: list[dict[str, dict[str, Any]]]) -> None:
    """Table, JSON, and whether the bars are met."""
    from timing import show, spread, verdict, write

    first = runs[0]["cold"]
    keys = [key for key in first if key.endswith(("_s", "_gb"))]
    figures = {name: {key: spread([run[name][key] for run in runs]) for key in keys} for name in runs[0]}
    rows = [{"figure": key, **{name: show(values[key]) for name, values in figures.items()}} for key in keys]
    write("ten_million_rows", options, {**figures, "cells": first["cells"], "rows": first["rows"]}, rows)
    print(f"{first['rows']:,} rows, {first['cells']} cells, first batch {first['batch_shape']}")
    for name, values in figures.items():
        print(verdict(f"{name}: peak, GB", values["peak_gb"]["median"], PEAK_GB, at_most=True))
        for key, what in (("batch_s", "from the end of setup"), ("setup_and_batch_s", "from the start of setup")):
            print(verdict(f"{name}: first batch, s {what}", values[key]["median"], FIRST_BATCH_S, at_most=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--folder", help="keeps the data there, and uses what is there")
    parser.add_argument("--quick", action="store_true", help="20,000 rows, once")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.threads)
    if options.quick:
        options.rows, options.repeats = 20_000, 1
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.folder or temporary)
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "train.csv").is_file():
            write_data(root, options.rows)
        report(options, [cold_and_warm(root, options.threads) for _ in range(options.repeats)])


if __name__ == "__main__":
    main()
