"""A small country in the true on-disk format, and networks that fit it."""

import csv
import math
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from lightning import Callback, Trainer
from torchvision.io import write_jpeg

from stagewise.datamodules import GeolocationDataModule
from stagewise.datamodules.geolocation.geocells import CellTable
from stagewise.lightning_modules import GeolocationModule, GroupedOptimizer, half_precision
from stagewise.lightning_modules.geolocation import encoders
from stagewise.lightning_modules.geolocation.network import GeolocationNetwork

NAMES = ["Coast", "Plain", "Gilgit-Baltistan"]
CELLS = {  # region -> centres, far apart from those of the other regions
    0: [(25.0, 67.0), (25.4, 67.3), (25.8, 66.9), (26.2, 67.4)],
    1: [(30.0, 72.0), (30.4, 72.5), (30.9, 72.1)],
    2: [(35.5, 75.0), (35.9, 75.6)],
}
ROWS = {"train": (24, 16, 8), "val": (9, 6, 3), "test": (9, 6, 3)}
CLIP = {
    "name": "ViT-B-16",
    "pretrained": None,
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
SCENE = {
    "name": "resnet10t",
    "weights": None,
    "channels": [16, 32, 48, 64],
    "stem_width": 8,
    "zero_init_last": False,
}
GROUPS = {
    "heads": {"modules": ["region_head", "cell_heads", "offset_head", "aux_head"], "lr": 5e-4},
    "embeddings": {"modules": ["cell_embedding", "region_embedding"], "lr": 5e-4},
    "fusion": {"modules": ["clip_projection", "scene_projection", "gate"], "lr": 5e-4},
    "clip": {"modules": ["clip"], "lr": 1e-5},
    "scene": {"modules": ["scene"], "lr": 5e-6},
}


def make_geography(**changes):
    """What ``PhotoSplits`` describes, as plain numbers and lists."""
    region = [r for r, centres in CELLS.items() for _ in centres]
    ids = list(range(100, 100 + len(region)))
    centre = [list(c) for centres in CELLS.values() for c in centres]
    same_region = [[ids[j] for j in range(len(ids)) if region[j] == region[i] and j != i] for i in range(len(ids))]
    return {
        "region_names": list(NAMES),
        "count": list(ROWS["train"]),
        "tau_km": [30.0, 60.0, 100.0],
        "offset_scale": [1.0, 0.6, 1.4],
        "centroid_deg": [28.5, 70.2],
        "region_centroid_deg": [[25.6, 67.1], [30.4, 72.2], [35.7, 75.3]],
        "cells": {
            "cell_id": ids,
            "region": region,
            "centre_deg": centre,
            "radius_km": [20.0] * len(ids),
            "neighbours": same_region,
        },
    } | changes


def make_network(seed=0, geography=None, frozen=True):
    torch.manual_seed(seed)
    network = GeolocationNetwork(geography or make_geography(), CLIP, SCENE, image_px=32)
    if frozen:
        network.clip.requires_grad_(False)
        network.scene.requires_grad_(False)
    return network


def write_country(root):
    """Three CSVs, a cell table and JPEG pictures whose colour tells the cell."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    CellTable.from_dict(make_geography()["cells"]).write_csv(root / "cell_metadata.csv", NAMES)
    place = 0
    for split, counts in ROWS.items():
        rows = []
        for region, count in enumerate(counts):
            for i in range(count):
                cell = i % len(CELLS[region])
                lat, lon = CELLS[region][cell]
                place += 1
                angle, reach = 2.4 * place, 0.02 + 0.001 * place  # a spiral: no two places are closer than 0.1 km
                lat, lon = lat + reach * math.sin(angle), lon + reach * math.cos(angle)
                name = f"{split}_{region}_{i}.jpg"
                colour = np.array([60 + 80 * region, 40 + 50 * cell, 200 - 60 * region])[:, None, None]
                pixels = np.clip(colour + rng.normal(0, 25, (3, 40, 48)), 0, 255).astype(np.uint8)
                write_jpeg(torch.from_numpy(pixels), str(root / name))
                rows.append([f"{split}{region}{i}", name, f"{lat:.6f}", f"{lon:.6f}", NAMES[region], region])
        with open(root / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["id", "image", "latitude", "longitude", "province", "province_id"], *rows])
    return root


def make_data(root, **options):
    defaults = {
        "loader": {"batch_size": 12, "batches_per_epoch": 3},
        "image": {"px": 32},
        "cache_dir": str(root / "cache"),
    }
    return GeolocationDataModule(str(root), **(defaults | options))


def make_module(clip=None, scene=None, seed=0, **options):
    torch.manual_seed(seed)
    network = {"clip": CLIP | (clip or {}), "scene": SCENE | (scene or {}), "image_px": 32}
    optimizer = GroupedOptimizer(partial(torch.optim.AdamW, weight_decay=1e-5), GROUPS, prefix="network")
    return GeolocationModule(network=network, optimizer=optimizer, **options)


class FrozenEncoders(Callback):
    """Phase 1's state of the encoders."""

    def on_fit_start(self, trainer, pl_module):
        pl_module.network.clip.requires_grad_(False)
        pl_module.network.scene.requires_grad_(False)


def make_trainer(*callbacks, frozen=True, **options):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=[*callbacks, *([FrozenEncoders()] if frozen else [])], **(defaults | options))


@pytest.fixture(scope="session")
def tiny():
    """The constructors above."""
    return SimpleNamespace(
        CLIP=CLIP,
        SCENE=SCENE,
        NAMES=NAMES,
        geography=make_geography,
        network=make_network,
        country=write_country,
        data=make_data,
        module=make_module,
        trainer=make_trainer,
    )


@pytest.fixture(scope="session")
def country(tmp_path_factory):
    """Folder with the small country; read only."""
    return write_country(tmp_path_factory.mktemp("country"))


@pytest.fixture(scope="session")
def data(country):
    """The data module of the small country after ``setup``; read only."""
    module = make_data(country)
    module.setup("fit")
    return module


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small lose time to threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """The same figures on machines with and without fast bf16."""
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: False)


@pytest.fixture(scope="session")
def batch():
    """A batch of random pictures with true cells, as the module sees it."""
    generator = torch.Generator().manual_seed(3)
    cells = make_geography()["cells"]
    cell = torch.arange(9)
    centre = torch.tensor(cells["centre_deg"])
    return {
        "image": torch.rand(9, 3, 32, 32, generator=generator),
        "label": torch.tensor(cells["region"])[cell],
        "cell": cell,
        "lat_lon_deg": centre[cell] + 0.05 * torch.randn(9, 2, generator=generator),
        "sample_id": torch.arange(9),
    }


@pytest.fixture(scope="session")
def network():
    """A network with frozen encoders, in eval mode; tests must not change it."""
    return make_network().eval()


@pytest.fixture(scope="session")
def pictures(country, tmp_path_factory):
    """A folder of pictures that outlives the data set."""
    folder = tmp_path_factory.mktemp("pictures")
    names = ["test_0_0.jpg", "test_1_1.jpg", "test_2_0.jpg"]
    for name in names:
        (folder / name).write_bytes((country / name).read_bytes())
    return [folder / name for name in names]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, pictures):
    """One epoch with retrieval on encoders from files, saved; then the data and the files are deleted."""
    folder = tmp_path_factory.mktemp("fitted")
    root = write_country(folder / "data")
    torch.manual_seed(7)
    options = {k: v for k, v in CLIP.items() if k not in ("name", "pretrained")}
    whole = open_clip.create_model("ViT-B-16", None, force_image_size=32, **options)
    torch.save(whole.state_dict(), folder / "clip.pt")
    scene = encoders.scene_encoder(**SCENE)
    torch.save(scene.state_dict(), folder / "scene.pt")
    module = make_module(
        {"pretrained": str(folder / "clip.pt")},
        {"weights": str(folder / "scene.pt")},
        decode={"retrieval": {"neighbours": 2, "sharpness": 20.0, "reach": 1.0}},
    )
    module.provenance = {"datamodule": {"root": str(root)}, "experiment": "phase0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half_precision, "runs_bf16_faster", lambda device: False)
        trainer = make_trainer()
        trainer.fit(module, datamodule=make_data(root))
        trainer.save_checkpoint(folder / "phase0.ckpt")
        answers = module.predict_images(pictures)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    calibration = dict(module.calibration)
    shutil.rmtree(root)
    (folder / "clip.pt").unlink()
    (folder / "scene.pt").unlink()
    return SimpleNamespace(
        path=folder / "phase0.ckpt",
        answers=answers,
        metrics=metrics,
        weights=weights,
        calibration=calibration,
        encoders=(whole.visual.state_dict(), scene.state_dict()),
    )
