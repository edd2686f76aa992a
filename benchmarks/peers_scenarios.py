"""The model, the contestants and the single-process scenarios of ``peers_callbacks.py``.

Every contestant trains the same module with the same learning rates, each the way its documentation shows: Lightning
and finetuning-scheduler with an optimizer over the trainable parameters, stagewise with named groups.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stagewise.callbacks import StagedUnfreezing
from stagewise.lightning_modules import GroupedOptimizer

LIGHTNING, FTS, OURS = "BackboneFinetuning", "finetuning-scheduler", "stagewise"
CONTESTANTS = (LIGHTNING, FTS, OURS)
BATCH, BATCHES, WIDTH = 8, 8, 8
LR = {"head": 0.01, "bottom": 0.01, "top": 0.01}
DAMAGE = 3.0  # a learning rate that makes the score worse


class Tiny(LightningModule):
    """A backbone of two halves and two heads, biases zero and norms one at first.

    Args:
        contestant: whose optimizer it gets.
        lr: of head, bottom and top (of the backbone).
        aux_from: the loss of the second head has weight 0 before this epoch, as in a loss ramp.
    """

    def __init__(self, contestant: str, lr: dict[str, float] | None = None, aux_from: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        bottom = nn.Sequential(nn.Linear(4, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.Tanh())
        top = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh())
        self.backbone = nn.Sequential(bottom, top)
        self.head = nn.Linear(WIDTH, 3)
        self.aux = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.contestant, self.lr, self.aux_from = contestant, lr or LR, aux_from

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Both heads."""
        features = self.backbone(batch[0])
        weight = float(self.current_epoch >= self.aux_from)
        return F.cross_entropy(self.head(features), batch[1]) + weight * F.cross_entropy(self.aux(features), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """The first head's loss."""
        loss = F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("val_loss", loss, sync_dist=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        """The contestant's own."""
        if self.contestant != OURS:
            return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=self.lr["head"])
        modules = {"head": ["head", "aux"], "bottom": ["backbone.0"], "top": ["backbone.1"]}
        groups = {name: {"modules": paths, "lr": self.lr[name]} for name, paths in modules.items()}
        return GroupedOptimizer(partial(torch.optim.Adam), groups)(self)


def quiet() -> None:
    """Silences what everyone says about itself; exceptions are shown in the table."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "finetuning_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)


def attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the call observed, or the type and first line of its exception."""
    try:
        return call()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}


def data(distinct: bool = True, seed: int = 1) -> Dataset[Any]:
    """Eight batches of a task that can be learned; the same one eight times unless ``distinct``."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCH * BATCHES, 4, generator=generator)
    inputs = inputs if distinct else inputs[:BATCH].repeat(BATCHES, 1)
    truth = torch.randn(4, 3, generator=torch.Generator().manual_seed(7))
    return TensorDataset(inputs, (inputs @ truth).argmax(1))


def loader(distinct: bool = True, seed: int = 1) -> DataLoader[Any]:
    """The data in their order."""
    return DataLoader(data(distinct, seed), batch_size=BATCH)


def thawing(contestant: str, folder: str, thaw: int, epochs: int, **fts: Any) -> list[Callback]:
    """The contestant's callbacks that freeze the backbone and thaw all of it at an epoch."""
    if contestant == LIGHTNING:
        rate = {"backbone_initial_lr": LR["top"], "should_align": False}
        return [BackboneFinetuning(thaw, lambda_func=lambda epoch: 1.0, **rate)]
    if contestant == FTS:
        phases = {0: {"params": ["head.*", "aux.*"], "max_transition_epoch": thaw}}
        phases[1] = {"params": ["backbone.*"], "max_transition_epoch": epochs}
        return [scheduler(phases, folder, epoch_transitions_only=True, **fts)]
    if contestant == OURS:
        stages = {"heads": {"open": ["head"], "epochs": thaw}, "all": {"open": ["bottom", "top"]}}
        return [StagedUnfreezing(stages, "val_loss", on_no_gain="keep", at_end="last", dirpath=folder)]
    return []


def scheduler(phases: dict[int, dict[str, Any]], folder: str, **options: Any) -> FinetuningScheduler:
    """A quiet FinetuningScheduler; its epoch -1 leaves the end of a phase to early stopping."""
    phases = {depth: {"lr": LR["top"], "max_transition_epoch": -1, **phase} for depth, phase in phases.items()}
    return FinetuningScheduler(phases, logging_level=logging.ERROR, log_dir=folder, **options)


def trainer_of(folder: str, callbacks: Sequence[Callback], epochs: int, **options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"devices": 1, "num_sanity_val_steps": 0, **quiet, **options}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), max_epochs=epochs, **options)


def best_file(contestant: str, folder: str, **options: Any) -> ModelCheckpoint:
    """The contestant's checkpoint callback."""
    return (FTSCheckpoint if contestant == FTS else ModelCheckpoint)(folder, **options)


class Watch(Callback):
    """Looks before the first batch of every epoch; the callbacks have done their part by then."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.trainable: list[set[str]] = []
        self.scores: list[float] = []
        self.seen: list[float] = []
        self.train_eval_gap: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Looks."""
        if batch_idx == 0:
            self.weights.append(copy.deepcopy(pl_module.state_dict()))
            self.trainable.append({name for name, value in pl_module.named_parameters() if value.requires_grad})
            self.scores.append(score(pl_module))
            self.train_eval_gap.append(train_eval_gap(pl_module.backbone, batch[0]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the score."""
        self.seen.append(float(trainer.callback_metrics["val_loss"]))


def score(module: Any) -> float:
    """Loss of the module's weights on the validation data, whatever mode it is in."""
    inputs, labels = loader(seed=2).dataset[:]
    with torch.no_grad():
        return float(F.cross_entropy(copy.deepcopy(nn.Sequential(module.backbone, module.head)).eval()(inputs), labels))


def train_eval_gap(backbone: nn.Module, inputs: Tensor) -> float:
    """How far what the backbone gives as it stands is from what it gives in eval mode."""
    with torch.no_grad():
        return float((copy.deepcopy(backbone)(inputs) - copy.deepcopy(backbone).eval()(inputs)).abs().max())


def largest_change(first: dict[str, Tensor], second: dict[str, Tensor], part: str = "") -> float:
    """Over all entries whose name has ``part`` in it."""
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first if part in k)


def thawed_parameters(contestant: str, folder: str, aux_from: int) -> dict[str, Any]:
    """Thaws after one epoch and trains two: what of the backbone is in the optimizer, what moved?"""
    module, watch = Tiny(contestant, aux_from=aux_from), Watch()
    callbacks = thawing(contestant, folder, thaw=1, epochs=3, restore_best=False)
    trainer = trainer_of(folder, [*callbacks, watch], epochs=3)
    trainer.fit(module, loader(), loader(seed=2))
    known = {id(value) for group in trainer.optimizers[0].param_groups for value in group["params"]}
    names = [f"backbone.{name}" for name, _ in module.backbone.named_parameters()]
    now, thaw = dict(module.named_parameters()), watch.weights[1]
    return {
        "thawed": sum(now[name].requires_grad for name in names),
        "in the optimizer": sum(id(now[name]) in known for name in names),
        "moved": sum(not torch.equal(now[name], thaw[name]) for name in names),
        "not in the optimizer": [name for name in names if id(now[name]) not in known],
    }


def frozen_batchnorm(contestant: str, folder: str, **fts: Any) -> dict[str, Any]:
    """Trains the heads for an epoch: what moves in the frozen backbone?"""
    module, watch = Tiny(contestant), Watch()
    callbacks = thawing(contestant, folder, thaw=2, epochs=3, restore_best=False, **fts)
    trainer_of(folder, [*callbacks, watch], epochs=3).fit(module, loader(), loader(seed=2))
    before, after = watch.weights[:2]
    return {
        "running statistics": largest_change(before, after, "backbone.0.1.running"),
        "norm's weight and bias": max(largest_change(before, after, f"backbone.0.1.{n}") for n in ("weight", "bias")),
        "features, train against eval mode": watch.train_eval_gap[1],
    }


def undone_stages(contestant: str, folder: str) -> dict[str, Any]:
    """Three good epochs of the heads, then stages whose learning rate does harm: what is the module left with?"""
    module, watch = Tiny(contestant, {"head": LR["head"], "bottom": DAMAGE, "top": DAMAGE}), Watch()
    trainer = trainer_of(folder, [*_harmful(contestant, folder), watch], epochs=20)
    trainer.fit(module, loader(), loader(seed=2))
    best, top = min(watch.seen), "backbone.1.0.weight"
    third = next((n for n, names in enumerate(watch.trainable) if top in names), None)
    figures = {"best seen": best, "worst seen": max(watch.seen)}
    if third is not None and contestant != LIGHTNING:
        figures["at the start of the last stage"] = watch.scores[third]
    return {**figures, "the module's weights in the end": score(module), "epochs": len(watch.seen)}


def _harmful(contestant: str, folder: str) -> list[Callback]:
    """Heads for three epochs, then the bottom, then the top, one evaluation of patience each."""
    keep_best = best_file(contestant, str(Path(folder) / "best"), monitor="val_loss", save_top_k=1)
    if contestant == LIGHTNING:
        backbone = BackboneFinetuning(3, lambda_func=lambda epoch: 1.0, backbone_initial_lr=DAMAGE, should_align=False)
        return [backbone, EarlyStopping("val_loss", patience=1), keep_best]
    if contestant == FTS:
        bad = {"lr": DAMAGE}
        phases = {0: {"params": ["head.*", "aux.*"], "max_transition_epoch": 3}}
        phases |= {1: {"params": ["backbone.0.*"], **bad}, 2: {"params": ["backbone.1.*"], **bad}}
        return [scheduler(phases, folder), FTSEarlyStopping("val_loss", patience=1), keep_best]
    stages = {"heads": {"open": ["head"], "epochs": 3}}
    stages |= {name: {"open": [name], "patience": 1} for name in ("bottom", "top")}
    return [StagedUnfreezing(stages, "val_loss", dirpath=folder)]
