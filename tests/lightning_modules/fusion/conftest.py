"""Rows with a known signal, and a small trained clinic that several tests read."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from stagewise.datamodules import GeneratedFusionDataModule
from stagewise.datamodules.fusion.table import FusionTable
from stagewise.lightning_modules import FusionModule, GroupedOptimizer

CLASSES = ["inflammatory", "proliferative", "remodeling"]
SCHEMA = {
    "classes": CLASSES,
    "class_count": [10, 20, 10],
    "image": {"px": 32, "channels": 1, "colormap": None, "margin": 0.1, "bits": 8},
    "fold": 0,
}
BRANCH = {"name": "test_resnet", "pretrained": False}


def make_table(rows=120, seed=0, patients=40, signal=1.0):
    """Each patient has a level of its own, so that a forest that saw the patient knows more than it should."""
    rng = np.random.default_rng(seed)
    group = np.arange(rows) % patients
    label = rng.integers(0, 3, rows)
    age = signal * label + rng.normal(size=rows) + 3 * rng.normal(size=patients)[group]
    size = np.where(rng.random(rows) < 0.1, np.nan, label * signal + rng.normal(size=rows))
    kind = np.where(rng.random(rows) < 0.5, "venous", "diabetic").astype("U12")
    kind[:4] = ["Diabetic ", "diabteic", "VENOUS", ""]
    return FusionTable.of(
        [f"r{i}" for i in range(rows)],
        [f"p{i:03d}" for i in group],
        label,
        classes=CLASSES,
        numbers={"age": age, "size": size},
        categories={"kind": kind},
    )


@pytest.fixture
def table():
    return make_table()


@pytest.fixture
def schema():
    return SCHEMA


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    """Runs on one small generated clinic: ``data()``, ``module(**)``, ``train(module)`` -> its best checkpoint."""
    folder = tmp_path_factory.mktemp("clinic")

    def data(**options):
        given = {"root": str(folder / "data"), "patients": 40, "px": 48}
        image = {"px": 32, "channels": 1, "colormap": "inferno"}
        settings = {"files": {"table": "metadata.csv", "boxes": "boxes.csv"}, "image": image, **options}
        loader, cache = {"batch_size": 16, "num_workers": 0}, str(folder / "cache")
        return GeneratedFusionDataModule(
            given["root"], given, classes=CLASSES, loader=loader, cache_dir=cache, **settings
        )

    def module(**options):
        torch.manual_seed(0)
        groups = {"image": {"modules": ["picture"], "lr": 1e-3}}
        if options.get("rule", {}).get("kind") == "concat":
            groups["head"] = {"modules": ["rule"], "lr": 1e-3}
        optimizer = GroupedOptimizer(partial(torch.optim.AdamW), groups, prefix="network")
        forest = {"trees": 15, "cache_dir": str(folder / "cache"), **options.pop("forest", {})}
        own = {"branch": BRANCH, "evaluation": {"draws": 50}, **options}
        return FusionModule(forest=forest, optimizer=optimizer, **own)

    def train(module, name, epochs=1, **options):
        best = ModelCheckpoint(folder / name, "best", "val/kappa", mode="max", enable_version_counter=False)
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[best],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=-1,
            default_root_dir=folder,
        )
        source = data(**options)
        trainer.fit(module, datamodule=source)
        return SimpleNamespace(path=best.best_model_path, trainer=trainer, data=source, folder=folder / name)

    return SimpleNamespace(data=data, module=module, train=train, folder=folder)


@pytest.fixture(scope="session")
def image_run(clinic):
    return clinic.train(clinic.module(modality="image"), "image")


@pytest.fixture(scope="session")
def fusion_run(clinic, image_run):
    module = clinic.module(image_from=image_run.path)
    run = clinic.train(module, "fusion")
    module.finish(run.trainer, run.data, run.path, str(run.folder))
    return SimpleNamespace(**vars(run), module=module)
