"""A staged run with everything that could go wrong on a resume, and what it leaves behind for a comparison."""

import hashlib
import json
import random
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics import MeanMetric

from stagewise.callbacks import (
    BestMedianCheckpoint,
    DurableCheckpointIO,
    ExactResume,
    LossRamp,
    MetricRedFlags,
    StagedUnfreezing,
)
from stagewise.datamodules import ResumableDataLoader
from stagewise.lightning_modules.optim import GroupedOptimizer

sys.path.insert(0, str(Path(__file__).parent))
import tiny

STAGES = {
    "heads": {"open": ["heads"], "epochs": 2},
    "plateau": {"open": {"body": {"last": 0.5}}, "patience": 2},
    "last": {"open": ["body"], "epochs": 2},  # no gain: rolled back
}
SCORES = [6, 5, 6, 6, 4, 7, 8, 9]  # two evaluations an epoch
GROUPS = {
    "heads": {"modules": ["head"], "lr": 0.05},
    "body": {"modules": ["backbone"], "lr": 0.02, "layer_decay": 0.8},
}
RAMP = {"offset": {"start": 0.2, "end": 1.0, "steps": 6, "after": "stage:plateau"}}


class Noisy(Dataset):
    """Samples that draw from all three global generators."""

    def __init__(self, samples=64):
        self.inputs = torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        noise = torch.rand(4) + float(np.random.rand()) + random.random()
        return self.inputs[row] + 0.1 * noise, row % 3


class ExactModule(tiny.TinyModule):
    """Drops out, weighs a second loss, and keeps a metric over the epoch."""

    def __init__(self, compiled=None):
        schedule = {"shape": "cosine", "warmup_steps": 2, "clock": "group"}
        factory = partial(torch.optim.AdamW, weight_decay=0.1)
        super().__init__(scores=SCORES, optimizer=GroupedOptimizer(factory, GROUPS, schedule, prefix="network"))
        self.train_mean = MeanMetric()
        if compiled:
            self.compile(backend=compiled)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        logits = self(F.dropout(inputs, 0.3))
        loss = F.cross_entropy(logits, labels) + self.loss_weights["offset"] * logits.square().mean()
        self.train_mean.update(loss.detach().float())
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return loss

    def on_train_epoch_end(self):
        self.log("train/mean", self.train_mean.compute())
        self.train_mean.reset()


class Journal(Callback):
    """One line a batch: position, batch, trainable set, learning rates, ramp; one an epoch: what was logged."""

    def __init__(self):
        self.lines = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        trainable = [name for name, p in pl_module.named_parameters() if p.requires_grad]
        self.lines[f"{trainer.current_epoch}/{batch_idx}"] = [
            digest(batch[0]),
            digest_of(",".join(trainable)),
            [group["lr"] for group in groups],
            pl_module.loss_weights["offset"],
            trainer.global_step,
            torch.rand(1).item(),
        ]

    def on_train_end(self, trainer, pl_module):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.lines["end"] = [logged, trainer.current_epoch, trainer.global_step]


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest(tensor):
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


def fit(folder, *extra, every_n_steps=1, io=None, workers=0, compiled=None, ema=False, stages=STAGES, **options):
    """Starts the run or goes on with it; returns what a comparison needs, as plain values."""
    seed_everything(7, verbose=False)
    module, journal = ExactModule(compiled), Journal()
    callbacks = [ExactResume(str(folder), every_n_steps)]
    if stages:
        callbacks += [StagedUnfreezing(stages, "val/score", dirpath=str(folder)), LossRamp(RAMP)]
    callbacks += [
        MetricRedFlags({"loss": {"metric": "train/mean", "above": 1e6}}),
        BestMedianCheckpoint(str(folder), "run", "val/score", every_epoch=False),
        journal,
        *extra,
        *([EMAWeightAveraging(decay=0.9)] if ema else []),
    ]
    defaults = {"max_epochs": 7, "val_check_interval": 0.5, "plugins": [io or DurableCheckpointIO()]}
    trainer = tiny.make_trainer(folder, callbacks, **{**defaults, **options})
    per_rank = 8 // trainer.world_size
    loader = ResumableDataLoader(Noisy(), batch_size=2 * per_rank, shuffle=True, seed=3, num_workers=workers)
    trainer.fit(module, loader, tiny.loader(), ckpt_path=ExactResume.find(folder), weights_only=True)
    report = Path(folder) / "stages" / "stages.json"
    return {
        "weights": {name: digest(value) for name, value in module.state_dict().items()},
        "journal": journal.lines,
        "stages": json.loads(report.read_text()) if report.exists() else None,
        "best": next(cb.best_score for cb in callbacks if isinstance(cb, BestMedianCheckpoint)),
    }


class Archive(DurableCheckpointIO):
    """Copies the run's folder after each save of ``resume.ckpt``: what the disk of a run killed there looks like."""

    def __init__(self, target):
        super().__init__()
        self.target, self.count = Path(target), 0

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        if str(path).endswith("resume.ckpt"):
            shutil.copytree(Path(path).parent, self.target / f"{self.count:03d}")
            self.count += 1


def describe(folder):
    """Where a saved run stands: ``(stage, moment)`` in the words of the acceptance matrix."""
    saved = torch.load(Path(folder) / "resume.ckpt", weights_only=True)
    stages = saved["callbacks"].get("StagedUnfreezing", {"finished": False, "index": 0})
    epochs, batch = (
        saved["loops"]["fit_loop"]["epoch_progress"],
        saved["loops"]["fit_loop"]["epoch_loop.batch_progress"],
    )
    if epochs["current"]["processed"] == epochs["current"]["ready"]:
        moment = "epoch end"
    elif batch["current"]["completed"] == batch["current"]["ready"]:
        moment = "after validation"
    else:
        moment = "batch 0" if batch["current"]["ready"] == 1 else "mid-epoch"
    return "finished" if stages["finished"] else list(STAGES)[stages["index"]], moment


def differences(whole, again):
    """What a resumed run did otherwise; the journal may only lack what came before the resume."""
    wrong = [key for key in ("weights", "stages", "best") if whole[key] != again[key]]
    wrong += [line for line, seen in again["journal"].items() if whole["journal"][line] != seen]
    positions = list(whole["journal"])
    if again["journal"]:
        expected = positions[positions.index(next(iter(again["journal"]))) :]
        wrong += [f"missing {line}" for line in expected if line not in again["journal"]]
    return wrong
