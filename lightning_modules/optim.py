"""One optimizer with named parameter groups that never change, and a learning rate that starts when its group opens."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .schedule import OpenedGroupSchedule, check_schedule, fit_length

ONE_D = "/1d"
GROUP_KEYS = {"modules", "lr", "weight_decay", "decay_1d", "lr_scale", "layer_decay"}


class GroupedOptimizer:
    """Builds the optimizer and its schedule from named groups of modules.

    Groups are a total, static partition of the parameters: the first group that names a parameter takes it, a tied
    parameter counts once. Each torch group carries the plain extras ``name``, ``modules`` (full module paths),
    ``blocks`` (paths of its repeated blocks, in order) and ``opened_at`` (the optimizer step at which it opened,
    ``None`` while it is closed). Frozen parameters stay where they are: their gradient is ``None``, so the optimizer
    skips them, and its state is a plain round trip.

    A path is looked up below ``prefix`` first, then from the root of the LightningModule; it takes the module or
    parameter of that name and everything below it.

    Args:
        factory: makes the optimizer from a list of parameter groups, such as ``partial(torch.optim.AdamW)``.
        groups: name -> ``modules`` (paths), ``lr``, and optionally ``weight_decay``, ``decay_1d`` (False leaves norms,
            biases and scales without weight decay, in groups named ``clip/11/1d``), ``lr_scale`` (a factor on ``lr``)
            and ``layer_decay`` (``lr * layer_decay**depth``; each block inside the group, see :func:`block_paths`,
            becomes a group of its own named ``clip/11``; the last block has depth 0, what is defined before the blocks,
            named ``clip/stem``, one more than the first block, and what is defined after them keeps the name ``clip``).
            A group that is ``None`` is left out.
        schedule: ``shape`` (constant, cosine to 0 after the last step of the fit, step), ``warmup_steps`` (linear),
            ``clock`` (group: steps since the group opened, global: steps of the fit), and for step ``at_epoch`` (an
            epoch or a list, counted by the clock) and ``factor``. ``None``: constant.
        prefix: where paths start, such as ``"network"``.

    Raises:
        ValueError: a parameter that no group takes, a group or path that takes none, an unknown key or value.

    >>> from functools import partial
    >>> import torch
    >>> model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    >>> optimizer = GroupedOptimizer(
    ...     partial(torch.optim.AdamW, weight_decay=0.01),
    ...     {"heads": {"modules": ["head"], "lr": 1e-3}, "body": {"modules": ["backbone"], "lr": 1e-5}},
    ... )
    >>> [(group["name"], group["lr"]) for group in optimizer(model)["optimizer"].param_groups]
    [('heads', 0.001), ('body', 1e-05)]
    """

    def __init__(
        self,
        factory: Callable[[list[dict[str, Any]]], Optimizer],
        groups: Mapping[str, Mapping[str, Any] | None],
        schedule: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.factory = factory
        self.groups = {name: dict(group) for name, group in groups.items() if group is not None}
        for name, group in self.groups.items():
            _check_group(name, group)
        self.schedule = check_schedule(dict(schedule or {}))
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> dict[str, Any]:
        """The answer of ``configure_optimizers``: the optimizer and its schedule, stepped with it."""
        optimizer = self.factory(self.param_groups(module))
        total_steps, steps_per_epoch = fit_length(module, self.schedule["shape"])
        scheduler = OpenedGroupSchedule(optimizer, self.schedule, total_steps, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def param_groups(self, module: nn.Module, strict: bool = True) -> list[dict[str, Any]]:
        """The groups as torch wants them.

        Args:
            module: the LightningModule, or any module whose parameters are to be divided.
            strict: refuse parameters that no group takes; ``False`` leaves them out.
        """
        names = [name for name, _ in module.named_parameters()]
        partition, unclaimed = self._partition(names)
        if unclaimed and strict:
            raise ValueError(
                f"No group takes the parameters {_shorten(unclaimed)}; name their module in `groups`, "
                f"which has {list(self.groups)} (prefix={self.prefix!r})."
            )
        return [entry for name, taken in partition.items() for entry in self._entries(module, name, taken)]

    def _partition(self, names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
        left, partition = list(names), {}
        for name in self.groups:
            paths = self._paths(name, names)
            partition[name] = [parameter for parameter in left if any(_below(parameter, path) for path in paths)]
            left = [parameter for parameter in left if parameter not in set(partition[name])]
            for path in paths:
                if not any(_below(parameter, path) for parameter in partition[name]):
                    taker = next(other for other, taken in partition.items() if any(_below(p, path) for p in taken))
                    raise ValueError(
                        f"`groups.{name}.modules` has {path!r}, whose parameters are all in the group {taker!r} before "
                        f"it; take it out of one of them, or put {name!r} first."
                    )
        return partition, left

    def _paths(self, group: str, names: list[str]) -> list[str]:
        paths = []
        for path in self.groups[group]["modules"]:
            candidates = [f"{self.prefix}.{path}", path] if self.prefix else [path]
            found = next((full for full in candidates if any(_below(name, full) for name in names)), None)
            if found is None:
                tops = sorted({name.removeprefix(f"{self.prefix}.").split(".")[0] for name in names})
                raise ValueError(f"`groups.{group}.modules` has {path!r}, which matches no parameter; there is {tops}.")
            paths.append(found)
        return paths

    def _entries(self, module: nn.Module, group: str, taken: list[str]) -> list[dict[str, Any]]:
        spec, paths = self.groups[group], self._paths(group, [name for name, _ in module.named_parameters()])
        base, decay = float(spec["lr"]) * float(spec.get("lr_scale", 1.0)), float(spec.get("layer_decay", 1.0))
        parameters = dict(module.named_parameters())
        blocks = block_paths(module, paths)
        parts = {group: (0, taken)} if decay == 1.0 else _by_depth(group, paths, blocks, taken)
        if not spec.get("decay_1d", True):
            parts = _by_shape(parts, parameters)
        extras = {"weight_decay": float(spec["weight_decay"])} if spec.get("weight_decay") is not None else {}
        no_decay = {"weight_decay": 0.0}
        return [
            {
                "params": [parameters[parameter] for parameter in members],
                "name": name,
                "modules": paths,
                "blocks": blocks,
                "lr": base * decay**depth,
                "opened_at": 0,
                **(no_decay if name.endswith(ONE_D) else extras),
            }
            for name, (depth, members) in parts.items()
        ]


def block_paths(module: nn.Module, paths: Sequence[str]) -> list[str]:
    """Paths of a network's repeated blocks, in order, over all its stages.

    Blocks are children of one class in ``nn.Sequential`` and ``nn.ModuleList``; lists whose paths differ in numbers
    alone (``layer1`` to ``layer4``, ``stages.0.blocks`` to ``stages.3.blocks``) are the stages of one network. The
    series with the most blocks is taken, of equals the one with more parameters.

    Args:
        module: where the paths start.
        paths: only what is below them.

    >>> stage = lambda: nn.Sequential(nn.LSTMCell(1, 1), nn.LSTMCell(1, 1))
    >>> net = nn.ModuleDict({"stem": nn.Sequential(nn.Linear(1, 1), nn.ReLU()), "layer1": stage(), "layer2": stage()})
    >>> block_paths(nn.ModuleDict({"net": net}), ["net"])
    ['net.layer1.0', 'net.layer1.1', 'net.layer2.0', 'net.layer2.1']
    """
    series: dict[tuple[str, type], list[tuple[str, nn.Module]]] = {}
    for name, candidate in module.named_modules():
        if isinstance(candidate, nn.Sequential | nn.ModuleList) and any(_below(name, path) for path in paths):
            for child, block in candidate.named_children():
                if any(True for _ in block.parameters()):
                    key = re.sub(r"\d+", "#", name), type(block)
                    series.setdefault(key, []).append((f"{name}.{child}", block))
    repeated = [blocks for blocks in series.values() if len(blocks) > 1]
    longest = max(repeated, key=lambda blocks: (len(blocks), sum(_size(block) for _, block in blocks)), default=[])
    return [path for path, _ in longest]


def _size(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters())


def _by_depth(
    group: str, paths: Sequence[str], blocks: Sequence[str], taken: list[str]
) -> dict[str, tuple[int, list[str]]]:
    if not blocks:
        raise ValueError(
            f"`groups.{group}.layer_decay` needs repeated blocks in {paths}, and found none; set it to 1.0."
        )
    block_of = {name: block for name in taken for block in blocks if _below(name, block)}
    order = [block for block in blocks if block in set(block_of.values())]
    parts: dict[str, tuple[int, list[str]]] = {}
    for position, name in enumerate(taken):
        # what is defined between two blocks, such as a stage's downsampling, goes with the block after it
        block = next((block_of[later] for later in taken[position:] if later in block_of), None)
        started = any(earlier in block_of for earlier in taken[: position + 1])
        if not started:
            key, depth = f"{group}/stem", len(order)
        elif block is None:
            key, depth = group, 0
        else:
            key, depth = f"{group}/{order.index(block)}", len(order) - 1 - order.index(block)
        parts.setdefault(key, (depth, []))[1].append(name)
    return parts


def _by_shape(
    parts: Mapping[str, tuple[int, list[str]]], parameters: Mapping[str, nn.Parameter]
) -> dict[str, tuple[int, list[str]]]:
    found: dict[str, tuple[int, list[str]]] = {}
    for key, (depth, members) in parts.items():
        for name in members:
            whole = key if parameters[name].ndim > 1 else f"{key}{ONE_D}"
            found.setdefault(whole, (depth, []))[1].append(name)
    return found


def _check_group(name: str, group: Mapping[str, Any]) -> None:
    unknown = set(group) - GROUP_KEYS
    if unknown or not {"modules", "lr"} <= set(group):
        raise ValueError(f"`groups.{name}` needs modules and lr and knows {sorted(GROUP_KEYS)}, got {sorted(group)}.")
    if "/" in name:
        raise ValueError(f"`groups` has the name {name!r}; '/' is kept for the blocks of layer_decay, use '_'.")
    if isinstance(group["modules"], str) or not group["modules"]:
        raise ValueError(f"`groups.{name}.modules` must be a list of module paths, got {group['modules']!r}.")
    if float(group["lr"]) < 0:
        raise ValueError(f"`groups.{name}.lr` must not be negative, got {group['lr']}.")
    if not 0 < float(group.get("layer_decay", 1.0)) <= 1:
        raise ValueError(f"`groups.{name}.layer_decay` must be in (0, 1], got {group['layer_decay']}; 1.0 is off.")


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _shorten(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
