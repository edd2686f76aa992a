"""How many times faster is Phase 1 on cached features than with the frozen encoders run at every step?

    python benchmarks/feature_cache.py            # --pictures N, --threads N, --pairs N, --quick

Pictures a second from the files to the optimizer step, through the real GeolocationDataModule and
GeolocationModule.training_step: with features of frozen ViT-B-16 and ResNet-50 (512 and 2,048 numbers, half precision,
4 augmented views, memory-mapped), and with the JPEG files decoded, cropped, augmented and encoded each time. Both train
the same heads; weights are random, which changes no time. Filling the cache is timed too: it is paid once.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, verdict, write
from torch import nn
from torchvision.io import write_jpeg

from stagewise.datamodules import GeolocationDataModule
from stagewise.lightning_modules import GeolocationModule, GroupedOptimizer

BAR, VIEWS, VAL_ROWS, FILE_PX = 20.0, 4, 32, 256
NAMES = ("Sindh", "Punjab", "Khyber Pakhtunkhwa", "Islamabad", "Gilgit-Baltistan", "Balochistan", "Azad Kashmir")
TINY_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def write_pictures(root: Path, pictures: int) -> None:
    """Smooth noise as JPEG, in seven provinces; val lies apart from train."""
    generator = torch.Generator().manual_seed(0)
    (root / "images").mkdir(parents=True)
    for split, rows in (("train", pictures), ("val", VAL_ROWS)):
        with open(root / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image", "latitude", "longitude", "province", "province_id"])
            for i in range(rows):
                small = torch.rand(1, 3, 32, 32, generator=generator)
                image = nn.functional.interpolate(small, size=(FILE_PX, FILE_PX), mode="bicubic")[0].clamp(0, 1)
                name = f"images/{split}_{i:05}.jpg"
                write_jpeg((image * 255).byte(), str(root / name), quality=90)
                lat, lon = torch.rand(2, generator=generator).tolist()
                region = i % len(NAMES)
                place = [24 + 1.5 * region + lat + 0.02 * (split == "val") + 12 * (split == "val"), 62 + 2 * lon]
                writer.writerow([f"{split}{i}", name, *place, NAMES[region], region])


def optimizer() -> GroupedOptimizer:
    """The recipe's, with the encoders in a group that is never opened."""
    heads = ["region_head", "cell_heads", "offset_head", "aux_head", "cell_embedding", "region_embedding"]
    groups = {
        "heads": {"modules": [*heads, "clip_projection", "scene_projection", "gate"], "lr": 1e-3},
        "encoders": {"modules": ["clip", "scene"], "lr": 1e-5},
    }
    return GroupedOptimizer(partial(torch.optim.AdamW, weight_decay=1e-5, fused=True), groups, prefix="network")


def training(root: Path, options: argparse.Namespace, views: int) -> tuple[GeolocationDataModule, GeolocationModule]:
    """Data module and module of Phase 1, encoders frozen."""
    data = GeolocationDataModule(
        str(root),
        cells={"min_cluster_size": 8, "min_samples": 3, "min_size": 8},
        image={"px": 64 if options.quick else 224},
        checks={"images": False},
        feature_cache={"views": views},
        cache_dir=str(root / "cache"),
    )
    data.setup("fit")
    tiny = options.quick
    clip, scene = {"pretrained": None, **(TINY_CLIP if tiny else {})}, {"name": "resnet10t" if tiny else "resnet50"}
    torch.manual_seed(0)
    module = GeolocationModule({"clip": clip, "scene": scene, "image_px": data.image["px"]}, optimizer=optimizer())
    module.build(data.geography or {}, load=False)
    module.network.clip.requires_grad_(False)
    module.network.scene.requires_grad_(False)
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    return data, module.train()


def batches_of(data: GeolocationDataModule) -> Iterator[dict[str, Any]]:
    """Endless training batches, as Lightning hands them to the step."""
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield data.on_after_batch_transfer(batch, 0)


def steps(data: GeolocationDataModule, module: GeolocationModule, number: int) -> Callable[[], None]:
    """A call that trains on so many batches."""
    batches, optimizer = batches_of(data), module.configure_optimizers()["optimizer"]

    def run() -> None:
        for _ in range(number):
            loss = module.training_step(next(batches), 0)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        module.train_table.reset()

    return run


def half_precision_error(data: GeolocationDataModule, module: GeolocationModule) -> float:
    """Largest difference of cached and fresh features of a batch of val, relative to the largest feature."""
    cached = next(iter(data.val_dataloader()))
    fresh = data.on_after_batch_transfer(next(iter(data.split_dataloader("val"))), 0)
    with torch.no_grad():
        features = module.network.encode(fresh)
    return max(float((cached[k] - v).abs().max() / v.abs().max()) for k, v in features.items())


def main() -> None:
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument(
        "--batches", type=int, default=2, help="in a block of the slow side; the fast side takes 10 times"
    )
    options = parse(parser)
    if options.quick:
        options.pictures, options.batches = 128, 1
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures)
        (slow_data, slow), (fast_data, fast) = (training(Path(folder), options, views) for views in (0, VIEWS))
        start = time.perf_counter()
        with torch.no_grad():
            fast_data.cache_features(fast.network.encode, fast.network.encoder_key(), torch.device("cpu"))
        filling_s = time.perf_counter() - start
        parity = agree("cached and fresh features (relative)", half_precision_error(fast_data, fast), 2e-2)
        blocks = {"recomputed": options.batches, "cached": 10 * options.batches}
        calls = {"recomputed": steps(slow_data, slow, blocks["recomputed"])}
        calls["cached"] = steps(fast_data, fast, blocks["cached"])
        seconds = in_turn(calls, options.pairs)
    size = int(fast_data.loader["batch_size"])
    rate = {name: [size * blocks[name] / s for s in values] for name, values in seconds.items()}
    print(f"filling the cache: {filling_s:.0f} s for {VIEWS + 1} x {options.pictures} + {VAL_ROWS} pictures")
    report(options, rate, {"parity": parity, "filling_s": filling_s, "views": VIEWS})


def report(options: argparse.Namespace, rate: dict[str, list[float]], figures: dict[str, Any]) -> None:
    """Table, JSON, and whether the bar is met."""
    gain = ratio(rate["cached"], rate["recomputed"])
    rows = [{"Phase 1": name, "pictures a second": show(spread(values), "{:,.1f}")} for name, values in rate.items()]
    rows.append({"Phase 1": "cached / recomputed", "pictures a second": show(gain, "{:.1f}")})
    figures |= {"pictures_per_second": {name: spread(values) for name, values in rate.items()}, "ratio": gain}
    write("feature_cache", options, figures, rows)
    print(verdict("cached / recomputed", gain["median"], BAR, at_most=False))


if __name__ == "__main__":
    main()
