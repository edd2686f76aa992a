"""Does the memory of making a map stay as it is when the raster becomes 16 times larger?

    python benchmarks/landslide_memory.py       # --size N, --threads N, --quick

The whole chain (channels on disk -> a light network in windows of 512 -> CRF in tiles of 512 -> calibration -> seven
Cloud-Optimised GeoTIFFs) on a raster and on one four times as wide and high. The smaller one has CRF tiles with a halo
on all sides already; two iterations of the CRF need the memory of eight. Every map is made in a fresh process; the
figure is the peak of its resident set (``VmHWM``), interpreter and libraries included, and the same above the process
as it stood before the call.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from timing import parse, parser_of, ratio, show, spread, verdict, write

from stagewise.datamodules.landslide.channels import ChannelList
from stagewise.datamodules.landslide.prepared import PreparedArea
from stagewise.lightning_modules.landslide.inference import map_area
from stagewise.lightning_modules.landslide.map_model import MapModel, MapSettings
from stagewise.lightning_modules.landslide.sliding_window import Tiling

NAMES = ("elevation", "slope", "tpi", "twi")
TIMES, BAR = 4, 1.10
CRF, QUICK_CRF = {"iterations": 2, "tile": 512}, {"iterations": 2, "tile": 128, "halo": 32}


def make_area(folder: Path, size: int) -> None:
    """Prepared channels: waves with noise."""
    folder.mkdir()
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "nodata": np.nan, "BIGTIFF": "IF_SAFER"}
    place = {"crs": "EPSG:32717", "transform": rasterio.Affine(10, 0, 6e5, 0, -10, 9.6e6)}
    rng = np.random.default_rng(0)
    path = folder / "channels.tif"
    with rasterio.open(path, "w", "GTiff", size, size, len(NAMES), dtype="float32", **place, **layout) as raster:
        raster.descriptions = NAMES
        for row in range(0, size, 256):
            rows, column = np.mgrid[row : row + min(256, size - row), :size]
            wave = np.sin(rows / 40) + np.cos(column / 60)
            noise = rng.normal(0, 0.2, (len(NAMES), *wave.shape))
            raster.write((wave + noise).astype(np.float32), window=Window(0, row, size, len(wave)))


def light_network() -> Any:
    """Three classes from a smoothed slope."""

    def member(image: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.avg_pool2d(image[:, 1:2].nan_to_num(), 5, 1, 2)
        return torch.cat([-x, 0 * x, x], 1).softmax(1)

    return member


def memory_mb(field: str) -> float:
    """``VmHWM`` (peak; unlike ru_maxrss it is not the parent's) or ``VmRSS`` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def child(folder: str, output: str, crf: str) -> None:
    """Makes one map and prints its figures as JSON."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    channels = ChannelList(NAMES)
    model = MapModel([light_network()], ("low", "medium", "high"), channels, [0.0] * 4, [1.0] * 4, "light")
    typical = {"positions": [0, 1, 2, 3], "mean": [0.0] * 4, "precision": np.eye(4).tolist(), "threshold": 13.0}
    model = MapModel(**{**vars(model), "typical": typical, "calibration": {"kind": "temperature", "temperature": 1.5}})
    settings = MapSettings(Tiling(), turns=False, crf=json.loads(crf))
    with PreparedArea("area", folder, channels) as area:
        before, start = memory_mb("VmRSS"), time.perf_counter()
        map_area(area, model, output, settings)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "before_mb": before, "peak_mb": memory_mb("VmHWM")}))


def measure(options: Any, size: int, crf: dict[str, int]) -> dict[str, float]:
    """One map of a size in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_area(Path(folder) / "area", size)
        command = [sys.executable, __file__, "--child", f"{folder}/area", f"{folder}/map", json.dumps(crf)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("--size", type=int, default=1536, help="of the smaller raster (default: %(default)s)")
    options = parse(parser)
    small, crf, repeats = (512, QUICK_CRF, 1) if options.quick else (options.size, CRF, 2)
    runs: dict[int, list[dict[str, float]]] = {small: [], TIMES * small: []}
    for _ in range(repeats):
        for size, measured in runs.items():
            measured.append(measure(options, size, crf))
    peak = {size: [run["peak_mb"] for run in measured] for size, measured in runs.items()}
    above = {size: [run["peak_mb"] - run["before_mb"] for run in measured] for size, measured in runs.items()}
    rows = [
        {
            "raster": f"{size} x {size}",
            "peak MB": show(spread(peak[size]), "{:.0f}"),
            "MB above imports": show(spread(above[size]), "{:.0f}"),
            "s": show(spread([run["seconds"] for run in measured]), "{:.1f}"),
        }
        for size, measured in runs.items()
    ]
    figures = {"ratio": ratio(peak[TIMES * small], peak[small]), "above": ratio(above[TIMES * small], above[small])}
    write("landslide_memory", options, {**figures, "runs": runs}, rows)
    print(verdict("peak memory of a raster 16 times larger", figures["ratio"]["median"], BAR, at_most=True))
    print(verdict("the same above imports", figures["above"]["median"], BAR, at_most=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
