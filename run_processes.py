"""Several processes for one run: who starts them, one folder for all, one that speaks."""

import logging
import os
import platform
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import distributed


def takes_several(cfg: DictConfig) -> bool:
    """Whether the run takes several processes."""
    return bool((cfg.get("trainer") or {}).get("strategy"))


def started_by_launcher(cfg: DictConfig) -> bool:
    """Whether torchrun or srun has started all processes, of a sweep as well, and ends all where one of them ends."""
    return takes_several(cfg) and ("num_nodes" in cfg.trainer or "LOCAL_RANK" in os.environ)


def share_folder(cfg: DictConfig) -> None:
    """Lets the processes that Lightning starts, with the command line of this one, have its folder."""
    if takes_several(cfg) and HydraConfig.initialized():
        sys.argv.append(f"run_dir='{cfg.run_dir}'")  # which may name the time


class SharedFolder(Callback):
    """Refuses to train where a process does not see the run's folder: all of them read its checkpoints in the end.

    Args:
        folder: of the run; process 0 has made it.

    Raises:
        OSError: names the first process that does not see what process 0 wrote, and its machine.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the first checkpoint is read."""
        if stage != "fit" or trainer.world_size == 1:
            return
        probe = self.folder / trainer.strategy.broadcast(f".probe_{uuid.uuid4().hex}")
        if trainer.is_global_zero:
            probe.touch()
        trainer.strategy.barrier()
        seen: list[tuple[str, bool]] = [("", False)] * trainer.world_size
        distributed.all_gather_object(seen, (platform.node(), probe.exists()))
        if trainer.is_global_zero:
            probe.unlink()
        for rank, (node, is_seen) in enumerate(seen):
            if not is_seen:
                raise OSError(
                    f"process {rank} on '{node}' does not see what process 0 on '{seen[0][0]}' wrote to "
                    f"run_dir='{self.folder}'; pass paths.checkpoints=DIR on a disk that all machines share."
                )


def from_launcher(names: Sequence[str]) -> int:
    """The number that torchrun or srun has set for each of the processes that it started.

    Args:
        names: of the environment variables; the first that is set counts, so torchrun's before SLURM's, since it can
            run in a job of SLURM.

    Raises:
        ValueError: none is set.
    """
    found = next((os.environ[name] for name in names if name in os.environ), None)
    if found is None:
        raise ValueError(
            f"none of {', '.join(names)} is set, so no launcher has said how many processes there are; start the "
            "program by torchrun or by srun with --ntasks-per-node, or take trainer=ddp for one machine."
        )
    return int(found)


def quiet_others() -> None:
    """Leaves what a run tells to its first process; errors are told by all."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        logging.getLogger("stagewise").setLevel(logging.ERROR)


def on_one_device(cfg: DictConfig) -> None:
    """Changes a run for several processes to one that this process makes alone."""
    if takes_several(cfg):
        trainer = OmegaConf.to_container(cfg.trainer, resolve=False)
        cfg.trainer = {key: value for key, value in trainer.items() if key not in SEVERAL} | {"devices": 1}  # type: ignore[union-attr]


SEVERAL = ("devices", "num_nodes", "strategy", "sync_batchnorm")  # trainer's settings that say how many processes
