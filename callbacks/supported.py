"""What the callbacks run on, and whether a checkpoint is theirs."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy


def refuse_unsupported(trainer: Trainer, owner: str) -> None:
    """Refuses every strategy but one device and DDP: on others a decision or a state would not be the same.

    Args:
        trainer: that is about to fit.
        owner: name of the callback, for the message.

    Raises:
        ValueError: with what to use instead.
    """
    if not is_supported(trainer.strategy):
        raise ValueError(
            f"{owner} supports one device and DDP, got `strategy` {type(trainer.strategy).__name__}; "
            "use strategy='ddp', or the package finetuning-scheduler for sharded training."
        )


def is_supported(strategy: Strategy) -> bool:
    """One device or plain DDP; both sharded and XLA strategies inherit from these."""
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(
        strategy, DeepSpeedStrategy | SingleDeviceXLAStrategy
    )


def check_same(what: str, saved: Any, present: Any) -> None:
    """Refuses a checkpoint of other stages or groups.

    Args:
        what: for the message.
        saved: list of names, or name -> fingerprint, of the checkpoint.
        present: the same of this run.

    Raises:
        ValueError: with the difference.

    >>> check_same("stages", ["heads", "top"], ["heads", "top"])
    """
    if list(saved) == list(present) and (not isinstance(saved, dict) or saved == present):
        return
    lines = [f"  checkpoint: {list(saved)}", f"  here:       {list(present)}"]
    if isinstance(saved, dict):
        changed = [name for name in saved if name in present and saved[name] != present[name]]
        lines += [f"  {name}: {saved[name]} in the checkpoint, {present[name]} here" for name in changed]
    difference = "\n".join(lines)
    raise ValueError(f"The checkpoint has other {what}; resume with the same ones, or start anew:\n{difference}")
