"""What a sweep is given beside its keys: the learning rates that it tries, and the storage of its study."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict, read_write

from stagewise.command_line import parsed

Factors = Sequence[float] | Mapping[str, float]


def sweep_rates(config: DictConfig, factors: Factors) -> None:
    """Adds the learning rates of the groups that a stage opens to what ``config`` sweeps.

    Groups of the same rate move together, under the name of the first. A rate that the command line sets stays as it is
    set there.

    Args:
        config: of the sweep; changed.
        factors: on each rate; ``{low: 0.1, high: 10}`` is all that lies between, on a log scale.

    Raises:
        ValueError: no stage opens a group with a rate, or several experiments are swept.
    """
    overrides = parsed(list(config.hydra.overrides.task))
    if any(one.key_or_group == "experiment" and one.is_sweep_override() for one in overrides):
        raise ValueError("the learning rates are those of one experiment; sweep one at a time.")
    given = {one.key_or_group for one in overrides}
    first: dict[float, str] = {}
    params, tied = dict(config.hydra.sweeper.get("params") or {}), []
    for group, rate in open_rates(config).items():
        key = f"optimizer.groups.{group}.lr"
        if key in given:
            continue
        if rate in first:
            tied.append(f"{key}=${{{first[rate]}}}")
        else:
            first[rate] = key
            params.setdefault(key, _values(rate, factors))
    if not first and not given & {f"optimizer.groups.{group}.lr" for group in config.optimizer.groups}:
        raise ValueError("no stage opens an optimizer group with a learning rate; there is nothing to sweep.")
    with open_dict(config.hydra), read_write(config.hydra):
        config.hydra.sweeper.params = params
        config.hydra.overrides.task = [*config.hydra.overrides.task, *tied]


def open_rates(config: DictConfig) -> dict[str, float]:
    """Learning rate of each optimizer group that a stage opens, in the order of the groups."""
    opened = {str(name) for stage in config.callbacks.stages.stages.values() for name in stage.open}
    groups = config.optimizer.groups
    rates = {str(name): float(groups[name].lr) for name in groups if name in opened and groups[name]}
    return {name: rate for name, rate in rates.items() if rate > 0}


def _values(rate: float, factors: Factors) -> str:
    """The override's value.

    >>> _values(1e-5, [0.3, 1, 3]), _values(1e-5, {"low": 0.1, "high": 10})
    ('3e-06,1e-05,3e-05', 'tag(log, interval(1e-06, 0.0001))')
    """
    if isinstance(factors, Mapping):
        return f"tag(log, interval({rate * factors['low']:.6g}, {rate * factors['high']:.6g}))"
    return ",".join(f"{rate * factor:.6g}" for factor in factors)


def check_storage(sweeper: Mapping[str, Any]) -> None:
    """Refuses a storage of Optuna's that cannot be written, before any run.

    Raises:
        OSError: with the storage's own reason.
    """
    url = sweeper.get("storage")
    if not isinstance(url, str):
        return
    try:
        if url.startswith("sqlite:///"):
            _probe(url.removeprefix("sqlite:///"))
        else:
            instantiate({"_target_": "optuna.storages.get_storage", "storage": url})
    except Exception as error:  # every database has errors of its own
        said = str(error).strip().split("\n")[0]
        remedy = "pass sqlite:///FILE in a folder that can be written, or null to keep the study in memory"
        raise OSError(f"cannot write hydra.sweeper.storage='{url}' ({said}); {remedy}.") from error


def _probe(path: str) -> None:
    is_new = not Path(path).exists()
    with sqlite3.connect(path, timeout=5.0) as database:
        database.execute("BEGIN IMMEDIATE")
    database.close()
    if is_new:
        Path(path).unlink(missing_ok=True)
