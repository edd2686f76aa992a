"""Stops a run that pays for its score with the rare classes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric

from .collapse_rules import (
    Counts,
    baseline_from_file,
    check_limit,
    check_rules,
    majority_accuracy,
    predicted_shares,
    recalls,
)
from .evaluation import callbacks_of, counts
from .stage import stage_index
from .staged_unfreezing import StagedUnfreezing
from .supported import refuse_unsupported

log = logging.getLogger(__name__)

ACTIONS = ("stop", "flag", "rollback")


class RareClassCollapseStopping(Callback):
    """Watches the recall of single classes and the share of predictions that one class gets.

    It reads a confusion matrix metric of the module in ``on_validation_epoch_end``, which callbacks see before the
    module: the metric has to be updated in ``validation_step`` and reset no earlier than the module's own
    ``on_validation_epoch_end``. ``compute()`` reduces the counts over all ranks first, so a class that is absent from
    one rank's shard is not a recall of 0. The class names are the module's ``class_names``.

    Args:
        confusion: attribute path of the metric on the module, such as ``val_confusion``; it gives (K, K) counts with
            the truth in rows.
        rules: ``recall`` (``floor``) for the ``rare`` classes, ``share`` (``max``) for the predictions of any class;
            ``patience`` is the number of evaluations in a row.
        per_class: class -> ``floor`` and ``patience`` instead of the common ones.
        rare: classes that ``recall`` watches; all of them if ``None``.
        baseline: floors are fractions of it: ``majority`` (accuracy of always answering the most frequent class),
            ``previous_stage`` (recall at the best evaluation before the present stage), or a JSON file
            ``{class: recall}``. ``None``: floors are recalls.
        min_support: with fewer samples a class is no evidence, neither for nor against.
        start_after: ``stage:NAME`` waits until that stage of the :class:`StagedUnfreezing` is over.
        action: stop, flag (warn only), or rollback (ends the stage and restores its best evaluation; an evaluation that
            breaks a rule is never the best).

    ``reason`` says why the fit was stopped, ``flags`` lists all that was flagged.

    Raises:
        ValueError: a limit that is not a share, an unknown class, stage, metric or action.

    >>> RareClassCollapseStopping("val_confusion", {"recall": {"floor": 0.3, "patience": 2}}).red_flag
    False
    """

    def __init__(
        self,
        confusion: str,
        rules: Mapping[str, Mapping[str, Any]],
        per_class: Mapping[str, Mapping[str, Any]] | None = None,
        rare: Sequence[str] | None = None,
        baseline: str | None = None,
        min_support: int = 20,
        start_after: str | None = None,
        action: str = "stop",
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(f"`action` must be one of {ACTIONS}, got {action!r}.")
        if start_after is not None and not start_after.startswith("stage:"):
            raise ValueError(f"`start_after` must be 'stage:NAME' or left out, got {start_after!r}.")
        self.rules = check_rules(rules)
        self.per_class = {
            name: check_limit(f"per_class.{name}", {**self.rules.get("recall", {}), **rule}, "floor")
            for name, rule in (per_class or {}).items()
        }
        self.confusion = confusion
        self.rare = None if rare is None else list(rare)
        self.baseline = baseline
        self.min_support = min_support
        self.start_after = start_after
        self.action = action
        self.reason: str | None = None
        self.flags: list[str] = []
        self._strikes: dict[str, int] = {}
        self._floors = {} if baseline in (None, "majority", "previous_stage") else baseline_from_file(str(baseline))
        self._last: dict[str, Any] = {}

    @property
    def red_flag(self) -> bool:
        """Whether a rule was broken for as long as its patience."""
        return bool(self.flags)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies whose ranks could disagree."""
        refuse_unsupported(trainer, type(self).__name__)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses names that do not exist before anything trains; a run that was stopped stays stopped when resumed.

        Not in ``setup``, which Lightning calls on callbacks before the module may have built its metrics.
        """
        trainer.should_stop = trainer.should_stop or self.reason is not None
        names = class_names(pl_module)
        watched = [*(self.rare or []), *self.per_class, *self._floors]
        if unknown := sorted(set(watched) - set(names)):
            raise ValueError(f"`rare`, `per_class` or `baseline` name {unknown}; the classes are {names}.")
        self._metric(pl_module)
        if self.start_after:
            stage_index(self._stages(trainer, "start_after").stages, self.start_after.removeprefix("stage:"))
        if self.baseline == "previous_stage":
            self._stages(trainer, "baseline")
        if self.action == "rollback":
            self._stages(trainer, "action").keep_weights()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the evaluation before any callback decides on it."""
        if not counts(trainer):
            return
        matrix = self._matrix(trainer, pl_module)
        self._note(trainer, matrix)
        if self.start_after and not self._stages(trainer, "start_after").has_ended(
            self.start_after.removeprefix("stage:")
        ):
            return
        broken = self._broken(class_names(pl_module), matrix)
        ripe = [text for text, strikes, patience in broken if strikes >= patience]
        if broken and self.action == "rollback":
            self._stages(trainer, "action").veto_best()
        if ripe:
            self._act(trainer, f"collapse: {'; '.join(ripe)}, epoch {trainer.current_epoch + 1}")

    def state_dict(self) -> dict[str, Any]:
        """Strikes by rule and class, and what has been flagged."""
        return {"strikes": dict(self._strikes), "flags": list(self.flags), "reason": self.reason, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._strikes, self.flags = dict(state["strikes"]), list(state["flags"])
        self.reason, self._last = state["reason"], dict(state["last"])

    def _act(self, trainer: Trainer, text: str) -> None:
        self.flags.append(text)
        if trainer.is_global_zero:
            log.warning("%s", text)
        if self.action == "stop":
            self.reason = text
            trainer.should_stop = True
        elif self.action == "rollback":
            self._strikes.clear()
            self._stages(trainer, "action").request_rollback(text)

    def _matrix(self, trainer: Trainer, pl_module: LightningModule) -> Counts:
        classes = len(class_names(pl_module))
        matrix = self._metric(pl_module).compute()
        if tuple(matrix.shape) != (classes, classes) or bool((matrix != matrix.round()).any()):
            raise ValueError(
                f"`confusion` {self.confusion!r} must give ({classes}, {classes}) counts, got {tuple(matrix.shape)} "
                f"{matrix.dtype}; use ConfusionMatrix(task='multiclass', num_classes={classes}, normalize=None)."
            )
        shared: Counts = trainer.strategy.broadcast(matrix.tolist())
        return shared

    def _metric(self, pl_module: LightningModule) -> Metric:
        try:
            metric = attrgetter(self.confusion)(pl_module)
        except AttributeError:
            metric = None
        if not isinstance(metric, Metric):
            known = [name for name, module in pl_module.named_modules() if isinstance(module, Metric)]
            raise ValueError(f"`confusion` {self.confusion!r} is no metric of the module; its metrics are {known}.")
        return metric

    def _stages(self, trainer: Trainer, argument: str) -> StagedUnfreezing:
        found = next((callback for callback in callbacks_of(trainer) if isinstance(callback, StagedUnfreezing)), None)
        if found is None:
            raise ValueError(f"`{argument}` needs a StagedUnfreezing among the callbacks; add one or change it.")
        return found

    def _note(self, trainer: Trainer, matrix: Counts) -> None:
        """Remembers the recalls at the best evaluation before the present stage."""
        if self.baseline != "previous_stage":
            return
        stages, last = self._stages(trainer, "baseline"), self._last
        best = last.get("recalls") if stages.progress.best_evaluation == last.get("evaluation") else last.get("best")
        moved = bool(last) and last["stage"] != stages.progress.index
        self._last = {
            "evaluation": stages.progress.evaluations + 1,
            "stage": stages.progress.index,
            "recalls": recalls(matrix, self.min_support),
            "best": best,
            "baseline": best if moved else last.get("baseline"),
        }

    def _reference(self, index: int, name: str, matrix: Counts) -> float | None:
        """What the floor of a class is a fraction of; ``None`` where there is nothing to compare with yet."""
        if self.baseline is None:
            return 1.0
        if self.baseline == "majority":
            return majority_accuracy(matrix)
        if self.baseline == "previous_stage":
            return self._last["baseline"][index] if self._last.get("baseline") else None
        return self._floors.get(name)

    def _broken(self, names: Sequence[str], matrix: Counts) -> list[tuple[str, int, int]]:
        """What is broken now, how many times in a row, and its patience."""
        broken = []
        for key, text, is_broken, patience in self._findings(names, matrix):
            self._strikes[key] = self._strikes.get(key, 0) + 1 if is_broken else 0
            if is_broken:
                broken.append((text, self._strikes[key], patience))
        return broken

    def _findings(self, names: Sequence[str], matrix: Counts) -> Iterator[tuple[str, str, bool, int]]:
        shares = predicted_shares(matrix, self.min_support)
        for index, (name, recall) in enumerate(zip(names, recalls(matrix, self.min_support), strict=True)):
            watched = "recall" in self.rules and (self.rare is None or name in self.rare)
            rule = self.per_class.get(name, self.rules.get("recall") if watched else None)
            reference = self._reference(index, name, matrix)
            if rule and recall is not None and reference is not None:
                floor = rule["floor"] * reference
                yield f"recall:{name}", f"recall of {name} {recall:.3f} < {floor:.3f}", recall < floor, rule["patience"]
            share, limit = shares[index], self.rules.get("share")
            if limit and share is not None:
                text = f"share of {name} {share:.3f} > {limit['max']:.3f}"
                yield f"share:{name}", text, share > limit["max"], limit["patience"]


def class_names(pl_module: Any) -> list[str]:
    """Names of the classes, in the order of the confusion matrix."""
    if not hasattr(pl_module, "class_names"):
        raise ValueError(f"{type(pl_module).__name__} has no class_names; set them to the names in the matrix' order.")
    return [str(name) for name in pl_module.class_names]
