"""Lets the weight of a loss term grow over the first epochs or steps."""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .evaluation import callbacks_of
from .stage import stage_index
from .staged_unfreezing import StagedUnfreezing
from .supported import refuse_unsupported

SHAPES = ("linear", "cosine", "step")
KEYS = {"start", "end", "epochs", "steps", "shape", "after"}


class LossRamp(Callback):
    """Writes ``pl_module.loss_weights[name]`` before each training batch.

    The first of ``epochs`` (or ``steps``) has the weight ``start``, the last and all later ones ``end``. Evaluations
    use ``end``, so that their losses can be compared. The weight in force is logged as ``ramp/<name>``.

    Args:
        weights: name -> ``start``, ``end``, one of ``epochs`` and ``steps``, ``shape`` (linear, cosine; step keeps
            ``start`` until the last) and ``after``: ``fit``, or ``stage:NAME`` to count from the beginning of that
            stage of the :class:`StagedUnfreezing` (before it the weight is ``start``).

    Raises:
        ValueError: an unknown key, shape, stage, or a name the module has no weight for.

    >>> ramp = LossRamp({"offset": {"start": 0.2, "end": 1.0, "epochs": 5}})
    >>> [round(ramp_value(ramp.weights["offset"], position), 2) for position in range(6)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    """

    def __init__(self, weights: Mapping[str, Mapping[str, Any]]) -> None:
        self.weights = {name: _check(name, spec) for name, spec in weights.items()}
        self.begun: dict[str, dict[str, int]] = {}
        self._outside: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses names that the module does not weigh, and stages that are not there."""
        refuse_unsupported(trainer, "LossRamp")
        known = _weights(pl_module)
        for name, spec in self.weights.items():
            if name not in known:
                raise ValueError(f"`weights` names {name!r}; the module's loss_weights are {sorted(known)}.")
            if stage == "fit" and spec["after"] != "fit":
                stage_index(_stages(trainer, name).stages, spec["after"].removeprefix("stage:"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets the weights; at each batch, since a resume may start in the middle of an epoch."""
        for name, spec in self.weights.items():
            _weights(pl_module)[name] = ramp_value(spec, self._position(trainer, name, spec))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the weights that were in force."""
        for name in self.weights:
            pl_module.log(f"ramp/{name}", float(_weights(pl_module)[name]), prog_bar=True, batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluations use the end weights."""
        self._outside = {name: _weights(pl_module)[name] for name in self.weights}
        for name, spec in self.weights.items():
            _weights(pl_module)[name] = spec["end"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on where it was."""
        _weights(pl_module).update(self._outside)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def state_dict(self) -> dict[str, Any]:
        """Where the ramps that wait for a stage began."""
        return {"begun": {name: dict(at) for name, at in self.begun.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them over."""
        self.begun = state["begun"]

    def _position(self, trainer: Trainer, name: str, spec: Mapping[str, Any]) -> int:
        """Epochs or steps since the ramp began, from 0; -1 before."""
        now = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        unit = "epochs" if spec["epochs"] else "steps"
        if spec["after"] == "fit":
            return now[unit]
        stages = _stages(trainer, name)
        if stages.progress.index < stage_index(stages.stages, spec["after"].removeprefix("stage:")):
            return -1
        return now[unit] - self.begun.setdefault(name, now)[unit]


def ramp_value(spec: Mapping[str, Any], position: int) -> float:
    """The weight at a position.

    Args:
        spec: complete, as :class:`LossRamp` keeps it.
        position: epochs or steps since the ramp began, from 0.

    >>> round(ramp_value({"start": 0.0, "end": 1.0, "epochs": 3, "steps": None, "shape": "cosine"}, 1), 6)
    0.5
    """
    last = (spec["epochs"] or spec["steps"]) - 1
    if position >= last:
        return float(spec["end"])
    if position <= 0 or spec["shape"] == "step":
        return float(spec["start"])
    share = position / last if spec["shape"] == "linear" else 0.5 * (1 - math.cos(math.pi * position / last))
    return float(spec["start"] + (spec["end"] - spec["start"]) * share)


def _weights(pl_module: Any) -> MutableMapping[str, float]:
    weights: MutableMapping[str, float] = getattr(pl_module, "loss_weights", {})
    return weights


def _stages(trainer: Trainer, name: str) -> StagedUnfreezing:
    found = next((callback for callback in callbacks_of(trainer) if isinstance(callback, StagedUnfreezing)), None)
    if found is None:
        raise ValueError(f"`weights.{name}.after` waits for a stage, but there is no StagedUnfreezing; use 'fit'.")
    return found


def _check(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    complete: dict[str, Any] = {"epochs": None, "steps": None, "shape": "linear", "after": "fit", **spec}
    if set(complete) != KEYS:
        raise ValueError(f"`weights.{name}` needs start, end and epochs or steps; known are {sorted(KEYS)}.")
    if complete["shape"] not in SHAPES:
        raise ValueError(f"`weights.{name}.shape` must be one of {SHAPES}, got {complete['shape']!r}.")
    lengths = [complete[unit] for unit in ("epochs", "steps") if complete[unit] is not None]
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"`weights.{name}` needs exactly one of epochs and steps, from 1 on, got {lengths}.")
    if complete["after"] != "fit" and not complete["after"].startswith("stage:"):
        raise ValueError(f"`weights.{name}.after` must be 'fit' or 'stage:NAME', got {complete['after']!r}.")
    return complete
