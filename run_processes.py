"""Several processes for one run: each has the run's own command, and nothing of it is left for the next run."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import distributed

_SET_BY_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def processes_of_run(cfg: DictConfig) -> Iterator[None]:
    """Lets Lightning start further processes of this one run, though the command may ask for a sweep.

    Lightning starts them with the command line of this process. In a sweep that would be the whole sweep again, in each
    of them; so the command line is that of the present job until the run is over.

    Args:
        cfg: of the run; ``run_dir`` resolved in the other processes would be another folder.
    """
    launched_outside, command = "LOCAL_RANK" in os.environ, sys.argv[:]
    if HydraConfig.initialized():
        sys.argv[1:] = [*HydraConfig.get().overrides.task, f"run_dir='{cfg.run_dir}'", "hydra.mode=RUN"]
    try:
        yield
    finally:
        sys.argv[:] = command
        if not launched_outside:
            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()
            for name in _SET_BY_LAUNCHER:
                os.environ.pop(name, None)


def quiet_others() -> None:
    """Leaves what a run tells to its first process; errors are told by all."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        logging.getLogger("stagewise").setLevel(logging.ERROR)


def on_one_device(cfg: DictConfig) -> None:
    """Changes a run for several processes to one that this process makes alone."""
    if cfg.trainer.get("strategy"):
        trainer = OmegaConf.to_container(cfg.trainer, resolve=False)
        cfg.trainer = {key: value for key, value in trainer.items() if key not in SEVERAL} | {"devices": 1}  # type: ignore[union-attr]


SEVERAL = ("devices", "num_nodes", "strategy", "sync_batchnorm")  # trainer's settings that say how many processes
