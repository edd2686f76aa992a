"""What a list of stages would do to a model, as a table, before anything trains."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .parameter_groups import ParameterGroups
from .stage import Stage


@dataclass(frozen=True)
class StagePlan:
    """A dry run; ``print`` shows it as a table.

    Args:
        rows: a dict a stage: stage, ends, opens, new, trainable, total (numbers of parameters).
        unclaimed: names of parameters that no group takes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    unclaimed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return table(self.rows) + "\nparameters in no group: " + (", ".join(self.unclaimed) or "none")


def make_plan(stages: Sequence[Stage], groups: ParameterGroups) -> StagePlan:
    """Reads off the stages what each opens, in numbers of parameters."""
    opened, before, rows = open_sets(stages, groups), set[str](), []
    for stage, names in zip(stages, opened, strict=True):
        rows.append(
            {
                "stage": stage.name,
                "ends": stage.limits(),
                "opens": ", ".join(stage.open),
                "new": sum(groups.sizes[name] for name in names - before),
                "trainable": sum(groups.sizes[name] for name in names),
                "total": sum(groups.sizes.values()),
            }
        )
        before = names
    return StagePlan(rows, groups.unclaimed)


def plan_model(stages: Sequence[Stage], model: nn.Module, optimizer: Any) -> StagePlan:
    """The plan for a model, from a torch optimizer or from something that makes groups for a model."""
    groups = optimizer.param_groups
    return make_plan(stages, ParameterGroups(model, groups(model, strict=False) if callable(groups) else groups))


def open_sets(stages: Sequence[Stage], groups: ParameterGroups) -> list[set[str]]:
    """Names of the trainable parameters of each stage; cumulative, except for a stage with ``only``."""
    opened: list[set[str]] = []
    for stage in stages:
        own = groups.opened_by(stage)
        opened.append(own if stage.only or not opened else own | opened[-1])
    return opened


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Plain columns.

    >>> print(table([{"stage": "heads", "trainable": 1200}, {"stage": "top", "trainable": 3400000}]))
    stage  trainable
    heads  1,200
    top    3,400,000
    """
    cells = [list(rows[0])] if rows else []
    cells += [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))] if cells else []
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
