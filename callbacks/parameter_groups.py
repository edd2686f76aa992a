"""The optimizer's named groups as sets of parameter names, and what a stage opens in them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .stage import Opening, Stage


class ParameterGroups:
    """Parameter names by group, read from the plain extras of torch parameter groups.

    The extras are ``name``, ``modules`` (paths) and, where a stage opens a share of them, ``blocks`` (paths in order);
    ``GroupedOptimizer`` writes all three. ``clip/11`` belongs to the group ``clip``. A tied parameter has one name and
    one group.

    Args:
        module: the LightningModule.
        param_groups: of its optimizer.

    Raises:
        ValueError: a group without a name, or an optimizer with a parameter that is not in the module.

    >>> model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    >>> heads = {"name": "heads", "modules": ["head"], "params": list(model["head"].parameters())}
    >>> groups = ParameterGroups(model, [heads])
    >>> groups.names
    {'heads': ['head.weight', 'head.bias']}
    >>> groups.unclaimed
    ['body.weight', 'body.bias']
    """

    def __init__(self, module: nn.Module, param_groups: Sequence[Mapping[str, Any]]) -> None:
        self.module = module
        self.sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
        self.names: dict[str, list[str]] = {}
        self.modules: dict[str, list[str]] = {}
        self.blocks: dict[str, list[str]] = {}
        name_of = {id(parameter): name for name, parameter in module.named_parameters()}
        for index, group in enumerate(param_groups):
            if "name" not in group:
                raise ValueError(f"Optimizer group {index} has no 'name'; add name=... and modules=[...].")
            base = base_name(group["name"])
            if any(id(parameter) not in name_of for parameter in group["params"]):
                raise ValueError(f"Optimizer group {base!r} holds parameters outside the module; build it anew.")
            self.names.setdefault(base, []).extend(name_of[id(parameter)] for parameter in group["params"])
            self.modules[base], self.blocks[base] = list(group.get("modules", ())), list(group.get("blocks", ()))

    @property
    def unclaimed(self) -> list[str]:
        """Parameters of the module that no group holds."""
        claimed = {name for names in self.names.values() for name in names}
        return [name for name in self.sizes if name not in claimed]

    def fingerprint(self) -> dict[str, str]:
        """Group -> number of parameters and a hash of their names, in the order of the groups."""
        return {
            group: f"{len(names)} parameters, {hashlib.sha256(chr(10).join(sorted(names)).encode()).hexdigest()[:12]}"
            for group, names in self.names.items()
        }

    def opened_by(self, stage: Stage) -> set[str]:
        """Names of the parameters that this stage alone opens.

        Raises:
            ValueError: a group or submodule that does not exist.
        """
        opened: set[str] = set()
        for group, opening in stage.open.items():
            if group not in self.names:
                raise ValueError(f"`stages.{stage.name}.open` names the group {group!r}; there is {list(self.names)}.")
            opened |= self._part(f"stages.{stage.name}.open.{group}", group, opening)
        return opened

    def _part(self, where: str, group: str, opening: Opening) -> set[str]:
        if opening is True:
            return set(self.names[group])
        chosen: list[str] = []
        if isinstance(opening, dict):
            chosen += self._last_blocks(where, group, opening["last"])
        for inner in opening["also"] if isinstance(opening, dict) else opening:  # type: ignore[union-attr]
            chosen += self._inside(where, group, inner)
        # named_parameters() of the whole module names a tied parameter once, so select by identity
        every = dict(self.module.named_parameters(remove_duplicate=False))
        wanted = {id(parameter) for name, parameter in every.items() if any(is_below(name, path) for path in chosen)}
        return {name for name in self.names[group] if id(every[name]) in wanted}

    def _last_blocks(self, where: str, group: str, share: float) -> list[str]:
        blocks = self.blocks[group]
        if not blocks:
            raise ValueError(
                f"`{where}.last` needs repeated blocks in {self.modules[group]}, and found none; name modules."
            )
        return blocks[-max(1, round(share * len(blocks))) :]

    def _inside(self, where: str, group: str, inner: str) -> list[str]:
        """The shallowest modules or parameters called ``inner`` in each module of the group."""
        found: list[str] = []
        for root in self.modules[group]:
            paths = {end for name in self.names[group] if is_below(name, root) for end in _ends(name, root, inner)}
            depth = min((path.count(".") for path in paths), default=0)
            found += sorted(path for path in paths if path.count(".") == depth)
        if not found:
            roots, names = self.modules[group], self.names[group]
            tops = {n[len(r) + 1 :].split(".")[0] for r in roots for n in names if n.startswith(f"{r}.")}
            tops |= {r.split(".")[-1] for r in roots}
            raise ValueError(f"`{where}` names {inner!r}, which is not in the group; there is {sorted(tops)}.")
        return found


def base_name(group: str) -> str:
    """The group that a block's own group belongs to.

    >>> base_name("clip/11")
    'clip'
    """
    return group.split("/")[0]


def is_below(name: str, path: str) -> bool:
    """Whether a dotted name is ``path`` or lies below it.

    >>> is_below("clip.proj", "clip"), is_below("clip_head.weight", "clip")
    (True, False)
    """
    return name == path or name.startswith(f"{path}.")


def _ends(name: str, root: str, inner: str) -> list[str]:
    """Every prefix of ``name`` from ``root`` on that ends with ``inner``; ``root`` itself may be one."""
    parts, wanted = name.split("."), inner.split(".")
    if root.split(".")[-len(wanted) :] == wanted:
        return [root]
    start = len(root.split("."))
    ends = range(start + len(wanted), len(parts) + 1)
    return [".".join(parts[:end]) for end in ends if parts[end - len(wanted) : end] == wanted]
