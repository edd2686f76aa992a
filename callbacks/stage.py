"""The description of one stage: which groups are open, and when it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEYS = {"open", "epochs", "steps", "patience", "min_delta", "only"}
Opening = bool | list[str] | dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of a :class:`StagedUnfreezing`.

    Args:
        name: its name.
        open: group name -> ``True`` (all of it), a list of submodule names inside the group, or
            ``{"last": 0.30, "also": ["ln_post"]}`` (that share of its repeated blocks, and these besides). Empty: a
            stage that only evaluates, where no earlier one left anything open.
        epochs: it ends after this many passes over the training data.
        steps: it ends after this many optimizer steps.
        patience: it ends after this many evaluations in a row without a gain of at least ``min_delta``.
        min_delta: the smallest gain that patience counts, in units of the monitor.
        only: what earlier stages opened is frozen again.
    """

    name: str
    open: dict[str, Opening]
    epochs: int | None = None
    steps: int | None = None
    patience: int | None = None
    min_delta: float = 0.0
    only: bool = False

    @classmethod
    def parse(cls, name: str, spec: Mapping[str, Any]) -> "Stage":
        """Reads the plain form.

        Raises:
            ValueError: an unknown key, no groups, or a limit that is not a positive number.

        >>> Stage.parse("top", {"open": ["heads"], "epochs": 2}).open
        {'heads': True}
        """
        if unknown := set(spec) - KEYS:
            raise ValueError(f"`stages.{name}` does not know {sorted(unknown)}; it knows {sorted(KEYS)}.")
        for key in ("epochs", "steps", "patience"):
            limit = spec.get(key)
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise ValueError(f"`stages.{name}.{key}` must be a whole number from 1 on or left out, got {limit!r}.")
        if spec.get("min_delta", 0.0) < 0:
            raise ValueError(f"`stages.{name}.min_delta` must not be negative, got {spec['min_delta']}.")
        return cls(**{"name": name, **spec, "open": _parse_open(name, spec.get("open"))})

    def limits(self) -> str:
        """Its ends in words.

        >>> Stage.parse("top", {"open": ["heads"], "epochs": 33, "patience": 5}).limits()
        'epochs 33, patience 5'
        """
        given = [f"{key} {value}" for key in ("epochs", "steps", "patience") if (value := getattr(self, key))]
        return ", ".join(given) or ("the end of the fit" if self.open else "one evaluation")


def parse_stages(stages: Mapping[str, Mapping[str, Any]]) -> list[Stage]:
    """Reads all stages and refuses one that the next could never follow."""
    if not stages:
        raise ValueError("`stages` is empty; give at least one, such as {all: {open: [heads], epochs: 10}}.")
    parsed = [Stage.parse(name, spec) for name, spec in stages.items()]
    for stage in parsed[:-1]:
        if stage.open and stage.epochs is stage.steps is stage.patience is None:
            raise ValueError(f"`stages.{stage.name}` never ends; give it epochs, steps or patience.")
    return parsed


def stage_index(stages: Sequence[Stage], name: str) -> int:
    """Position of a stage, from 0."""
    names = [stage.name for stage in stages]
    if name not in names:
        raise ValueError(f"There is no stage {name!r}; there is {names}.")
    return names.index(name)


def _parse_open(name: str, opening: Any) -> dict[str, Opening]:
    if opening is None or isinstance(opening, str) or not isinstance(opening, Sequence | Mapping):
        remedy = "list group names such as [heads], or [] for a stage that only evaluates"
        raise ValueError(f"`stages.{name}.open` names no groups: {opening!r}; {remedy}.")
    if not isinstance(opening, Mapping):
        return dict.fromkeys(opening, True)
    return {group: _parse_part(f"stages.{name}.open.{group}", part) for group, part in opening.items()}


def _parse_part(where: str, part: Any) -> Opening:
    if part is True:
        return True
    if isinstance(part, Sequence) and not isinstance(part, str) and part:
        return list(part)
    if isinstance(part, Mapping) and set(part) <= {"last", "also"} and "last" in part:
        if not 0 < part["last"] <= 1:
            raise ValueError(f"`{where}.last` must be a share in (0, 1], got {part['last']}; 30 % is 0.30.")
        return {"last": float(part["last"]), "also": list(part.get("also") or [])}
    raise ValueError(f"`{where}` must be true, a list of submodules, or {{last: 0.30, also: [...]}}, got {part!r}.")
