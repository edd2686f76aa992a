"""A model small enough to train in milliseconds, whose score at each evaluation is dictated by the test."""

from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import ConfusionMatrix

from stagewise.lightning_modules.optim import GroupedOptimizer

GROUPS = {
    "heads": {"modules": ["head"], "lr": 0.05},
    "body": {"modules": ["backbone"], "lr": 0.02},
}
TWO_STAGES = {"heads": {"open": ["heads"], "epochs": 2}, "all": {"open": ["body"], "epochs": 2}}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
        )
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.backbone(inputs).relu())


class TinyModule(LightningModule):
    """Logs ``val/score`` from ``scores``, one an evaluation (the last one goes on), the sanity check apart."""

    class_names = ("common", "rare", "rarest")

    def __init__(self, scores=(), start=None, optimizer=None, matrices=()):
        super().__init__()
        torch.manual_seed(0)
        self.network = Network()
        self.optimizer = optimizer or GroupedOptimizer(
            partial(torch.optim.AdamW, weight_decay=0.1), GROUPS, prefix="network"
        )
        self.loss_weights = {"offset": 1.0}
        self.val_confusion = ConfusionMatrix(task="multiclass", num_classes=3)
        self.scores, self.start, self.matrices = list(scores), start, list(matrices)
        self.evaluation = 0
        self.seen_offsets = []

    def forward(self, inputs):
        return self.network(inputs)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def on_validation_epoch_start(self):
        self.val_confusion.reset()

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        self.val_confusion.update(self(inputs).argmax(1), labels)
        self.seen_offsets.append(self.loss_weights["offset"])

    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking:
            if self.start is not None:
                self.log("val/score", self.start)
            return
        if self.scores:
            self.log("val/score", float(self.scores[min(self.evaluation, len(self.scores) - 1)]))
        self.evaluation += 1

    def on_save_checkpoint(self, checkpoint):
        checkpoint["evaluation"] = self.evaluation

    def on_load_checkpoint(self, checkpoint):
        self.evaluation = checkpoint["evaluation"]

    def configure_optimizers(self):
        return self.optimizer(self)


class Snapshots(Callback):
    """Weights after each evaluation and before each training batch."""

    def __init__(self):
        self.evaluations, self.lrs, self.trainable = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        self.lrs.append({group["name"]: group["lr"] for group in groups})
        self.trainable.append({name for name, p in pl_module.named_parameters() if p.requires_grad})

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.evaluations.append(weights(pl_module))


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(first, second, names=None):
    names = names or first.keys()
    return all(torch.equal(first[name], second[name]) for name in names)


def loader(samples=32, batch_size=8):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.arange(samples) % 3), batch_size=batch_size)


def make_trainer(folder, callbacks, **kwargs):
    defaults = {
        "max_epochs": 10,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    if any(isinstance(callback, Checkpoint) for callback in callbacks):
        defaults["enable_checkpointing"] = True
    return Trainer(default_root_dir=folder, callbacks=callbacks, **{**defaults, **kwargs})


def fit(folder, module, callbacks, ckpt_path=None, **kwargs):
    trainer = make_trainer(folder, callbacks, **kwargs)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer
