"""Is our dense CRF the one of pydensecrf2, and is it faster?

    python benchmarks/landslide_crf.py        # --threads N, --pairs N, --quick

512, 1024 and 2048 square, 3 classes, 8 iterations, the recipe's weights, the guide as three uint8 bands: lattices and
mean field, nothing left out on either side. Class agreement over scenes from a clean to a very noisy guide and from
timid to sure probabilities. Then 4096 square in tiles: peak memory of a process of its own, above what it held before.
The peer is the extra ``crf-peer``: ``pip install pydensecrf2``, compiled at install.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import torch
from timing import in_turn, parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor

from stagewise.lightning_modules.landslide.crf import DenseCRF
from stagewise.lightning_modules.landslide.mean_field import MIN_PROBABILITY

SIZES, QUICK_SIZES = (512, 1024, 2048), (128, 256)
AGREEMENT_BAR, SPEED_BAR = 0.99, 1.0
GUIDE_NOISE, SURENESS = (0.0, 3.0, 6.0, 12.0, 25.0), (0.7, 1.5, 3.0)
MiB = 1 << 20


def fractal(bands: int, size: int, roughness: float, generator: torch.Generator) -> Tensor:
    """(bands, size, size) of unit variance with a power spectrum that falls with frequency."""
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size))
    frequency[0, 0] = torch.inf
    phase = torch.rand((bands, *frequency.shape), generator=generator) * 2 * torch.pi
    field = torch.fft.irfft2(torch.polar(frequency ** (-roughness / 2), phase), s=(size, size))
    return field / field.std(dim=(1, 2), keepdim=True)


def scene(size: int, seed: int = 0, guide_noise: float = 6.0, sureness: float = 1.5) -> tuple[Tensor, Tensor]:
    """Probabilities (3, H, W) of a terrain-like class field, wrong in patches and in pixels, and its guide 0..255."""
    generator = torch.Generator().manual_seed(seed)
    relief = fractal(1, size, 3.0, generator)[0]
    cuts = torch.tensor(np.quantile(relief.numpy(), [0.6, 0.85]), dtype=torch.float32)
    truth = torch.bucketize(relief, cuts)
    logits = sureness * torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1)
    logits = logits + 0.8 * fractal(3, size, 2.0, generator) + 0.7 * torch.randn(3, size, size, generator=generator)
    guide = 110 + 18 * relief + 18 * fractal(3, size, 2.6, generator)
    guide += guide_noise * torch.randn(3, size, size, generator=generator)
    return logits.softmax(0), guide.round().clamp(0, 255)


def theirs(probability: Tensor, guide: Tensor) -> Tensor:
    """The peer with the same settings."""
    from pydensecrf import densecrf

    _, height, width = probability.shape
    peer = densecrf.DenseCRF2D(width, height, 3)
    unary = probability.clamp_min(MIN_PROBABILITY).log_().neg_().flatten(1)
    peer.setUnaryEnergy(np.ascontiguousarray(unary.numpy()))
    peer.addPairwiseGaussian(sxy=5, compat=5)
    image = np.ascontiguousarray(guide.byte().permute(1, 2, 0).numpy())
    peer.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=15)
    return torch.from_numpy(np.array(peer.inference(8))).view(3, height, width)


def class_agreement(a: Tensor, b: Tensor) -> float:
    return float((a.argmax(0) == b.argmax(0)).double().mean())


def agreements(size: int) -> dict[str, float]:
    """Over scenes of one size, each with a seed of its own."""
    figures = {}
    for noise in GUIDE_NOISE:
        for sureness in SURENESS:
            pair = scene(size, len(figures), noise, sureness)
            name = f"guide noise {noise:g}, sureness {sureness:g}"
            figures[name] = class_agreement(DenseCRF().refine(*pair), theirs(*pair))
    return figures


def race(size: int, pairs: int) -> tuple[dict[str, object], dict[str, str]]:
    """Figures and a row of the table for one size."""
    pair = scene(size)
    crf = DenseCRF()
    agreement = class_agreement(crf.refine(*pair), theirs(*pair))
    seconds = in_turn({"ours": lambda: crf.refine(*pair), "pydensecrf2": lambda: theirs(*pair)}, pairs)
    quotient = ratio(seconds["pydensecrf2"], seconds["ours"])
    row = {
        "pixels": f"{size} x {size}",
        "ours s": show(spread(seconds["ours"])),
        "pydensecrf2 s": show(spread(seconds["pydensecrf2"])),
        "times faster": show(quotient),
        "agreement %": f"{100 * agreement:.3f}",
    }
    figures = {name: spread(values) for name, values in seconds.items()}
    return {"seconds": figures, "times_faster": quotient, "agreement": agreement}, row


def tiled_peak(size: int, tile: int, halo: int) -> None:
    """In a child process: refines a raster in tiles and prints the peak of its memory over the start's, MiB."""
    base_p, base_g = scene(512)

    def read(window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, None]:
        row, column, rows, columns = window  # a raster that repeats itself takes no memory of its own
        y, x = torch.arange(row, row + rows)[:, None] % 512, torch.arange(column, column + columns) % 512
        return base_p[:, y, x], base_g[:, y, x], None

    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    DenseCRF(tile=tile, halo=halo).refine_tiled(read, lambda window, refined: None, size, size)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)


def memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak MiB of rasters in tiles and in one piece."""
    halo = 32 if options.quick else DenseCRF().halo
    figures = {}
    for size, tile in ((512, 128), (256, 256)) if options.quick else ((2048, 1024), (4096, 1024), (2048, 2048)):
        command = [sys.executable, __file__, "--threads", str(options.threads), "--child", f"{size},{tile},{halo}"]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        figures[f"{size} in tiles of {tile}"] = peak
        print(f"peak memory, {size} x {size} in tiles of {tile} with halo {halo}: {peak:.0f} MiB")
    figures["bytes per pixel in one piece"] = peak * MiB / size**2
    print(f"that is {figures['bytes per pixel in one piece']:.0f} bytes per pixel in one piece")
    return figures


def main() -> None:
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.child:
        tiled_peak(*map(int, options.child.split(",")))
        return
    figures: dict[str, object] = {"peak_mib": memory(options)}
    if find_spec("pydensecrf") is None:
        raise SystemExit("no peer, nothing to compare: pip install pydensecrf2 (extra crf-peer)")
    found = agreements(128 if options.quick else 512)
    least, median = min(found.values()), statistics.median(found.values())
    print(f"class agreement over {len(found)} scenes: least {100 * least:.3f} %, median {100 * median:.3f} %")
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        figures[str(size)], row = race(size, options.pairs)
        rows.append(row)
    write("landslide_crf", options, {**figures, "agreements": found}, rows)
    print(verdict("least class agreement", least, AGREEMENT_BAR, at_most=False))
    for row in rows:
        faster = float(row["times faster"].split()[0])
        print(verdict(f"{row['pixels']}, pydensecrf2 / ours", faster, SPEED_BAR, at_most=False))


if __name__ == "__main__":
    main()
