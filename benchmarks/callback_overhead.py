"""What do all callbacks together add to a training step?

    python benchmarks/callback_overhead.py        # --pairs N, --steps N, --threads N, --quick

Two fits of the same network on the same batches in turn, A B A B: A with StagedUnfreezing, LossRamp,
RareClassCollapseStopping, MetricRedFlags, BestMedianCheckpoint, ExactResume and ResumableDataLoader; B, the peer, with
lightning.Trainer alone and torch's DataLoader. The ratio is taken pair by pair. Beside it stands the time that A spends
inside the hooks of our callbacks, a step, which does not depend on the network, and what one save of ExactResume costs,
which does; a save is not part of the step's ratio (`every_n_steps` says how often it falls due).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import lightning as L
import timm
import torch
from timing import parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import ConfusionMatrix

from stagewise.callbacks import (
    BestMedianCheckpoint,
    ExactResume,
    LossRamp,
    MetricRedFlags,
    RareClassCollapseStopping,
    StagedUnfreezing,
)
from stagewise.datamodules import ResumableDataLoader
from stagewise.lightning_modules import GroupedOptimizer

BAR, BATCH, WARM_UP = 1.01, 16, 10
GROUPS = {
    "heads": {"modules": ["fc"], "lr": 1e-3},
    "body": {"modules": ["conv1", "bn1", "layer1", "layer2"], "lr": 1e-4},
}
GROUPS["body"]["modules"] += ["layer3", "layer4"]
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_optimizer_step")


class Classifier(L.LightningModule):
    """A residual network with the recipe's optimizer."""

    class_names = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model("resnet18", pretrained=False, num_classes=3)
        self.val_confusion = ConfusionMatrix(task="multiclass", num_classes=3)
        self.loss_weights = {"main": 1.0}
        self.optimizer = GroupedOptimizer(partial(torch.optim.AdamW, fused=True), GROUPS, prefix="network")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, weighed."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1]) * self.loss_weights["main"]

    def configure_optimizers(self) -> Any:
        """Two groups, constant rates."""
        return self.optimizer(self)


class Steps(L.Callback):
    """Time from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """The clock."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Mean of a step, the first ones left out."""
        return (self.ends[-1] - self.ends[WARM_UP]) / (len(self.ends) - 1 - WARM_UP)


def callbacks(folder: str) -> list[L.Callback]:
    """All of them, with rules that are asked and never met."""
    return [
        StagedUnfreezing({"all": {"open": ["heads", "body"]}}, "val/loss", dirpath=folder),
        LossRamp({"main": {"start": 0.5, "end": 1.0, "steps": 10**6}}),
        RareClassCollapseStopping("val_confusion", {"recall": {"floor": 0.1}}),
        MetricRedFlags({"rising": {"metric": "val/loss", "rising_for": 5}}),
        BestMedianCheckpoint(folder, "run", "val/loss"),
        ExactResume(folder, every_n_steps=None),
    ]


def fit(options: argparse.Namespace, ours: bool, spent: list[float] | None = None) -> Steps:
    """One epoch without an evaluation."""
    data = TensorDataset(
        torch.rand(BATCH * options.steps, 3, options.px, options.px), torch.arange(BATCH * options.steps) % 3
    )
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        every = [*(callbacks(folder) if ours else []), steps]
        for callback in every[:-1] if spent is not None else ():
            watch(callback, spent)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            callbacks=every,
            enable_checkpointing=ours,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Classifier(), (ResumableDataLoader if ours else DataLoader)(data, batch_size=BATCH, shuffle=True))
    return steps


def watch(callback: L.Callback, spent: list[float]) -> None:
    """Adds the time that the callback's hooks of a step take to ``spent``."""
    for name in HOOKS:
        setattr(callback, name, timed(getattr(callback, name), spent))


def timed(hook: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The hook with a clock around it."""

    @wraps(hook)
    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = hook(*arguments)
        spent.append(time.perf_counter() - start)
        return result

    return call


def save_seconds(options: argparse.Namespace) -> list[float]:
    """How long each of a few saves takes, the file included."""
    seconds: list[float] = []
    module = Classifier()
    with tempfile.TemporaryDirectory() as folder:
        resume = ExactResume(folder, every_n_steps=2)
        resume._save = timed(resume._save, seconds)  # type: ignore[method-assign]
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False, callbacks=[resume],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        data = TensorDataset(torch.rand(BATCH * 12, 3, options.px, options.px), torch.arange(BATCH * 12) % 3)
        trainer.fit(module, ResumableDataLoader(data, batch_size=BATCH))
    return seconds


def main() -> None:
    parser = parser_of(__doc__, pairs=15)
    parser.add_argument("--steps", type=int, default=60, help="of a fit (default: %(default)s)")
    parser.add_argument("--px", type=int, default=64, help="side of a picture (default: %(default)s)")
    options = parse(parser)
    if options.quick:
        options.pairs, options.steps = 1, WARM_UP + 6
    fit(options, True), fit(options, False)
    ours, plain = [], []
    for _ in range(options.pairs):
        ours.append(fit(options, True).seconds())
        plain.append(fit(options, False).seconds())
    spent: list[float] = []
    hooks_ms = sum((fit(options, True, spent), spent)[1]) / options.steps * 1e3
    saves, result = spread(save_seconds(options)), ratio(ours, plain)
    row = {
        "step with all callbacks, ms": show(spread(ours), "{:.2f}", 1e3),
        "step without, ms": show(spread(plain), "{:.2f}", 1e3),
        "ratio": show(result, "{:.4f}"),
        "inside our hooks, ms a step": f"{hooks_ms:.3f}",
        "share of the step": f"{hooks_ms / 1e3 / spread(plain)['median']:.2%}",
        "one save of ExactResume, ms": show(saves, "{:.0f}", 1e3),
    }
    figures = {"ratio": result, "hooks_ms_a_step": hooks_ms, "save_seconds": saves, "network": "resnet18, batch 16"}
    write("callback_overhead", options, figures, [row])
    print(verdict("step with all callbacks / without", result["median"], BAR, at_most=True))


if __name__ == "__main__":
    main()
