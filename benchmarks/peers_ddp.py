"""Run twice at once by ``peers_callbacks.py``, one process a rank: ``peers_ddp.py SCENARIO FOLDER [--quick]``.

Rank 0 prints a line of JSON for each contestant: what it is, how it was set, and what both ranks observed together.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from peers_scenarios import (
    CONTESTANTS,
    FTS,
    LIGHTNING,
    OURS,
    Tiny,
    attempt,
    best_file,
    loader,
    quiet,
    thawing,
    trainer_of,
)
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchmetrics import CatMetric

from stagewise.datamodules import GroupBalancedBatchSampler
from stagewise.lightning_modules import Quantile

RANKS = 2
GROUPS, SAMPLES, BATCH, BATCHES = 4, 400, 8, 20
SHARE = (0.85, 0.08, 0.05, 0.02)
Row = tuple[str, str, Callable[[], dict[str, Any]]]


def two_ranks(folder: Path, callbacks: list[Callback], epochs: int, strategy: str = "ddp", **options: Any) -> Trainer:
    """By its name, since finetuning-scheduler refuses a `DDPStrategy` object; on a CPU it takes gloo."""
    return trainer_of(str(folder), callbacks, epochs, devices=RANKS, strategy=strategy, **options)


def gather(value: Any) -> list[Any]:
    """The value of every rank, in order."""
    every: list[Any] = [None] * RANKS
    dist.all_gather_object(every, value)
    return every


class RankDifference(Callback):
    """The largest difference between the ranks over all weights, after each epoch."""

    def __init__(self) -> None:
        self.differences: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares."""
        first, second = gather(torch.cat([value.detach().flatten() for value in pl_module.parameters()]))
        self.differences.append(float((first - second).abs().max()))


def thaw(folder: Path, quick: bool) -> Iterator[Row]:
    """Freezes the backbone for an epoch and thaws it; the ranks see different halves of the data."""
    for contestant in CONTESTANTS:
        yield contestant, "ddp", partial(drift, contestant, folder / contestant)
    for contestant in () if quick else (LIGHTNING, FTS):
        strategy, place = "ddp_find_unused_parameters_true", folder / f"{contestant}-unused"
        yield contestant, strategy, partial(drift, contestant, place, strategy)
    yield FTS, "ddp, restore_best=True", partial(drift, FTS, folder / "best", restore_best=True)


def drift(contestant: str, folder: Path, strategy: str = "ddp", restore_best: bool = False) -> dict[str, Any]:
    """Two epochs after the thaw."""
    measure = RankDifference()
    callbacks = thawing(contestant, str(folder), thaw=1, epochs=3, restore_best=restore_best)
    if restore_best:
        callbacks.append(best_file(contestant, str(folder), monitor="val_loss", save_top_k=1))
    trainer = two_ranks(folder, [*callbacks, measure], 3, strategy)
    trainer.fit(Tiny(contestant), loader(), loader(seed=2))
    return {f"epoch {epoch}": difference for epoch, difference in enumerate(measure.differences)}


class Errors(LightningModule):
    """Knows the error of each sample, and measures the median in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.everything, self.quantile = CatMetric(), Quantile(q=0.5)
        self.found: dict[str, float] = {}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Adds a batch."""
        errors, ids = batch
        self.log("median", errors.median(), sync_dist=True, batch_size=len(errors))
        self.everything.update(errors)
        self.quantile.update(errors, sample_ids=ids)

    def on_validation_epoch_end(self) -> None:
        """Asks the metrics."""
        self.found["torchmetrics"] = float(self.everything.compute().quantile(0.5))
        self.found[OURS] = float(self.quantile.compute())


def median(folder: Path, quick: bool) -> Iterator[Row]:
    """An odd number of samples, every other one far off, so that one rank has the small errors; padded to be even."""
    errors = torch.arange(21).float().add(1).square()
    errors[1::2] *= 50
    module, trainer = Errors(), two_ranks(folder, [], epochs=1)
    trainer.validate(module, DataLoader(TensorDataset(errors, torch.arange(21)), batch_size=4), verbose=False)
    module.found["self.log"] = float(trainer.callback_metrics["median"])
    truth = float(errors.quantile(0.5))
    for name, setting in (
        ("self.log", "median of each batch, sync_dist=True"),
        ("torchmetrics", "CatMetric, then torch.quantile"),
        (OURS, "Quantile"),
    ):
        yield name, setting, partial(dict, {"measured": module.found[name], "true median": truth})


class Indices(Dataset[int]):
    """Gives back the index."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        return index


class Seen(LightningModule):
    """Writes down the batches of each epoch."""

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.make = make
        self.epochs: list[list[list[int]]] = []

    def train_dataloader(self) -> Any:
        """The loader, unless `fit` was given one."""
        return self.make() if self.make else None

    def on_train_epoch_start(self) -> None:
        """Begins a list."""
        self.epochs.append([])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Notes the indices."""
        self.epochs[-1].append(batch.tolist())
        return self.weight.square().sum()

    def configure_optimizers(self) -> Any:
        """Any optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(folder: Path, quick: bool) -> Iterator[Row]:
    """Two of each of four groups are wanted in every batch of eight on every rank."""
    group = torch.searchsorted(torch.tensor(SHARE).cumsum(0)[:-1], torch.arange(SAMPLES) / SAMPLES, right=True)
    drawn, each = RANKS * BATCH * BATCHES, BATCH // GROUPS
    weights, quotas = 1.0 / group.bincount()[group], dict.fromkeys(range(GROUPS), RANKS * each)
    made: dict[str, Callable[[], Any]] = {
        "WeightedRandomSampler": lambda: sampled(WeightedRandomSampler(weights, drawn)),
        "MPerClassSampler": lambda: sampled(MPerClassSampler(group, each, BATCH, drawn)),
        OURS: lambda: DataLoader(
            Indices(), batch_sampler=GroupBalancedBatchSampler(group.numpy(), quotas, batches_per_epoch=BATCHES)
        ),
    }
    for name, make in made.items():
        yield name, "loader given to fit", partial(mix, folder, Seen(), make, group)
        alone = {"use_distributed_sampler": False}
        yield name, "use_distributed_sampler=False", partial(mix, folder, Seen(), make, group, **alone)
        if name == OURS:
            yield name, "loader from train_dataloader", partial(mix, folder, Seen(make), None, group)
        else:
            own = partial(mix, folder, Seen(), make, group, rank_seed=True, **alone)
            yield name, "use_distributed_sampler=False, other seeds", own


def sampled(sampler: Any) -> DataLoader[int]:
    return DataLoader(Indices(), batch_size=BATCH, sampler=sampler)


def mix(
    folder: Path,
    module: Seen,
    make: Callable[[], Any] | None,
    group: Tensor,
    rank_seed: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Trains two epochs and counts; both ranks have the same seed, as after ``seed_everything``, or each its own."""
    seed_everything(int(os.environ["LOCAL_RANK"]) if rank_seed else 0, verbose=False)
    trainer = two_ranks(folder, [], epochs=2, **options)
    trainer.fit(module, make() if make else None)
    return counted(gather(module.epochs), group)


def counted(ranks: list[list[list[list[int]]]], group: Tensor) -> dict[str, Any]:
    """From the indices by rank, epoch and batch."""
    figures: dict[str, Any] = {}
    for rank, epochs in enumerate(ranks):
        flat = [batch for epoch in epochs for batch in epoch]
        counts = torch.stack([group[torch.tensor(batch)].bincount(minlength=GROUPS) for batch in flat])
        low, high = counts.min(0).values.tolist(), counts.max(0).values.tolist()
        figures[f"rank {rank}"] = " ".join(f"{a}-{b}" for a, b in zip(low, high))
    shared = [sorted(first) == sorted(second) for first, second in zip(ranks[0][0], ranks[1][0])]
    repeated = [first == second for epochs in ranks for first, second in zip(*epochs)]
    return {
        **figures,
        "batches in an epoch": " and ".join(str(len(epochs[0])) for epochs in ranks),
        "same batch on both ranks": f"{sum(shared)} of {len(shared)}",
        "same batch in epoch 2": f"{sum(repeated)} of {len(repeated)}",
    }


def main() -> None:
    quiet()
    torch.set_num_threads(1)
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    scenarios = {"thaw": thaw, "median": median, "batches": batches}
    for contestant, setting, call in scenarios[scenario](folder, "--quick" in sys.argv):
        row = {"contestant": contestant, "setting": setting, "observed": attempt(call)}
        if not dist.is_initialized() or dist.get_rank() == 0:
            print("ROW " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
