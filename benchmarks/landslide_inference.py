"""Is windowed inference from and to disk as fast as tilers that hold everything in memory, at a fraction of theirs?

    python benchmarks/landslide_inference.py      # --threads N, --pairs N, --size N, --network-size N, --quick

8 bands of float32 on disk (uncompressed, tiled 256, in the page cache) -> 3 bands on disk (the same layout), windows of
512, overlap 128, batches of 4. Ours streams; pytorch-toolbelt (ImageSlicer, TileMerger) and MONAI
(sliding_window_inference) read the raster into memory first and write their result at the end: all three are timed from
the first byte read to the file closed. Once with a network that costs nothing (its first 3 bands), once with an smp
U-Net with ResNet-18. Every measurement is a fresh process; the processes take turns. Memory is the peak of the resident
set; above the process as it stood before the call, with its imports done, and in all. All must give the same map.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window as GdalWindow
from timing import agree, parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor, nn

from stagewise.datamodules.landslide.rasters import CACHE_BYTES
from stagewise.lightning_modules.landslide.sliding_window import Tiling, predict_tiled
from stagewise.lightning_modules.landslide.windows import Axis

BANDS, CLASSES = 8, 3
TILING = Tiling(window=512, overlap=128, batch=4)
STRIDE = TILING.window - TILING.overlap
MEMORY_BAR, TOOLBELT_BAR, MONAI_BAR = 0.25, 1.0, 1.5
Network = Callable[[Tensor], Tensor]


def first_bands(image: Tensor) -> Tensor:
    """The network that costs nothing."""
    return image[:, :CLASSES]


def unet() -> nn.Module:
    """A real one with random weights, which lie in memory as those of our module."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    network: nn.Module = smp.Unet("resnet18", encoder_weights=None, in_channels=BANDS, classes=CLASSES).eval()
    return network.to(memory_format=torch.channels_last)


def create(path: str, bands: int, size: int) -> Any:
    """A float32 GeoTIFF open for writing."""
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER"}
    place = {"crs": "EPSG:32717", "transform": rasterio.Affine(10, 0, 6e5, 0, -10, 9.6e6)}
    return rasterio.open(path, "w", "GTiff", size, size, bands, dtype="float32", **place, **layout)


def make_raster(path: str, size: int) -> None:
    """Smooth bands with noise."""
    rng = np.random.default_rng(0)
    with create(path, BANDS, size) as raster:
        for row in range(0, size, 512):
            slope = np.linspace(0, 1, size, dtype=np.float32) + row / size
            noise = rng.normal(0, 0.1, (BANDS, min(512, size - row), size)).astype(np.float32)
            raster.write(slope + noise, window=GdalWindow(0, row, size, noise.shape[1]))


def ours(network: Network, source: str, target: str) -> None:
    """Streams."""
    with rasterio.open(source) as raster, create(target, CLASSES, raster.width) as out:

        def read(window: tuple[int, int, int, int], pixels: Any) -> None:
            row, column, rows, columns = window
            raster.read(window=GdalWindow(column, row, columns, rows), out=pixels)

        def store(window: tuple[int, int, int, int], values: Any) -> None:
            row, column, rows, columns = window
            out.write(values, window=GdalWindow(column, row, columns, rows))

        predict_tiled(network, read, BANDS, raster.height, raster.width, store, TILING)


def toolbelt(network: Network, source: str, target: str) -> None:
    """pytorch-toolbelt as in its documentation, tiles made on the way instead of all at once."""
    from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger

    with rasterio.open(source) as raster:
        image = np.moveaxis(raster.read(), 0, -1)
    slicer = ImageSlicer(image.shape[:2], TILING.window, STRIDE, weight=blend_weight().numpy())
    merger = TileMerger(slicer.target_shape, CLASSES, slicer.weight)
    tiles = slicer.iter_split(image)
    with torch.no_grad():
        while chunk := [tile for _, tile in zip(range(TILING.batch), tiles)]:
            batch = torch.from_numpy(np.stack([np.moveaxis(tile, -1, 0) for tile, _ in chunk]))
            merger.integrate_batch(network(batch), [corner for _, corner in chunk])
    merged = merger.merge_()
    top, left = slicer.margin_top, slicer.margin_left
    store_all(target, merged[:, top : top + image.shape[0], left : left + image.shape[1]].numpy())


def monai(network: Network, source: str, target: str) -> None:
    """MONAI with its smooth weights."""
    from monai.inferers import sliding_window_inference

    with rasterio.open(source) as raster:
        image = torch.from_numpy(raster.read())[None]
    overlap = TILING.overlap / TILING.window
    with torch.no_grad():
        found = sliding_window_inference(image, TILING.window, TILING.batch, network, overlap, mode="gaussian")
    store_all(target, found[0].numpy())


def store_all(target: str, values: Any) -> None:
    """Writes a map at once."""
    with create(target, CLASSES, values.shape[-1]) as out:
        out.write(values)


def blend_weight() -> Tensor:
    """Our weight of a window in the middle of a raster, as a picture."""
    weight = torch.from_numpy(Axis(3 * TILING.window, TILING.window, TILING.overlap).weights[1])
    return weight[:, None] * weight


CONTESTANTS = {"ours": ours, "pytorch-toolbelt": toolbelt, "MONAI": monai}
MODULES = {"ours": (), "pytorch-toolbelt": ("pytorch_toolbelt.inference.tiles",), "MONAI": ("monai.inferers",)}


def memory_mb(field: str) -> float:
    """``VmHWM`` (peak; unlike ru_maxrss it is not the parent's) or ``VmRSS`` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def child(contestant: str, network: str, source: str, target: str) -> None:
    """One measurement, printed as JSON."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for module in MODULES[contestant]:
        importlib.import_module(module)
    net = unet() if network == "unet" else first_bands
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        before, start = memory_mb("VmRSS"), time.perf_counter()
        CONTESTANTS[contestant](net, source, target)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "before_mb": before, "peak_mb": memory_mb("VmHWM")}))


def measure(options: Any, network: str, size: int, folder: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """All contestants in turn on one raster."""
    source = f"{folder}/{size}.tif"
    make_raster(source, size)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    for _ in range(options.pairs):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--child", name, network, source, f"{folder}/{name}.tif"]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    parity(network, folder)
    return figures_of(runs, size), rows_of(runs, size, network)


def parity(network: str, folder: str) -> None:
    """The maps agree: all of them where the network is the identity, away from the edges where windows lie alike."""
    maps = {}
    for name in CONTESTANTS:
        with rasterio.open(f"{folder}/{name}.tif") as raster:
            maps[name] = raster.read()
    if network == "identity":
        for name in ("pytorch-toolbelt", "MONAI"):
            agree(f"maps of ours and {name}", float(np.abs(maps["ours"] - maps[name]).max()), 1e-5)


def figures_of(runs: dict[str, list[dict[str, float]]], size: int) -> dict[str, Any]:
    """Ratios of neighbours, and the spread of each."""
    column = {n: {k: [run[k] for run in r] for k in r[0]} for n, r in runs.items()}
    extra = {n: [p - b for p, b in zip(c["peak_mb"], c["before_mb"])] for n, c in column.items()}
    mpx_s = {n: spread([size**2 / 1e6 / s for s in c["seconds"]]) for n, c in column.items()}
    peers = [n for n in CONTESTANTS if n != "ours"]
    return {
        "size": size,
        "megapixels_a_second": mpx_s,
        "extra_peak_mb": {n: spread(v) for n, v in extra.items()},
        "peak_mb": {n: spread(c["peak_mb"]) for n, c in column.items()},
        "speed_over": {n: ratio(column[n]["seconds"], column["ours"]["seconds"]) for n in peers},
        "extra_memory_over": {n: ratio(extra["ours"], extra[n]) for n in peers},
        "memory_over": {n: ratio(column["ours"]["peak_mb"], column[n]["peak_mb"]) for n in peers},
    }


def rows_of(runs: dict[str, list[dict[str, float]]], size: int, network: str) -> list[dict[str, str]]:
    """The table."""
    figures = figures_of(runs, size)
    return [
        {
            "network, pixels": f"{network}, {size} x {size}",
            "tiler": name,
            "Mpx/s": show(figures["megapixels_a_second"][name]),
            "ours is faster by": show(figures["speed_over"][name]) if name != "ours" else "",
            "MB above imports": show(figures["extra_peak_mb"][name], "{:.0f}"),
            "MB in all": show(figures["peak_mb"][name], "{:.0f}"),
        }
        for name in CONTESTANTS
    ]


def main() -> None:
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--size", type=int, default=4096, help="of the raster for the free network")
    parser.add_argument("--network-size", type=int, default=1024, help="of the raster for the U-Net")
    options = parse(parser)
    sizes = {"identity": options.size, "unet": options.network_size}
    if options.quick:
        sizes = {"identity": 1536, "unet": 512}
    figures, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for network, size in sizes.items():
            figures[network], more = measure(options, network, size, folder)
            rows += more
            write("landslide_inference", options, figures, rows)  # the U-Net takes minutes: what is measured is kept
    for network, bars in {"identity": (TOOLBELT_BAR, MONAI_BAR), "unet": (1.0, 1.0)}.items():
        for peer, bar in zip(("pytorch-toolbelt", "MONAI"), bars):
            faster, memory = figures[network]["speed_over"][peer], figures[network]["extra_memory_over"][peer]
            print(verdict(f"{network}: speed over {peer}", faster["median"], bar, at_most=False))
            if network == "identity":  # a real network's own activations are the same for all three
                print(verdict(f"{network}: memory of {peer}", memory["median"], MEMORY_BAR, at_most=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
