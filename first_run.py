"""The run that another one starts from: made once for each configuration, then found again."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger("stagewise.train")
_SETS = ("datamodule", "lightning_module", "optimizer", "stages", "monitor", "seed", "trainer")
_FOLDERS = ("cache_dir", "default_root_dir")


def first_checkpoint(cfg: DictConfig, run: Callable[[DictConfig], Any]) -> str:
    """The best checkpoint of ``cfg`` with the changes of ``cfg.first``; trained unless it is there.

    One that was killed goes on; of several runs that need the same one at a time, one makes it and the others wait.

    Args:
        cfg: of the run that starts from it; not changed.
        run: trains a configuration.
    """
    own = first_config(cfg)
    folder = Path(own.run_dir)
    best = folder / f"{own.name}_best.ckpt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "summary.json").is_file() and best.is_file():
            log.info("starting from %s, which is there", best)
        else:
            log.info("first %s, in %s", own.name, folder)
            run(own)
    return str(best)


def first_config(cfg: DictConfig) -> DictConfig:
    """``cfg`` with the changes of ``cfg.first``, in a folder that is named after its settings."""
    own: DictConfig = OmegaConf.merge(cfg, cfg.first)  # type: ignore[assignment]
    OmegaConf.set_struct(own, False)
    own.update(first=None, start_from=None, resume="auto")
    settings = json.dumps(_without_folders({key: OmegaConf.select(own, key) for key in _SETS}), sort_keys=True)
    own.run_dir = str(
        Path(own.paths.checkpoints) / own.name / hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
    )
    return own


def _without_folders(value: Any) -> Any:
    """Plain values that do not change when the same run is kept elsewhere."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items() if key not in _FOLDERS}
    return value
