"""The run that another one starts from: made once for each configuration, then found again."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from stagewise.run_processes import SEVERAL, on_one_device

log = logging.getLogger("stagewise.train")
_SETS = ("datamodule", "lightning_module", "optimizer", "stages", "monitor", "seed", "trainer")
_UNSEEN_S = 600  # processes start some time apart
_DONE = "first_run.done"  # a summary is also there of a run that was stopped on its way
_NO_SETTING = ("cache_dir", "default_root_dir", *SEVERAL)  # the same run wherever it is kept, and on any device


def first_checkpoint(cfg: DictConfig, run: Callable[[DictConfig], Any]) -> str:
    """The best checkpoint of ``cfg`` with the changes of ``cfg.first``; trained unless it is there.

    One that was killed goes on; of several runs that need the same one at a time, one makes it and the others wait. Of
    a run's processes the first one makes it, on one device.

    Args:
        cfg: of the run that starts from it; not changed.
        run: trains a configuration.

    Raises:
        OSError: from another process than the first one, which does not see what that writes.
    """
    own = first_config(cfg)
    folder = Path(own.run_dir)
    best = folder / f"{own.name}_best.ckpt"
    lock = Path(f"{folder}.lock")
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        _wait(best, lock)
        return str(best)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if _is_made(best):
            log.info("starting from %s, which is there", best)
        else:
            log.info("first %s, in %s", own.name, folder)
            run(own)
            (folder / _DONE).touch()
    return str(best)


def _wait(best: Path, lock: Path) -> None:
    """Ends with process 0, whose launcher stops all where one fails."""
    start = time.monotonic()
    while not _is_made(best):
        if not lock.exists() and time.monotonic() - start > _UNSEEN_S:
            raise OSError(
                f"no '{lock}' of process 0, which makes '{best.name}' first; pass paths.checkpoints=DIR on a disk that "
                "all machines share."
            )
        time.sleep(1)


def _is_made(best: Path) -> bool:
    return best.is_file() and (best.parent / _DONE).is_file()


def first_config(cfg: DictConfig) -> DictConfig:
    """``cfg`` with the changes of ``cfg.first``, in a folder that is named after its settings."""
    own: DictConfig = OmegaConf.merge(cfg, cfg.first)  # type: ignore[assignment]
    OmegaConf.set_struct(own, False)
    own.update(first=None, start_from=None, resume="auto")
    on_one_device(own)
    settings = json.dumps(_settings({key: OmegaConf.select(own, key) for key in _SETS}), sort_keys=True)
    own.run_dir = str(
        Path(own.paths.checkpoints) / own.name / hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
    )
    return own


def _settings(value: Any) -> Any:
    """Plain values that do not change when the same run is made elsewhere."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: _settings(inner) for key, inner in value.items() if key not in _NO_SETTING}
    return value
