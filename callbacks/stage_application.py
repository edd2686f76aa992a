"""Makes module, optimizer and DDP wrapper agree with a stage."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from .parameter_groups import ParameterGroups
from .stage import Stage
from .stage_plan import StagePlan, make_plan, open_sets
from .trainable import BatchNormGuard, rewrap, set_trainable


class StageApplication:
    """Knows what each stage opens in one module, and applies it as often as asked.

    Args:
        stages: in order.
        trainer: its one optimizer has the groups.
        pl_module: the module that trains.
        batchnorm: see :class:`BatchNormGuard`.

    Raises:
        ValueError: several optimizers, or a stage that names what is not there.
    """

    def __init__(self, stages: Sequence[Stage], trainer: Trainer, pl_module: LightningModule, batchnorm: str) -> None:
        if len(trainer.optimizers) > 1 or (not trainer.optimizers and any(True for _ in pl_module.parameters())):
            raise ValueError(f"StagedUnfreezing needs exactly one optimizer, got {len(trainer.optimizers)}.")
        self.stages = stages
        self.groups = ParameterGroups(pl_module, [g for one in trainer.optimizers for g in one.param_groups])
        self.opened = open_sets(stages, self.groups)
        self._guard = BatchNormGuard(batchnorm)
        self._wrapped: set[str] | None = None
        self._wanted: list[tuple[nn.Parameter, bool]] = []

    def plan(self) -> StagePlan:
        """All stages as a table."""
        return make_plan(self.stages, self.groups)

    def trainable(self, index: int) -> int:
        """Number of parameters that train in that stage."""
        return sum(self.groups.sizes[name] for name in self.opened[index])

    def announcement(self, index: int) -> str:
        """What that stage opens, in words; a stage that opens nothing new says so."""
        row = self.plan().rows[index]
        if not row["trainable"]:
            return f"stage {row['stage']!r} trains nothing: it is one evaluation, for the next to beat."
        note = "" if row["new"] else " (none of them new)"
        return f"stage {row['stage']!r} opens {row['opens']}: {row['trainable']:,} parameters train{note}."

    def converge(
        self, trainer: Trainer, pl_module: LightningModule, index: int, opened_at: dict[str, int | None]
    ) -> None:
        """Sets what trains, batch normalisation, learning rates and the wrapper; a second call changes nothing.

        Args:
            trainer: the running one.
            pl_module: the module that trains.
            index: of the stage.
            opened_at: group -> optimizer step of its opening, ``None`` while closed; brought up to date in place.
        """
        set_trainable(pl_module, self.opened[index])
        self._wanted = [(p, name in self.opened[index]) for name, p in pl_module.named_parameters()]
        self._guard.apply(pl_module)
        self._mark_opened(trainer, opened_at)
        if self.opened[index] != self._wrapped:
            rewrap(trainer)
            self._wrapped = self.opened[index]

    def holds(self) -> bool:
        """A cheap check before a batch, which also lets thawed batch normalisation train again."""
        self._guard.resume_training()
        return all(
            parameter.requires_grad if wanted else not parameter.requires_grad and parameter.grad is None
            for parameter, wanted in self._wanted
        )

    def release(self) -> None:
        """Lets go of the batch normalisation: what comes after the fit is not this callback's."""
        self._guard.release_all()

    def _mark_opened(self, trainer: Trainer, opened_at: dict[str, int | None]) -> None:
        changed = False
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            is_open = any(parameter.requires_grad for parameter in group["params"])
            known = opened_at.get(group["name"])
            opened_at[group["name"]] = (trainer.global_step if known is None else known) if is_open else None
            changed |= group.get("opened_at", 0) != opened_at[group["name"]]
            group["opened_at"] = opened_at[group["name"]]
        for config in trainer.lr_scheduler_configs if changed else ():
            # a schedule without `refresh` keeps its own rates; a closed group has no gradients to apply them to
            getattr(config.scheduler, "refresh", lambda: None)()
