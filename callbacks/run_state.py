"""What a run carries besides Lightning's checkpoint: random numbers, metrics in the middle of an epoch, logged values.

Metrics differ between the ranks and a checkpoint is written by one, so the state is a list with one entry a rank.
"""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

LOGGED = ("name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx", "metric_attribute")


def reseed(*key: Any) -> None:
    """Seeds Python, NumPy and torch, on all devices in use, from a key.

    >>> reseed(0, "step", 3, 7)
    >>> first = torch.rand(1)
    >>> reseed(0, "step", 3, 7)
    >>> torch.equal(first, torch.rand(1))
    True
    """
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # not torch.manual_seed: for a CUDA that is not in use it notes a stack trace each time, which takes a millisecond
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """The value of every rank, in order; a plain list of one on one device."""
    if trainer.world_size == 1:
        return [value]
    every: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(every, value)
    return every


def metrics_under_way(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What this rank has measured of the present epoch: states of metrics and sums of ``self.log``."""
    results = trainer.fit_loop.epoch_loop._results.values()
    epoch: Any = trainer.fit_loop.epoch_progress.current
    states = metric_states(module)
    if epoch.processed < epoch.ready:
        return {"metrics": states, "sums": [_sum_row(result) for result in results]}
    reset_soon = {
        result.meta.metric_attribute for result in results
    }  # by Lightning, after the hooks of the epoch's end
    return {"metrics": {name: state for name, state in states.items() if name not in reset_soon}, "sums": []}


def metric_states(module: nn.Module) -> dict[str, dict[str, Any]]:
    """States of the metrics that hold something, on the CPU.

    >>> from torchmetrics import MeanMetric
    >>> net = nn.ModuleDict({"mean": MeanMetric()})
    >>> net["mean"].update(3.0)
    >>> metric_states(net)["mean"]["updates"]
    1
    """
    return {
        name: {"updates": metric.update_count, "state": _to_cpu(metric.metric_state)}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric.update_called
    }


def restore_metrics(module: nn.Module, states: dict[str, dict[str, Any]]) -> None:
    """Gives the metrics their states back."""
    metrics = dict(module.named_modules())
    for name, saved in states.items():
        metric: Any = metrics[name]
        for key, value in saved["state"].items():
            setattr(metric, key, _to_device(value, metric.device))
        metric._update_count, metric._computed = saved["updates"], None  # torchmetrics has no public way


def _sum_row(result: Any) -> dict[str, Any]:
    """What ``self.log`` has added up under one name, and the arguments it was called with."""
    meta = result.meta
    row = {"fx": meta.fx, "reduce_fx": meta.reduce_fx.__name__, "is_tensor": result.is_tensor}
    row |= {key: getattr(meta, key) for key in LOGGED}
    row |= {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    if result.is_tensor:
        row |= {"value": _to_cpu(result.value), "weight": _to_cpu(getattr(result, "cumulated_batch_size", None))}
    return row


def restore_logged_sums(trainer: Trainer, pl_module: LightningModule, rows: list[dict[str, Any]]) -> None:
    """Goes on adding from there."""
    results, modules = trainer.fit_loop.epoch_loop._results, dict(pl_module.named_modules())
    for row in rows:
        options = {key: row[key] for key in (*LOGGED, "sync_dist", "rank_zero_only")}
        options |= {"reduce_fx": getattr(torch, row["reduce_fx"]), "sync_dist_fn": trainer.strategy.reduce}
        value = row["value"].to(pl_module.device) if row["is_tensor"] else modules[row["metric_attribute"]]
        results.log(row["fx"], options.pop("name"), value, batch_size=1, **options)
        result = results[f"{row['fx']}.{row['name']}"]
        if row["is_tensor"]:
            result.value = value
        if row.get("weight") is not None:
            result.cumulated_batch_size = row["weight"].to(pl_module.device)
    if rows:
        trainer._logger_connector._first_loop_iter = False  # the first batch of an epoch would reset the sums


def leave_ended_epoch(trainer: Trainer) -> None:
    """Begins the next epoch where the checkpoint was taken at the end of one.

    With ``max_steps`` Lightning takes such a run for one in the middle of the epoch: it would call the hooks of its end
    once more and count it twice.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
            part._restarting = False  # the property's setter keeps it true with max_steps


def is_ending(trainer: Trainer) -> bool:
    """Whether no epoch follows the one that ends, so that ``on_train_end`` comes next."""
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return bool(stops or 0 <= epochs <= trainer.current_epoch + 1 or 0 <= steps <= trainer.global_step)


def logged_values(trainer: Trainer) -> dict[str, float]:
    """The metrics that callbacks see."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def restore_logged_values(trainer: Trainer, values: dict[str, float]) -> None:
    """Shows them again, so that a metric is there at the first look after a resume."""
    trainer._logger_connector._callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def _to_cpu(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_cpu(item) for item in value]
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to_device(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value
