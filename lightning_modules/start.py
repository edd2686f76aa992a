"""Starts a module from the checkpoint of an earlier phase."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from ..datamodules.errors import CheckpointError

log = logging.getLogger(__name__)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Opens a Lightning checkpoint without running code that it may hold.

    Raises:
        CheckpointError: no such file, or no checkpoint.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint at '{path}'; check the path, or train the phase that writes it.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common base: pickle, zip and runtime errors all mean unreadable
        first_line = str(error).split("\n")[0].split(". ")[0]  # torch goes on with advice to load it unsafely
        raise CheckpointError(
            f"'{path}' is damaged or no checkpoint ({type(error).__name__}: {first_line}); use another file."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"'{path}' holds no `state_dict`; pass a checkpoint that train.py wrote.")
    return checkpoint


def load_start(module: LightningModule, path: str) -> None:
    """Loads all weights of an earlier phase; every tensor must match.

    Raises:
        CheckpointError: unreadable, of another task or region list, or tensors that do not match.
    """
    checkpoint = read_checkpoint(path)
    try:
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(f"cannot start from '{path}': {error}") from error
    log.info("started from %s", path)


@contextmanager
def rank_zero_first(trainer: Trainer) -> Iterator[None]:
    """Lets the first process of each machine run the block alone, the others after it: what it builds they open."""
    first = trainer.local_rank == 0
    if not first:
        trainer.strategy.barrier()
    yield
    if first:
        trainer.strategy.barrier()
