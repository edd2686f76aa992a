"""Trains one experiment: ``python train.py experiment=geopak_phase1``."""

import errno
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from stagewise.first_run import first_checkpoint

log = logging.getLogger("stagewise.train")

PREEMPTED = 75  # exit code of a run that ExactResume saved after SIGTERM: run the command again


def run(cfg: DictConfig) -> float | None:
    """Fits, validates the best checkpoint, and returns its monitored value (what a sweep minimises or maximises)."""
    if cfg.get("first") and not cfg.start_from:
        cfg.start_from = first_checkpoint(cfg, run)
    check_start(cfg)
    # frozen on purpose; Lightning's own use; a model without parameters
    for expected in ("in eval mode at the start of training", "LeafSpec", ".configure_optimizers. returned .None."):
        warnings.filterwarnings("ignore", message=f".*{expected}")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule, module = instantiate(cfg.datamodule), instantiate(cfg.lightning_module)
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c]
    module.provenance = {"datamodule": OmegaConf.to_container(cfg.datamodule, resolve=True), "experiment": cfg.name}
    checkpoint, folder = resume_from(cfg, callbacks), Path(cfg.run_dir)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    goes_on = checkpoint is not None and Path(checkpoint).absolute().parent == folder.absolute()
    with nullcontext() if goes_on else fresh_folder(folder):
        loggers = [instantiate(c) for c in (cfg.get("logger") or {}).values()]
        trainer: L.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    best, score = trainer.checkpoint_callback.best_model_path, None  # type: ignore[union-attr]
    if best:
        trainer.validate(module, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
        score = trainer.callback_metrics[cfg.monitor.name].item()
        if callable(finish := getattr(module, "finish", None)):
            finish(trainer, datamodule, best, cfg.run_dir)  # what only a finished model can have, such as a calibration
    for summary in (c.stage_summary() for c in callbacks if hasattr(c, "stage_summary")):
        log.info("%s", summary)
    for flag in (c.reason for c in callbacks if getattr(c, "red_flag", False) and c.reason):
        log.error("%s ended by a red flag: %s", cfg.name, flag)
    return score


def check_start(cfg: DictConfig) -> None:
    """Refuses to start from a checkpoint that is not there; names the command that makes it."""
    if cfg.start_from and not Path(cfg.start_from).is_file():
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        kept = [o for o in overrides if o.split("=")[0] in ("demo", "paths.checkpoints", "datamodule.root")]
        command = shlex.join(["python", "train.py", f"experiment={cfg.made_by}", *kept])
        raise FileNotFoundError(f"no checkpoint at start_from='{cfg.start_from}'; make it with:\n  {command}")


def resume_from(cfg: DictConfig, callbacks: list[L.Callback]) -> str | None:
    """The checkpoint that ``resume`` asks for; ``auto`` finds none in the folder of a run that never started."""
    if cfg.resume in (None, "auto"):
        finder = next((c.find for c in callbacks if hasattr(c, "find")), None)
        if cfg.resume and not finder:
            raise ValueError("resume=auto needs callbacks.resume, which writes what it goes on from; leave it in.")
        return finder(cfg.run_dir) if cfg.resume and finder else None
    if not Path(cfg.resume).is_file():
        raise FileNotFoundError(f"no checkpoint at resume='{cfg.resume}'; pass a file, or resume=auto.")
    return str(cfg.resume)


@contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """Moves an earlier run aside, never overwrites it; moves it back if the new one fails before its first epoch."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    old = folder.with_name(f"{folder.name}_until_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied:
        folder.rename(old)
        log.info("the run before is kept as %s", old)
    try:
        check_writable(folder)
        yield
    except BaseException:
        if not any(folder.glob("*.c*")):  # neither a checkpoint nor losses.csv
            shutil.rmtree(folder, ignore_errors=True)
            if occupied:
                old.rename(folder)
        raise


def check_writable(folder: Path) -> None:
    """Refuses a folder that the run could not write its checkpoints to, before anything trains."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").write_bytes(b"x")
        (folder / ".probe").unlink()
    except OSError as error:
        raise OSError(f"cannot write to run_dir='{folder}' ({error.strerror}); pass paths.checkpoints=DIR.") from error


def given(options: DictConfig) -> dict[str, Any]:
    """Those options that are not null, as plain values: null is the default of whoever takes them."""
    plain = OmegaConf.to_container(options, resolve=True)
    return {str(key): value for key, value in plain.items() if value is not None}  # type: ignore[union-attr]


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Adds Hydra to :func:`run`; what a user can mend ends in one line."""
    try:
        with one_line_errors():
            return run(cfg)
    except SystemExit as end:
        if end.code == PREEMPTED:
            log.warning("go on with the same command and resume=auto")
        raise


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with the message alone; HYDRA_FULL_ERROR=1 shows where it came from."""
    try:
        yield
    except (ValueError, OSError, InstantiationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "; free some space, or pass paths.checkpoints=FOLDER on another disk" if full else ""
        print(f"error: {cause}{hint}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
