"""What the callbacks run on, and whether a checkpoint is theirs."""

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
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
    if not isinstance(saved, dict) or list(saved) != list(present):
        lines = [f"  checkpoint: {list(saved)}", f"  here:       {list(present)}"]
    else:
        changed = [name for name in saved if saved[name] != present[name]]
        lines = [f"  {name}: {saved[name]} in the checkpoint, {present[name]} here" for name in changed]
    difference = "\n".join(lines)
    raise ValueError(f"The checkpoint has other {what}; resume with the same ones, or start anew:\n{difference}")


def check_plain(values: Any, owner: str) -> None:
    """Refuses hyper-parameters that would be saved and could not be opened with ``weights_only=True``.

    Raises:
        ValueError: names them.

    >>> check_plain({"lr": 0.1, "sizes": [1, 2]}, "Classifier")
    """
    bad = [name for name, value in dict(values).items() if not _opens(value)]
    if bad:
        raise ValueError(
            f"{owner}: the hyper-parameters {bad} hold objects, and a checkpoint with them cannot be opened safely; "
            f"call save_hyperparameters(ignore={bad}), or keep plain values."
        )


def _opens(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError):
        return False
    return True


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names.

    >>> flat({"groups": {"clip": {"lr": 1e-5}}, "seed": 0})
    {'groups.clip.lr': 1e-05, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return result
