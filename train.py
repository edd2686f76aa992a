"""Trains one experiment: ``python train.py experiment=geopak_phase1``."""

import gc
import logging
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from stagewise.command_line import PREEMPTED, is_one_of_many, offering_names, one_line_errors
from stagewise.first_run import first_checkpoint
from stagewise.run_apart import must_run_apart, run_apart
from stagewise.run_processes import SharedFolder, quiet_others, share_folder
from stagewise.sweep_table import ended_before

log = logging.getLogger("stagewise.train")


def run(cfg: DictConfig) -> float | None:
    """Fits, validates the best checkpoint, and returns its monitored value (what a sweep minimises or maximises)."""
    if cfg.get("first") and not cfg.start_from:
        resume_from(cfg, parts_of(cfg)[2])  # what cannot work is refused before another run trains
        cfg.start_from = first_checkpoint(cfg, run)
    check_start(cfg)
    quiet_others()
    share_folder(cfg)
    return fit(cfg)


def fit(cfg: DictConfig) -> float | None:
    """:func:`run` without what comes before it, in each of its processes."""
    ignore_expected_warnings()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule, module, callbacks = parts_of(cfg)
    module.provenance = {"datamodule": OmegaConf.to_container(cfg.datamodule, resolve=True), "experiment": cfg.name}
    checkpoint, folder = resume_from(cfg, callbacks), Path(cfg.run_dir)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    goes_on = checkpoint is not None and Path(checkpoint).absolute().parent == folder.absolute()
    with nullcontext() if goes_on else fresh_folder(folder):
        loggers = [instantiate(c) for c in (cfg.get("logger") or {}).values()]
        watched = [SharedFolder(cfg.run_dir), *callbacks]
        trainer: L.Trainer = instantiate(cfg.trainer, callbacks=watched, logger=loggers, **bars_of(cfg.trainer))
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    closing = closing_lines(cfg.name, callbacks)  # the best checkpoint puts its own state into the callbacks
    finish = finish_of(module, callbacks)
    best, score = trainer.checkpoint_callback.best_model_path, None  # type: ignore[union-attr]
    if best:
        trainer.validate(module, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
        score = trainer.callback_metrics[cfg.monitor.name].item()
        if finish:
            finish(trainer, datamodule, best, cfg.run_dir)
    for level, line in closing:
        log.log(level, "%s", line)
    return score


def ignore_expected_warnings() -> None:
    """Frozen on purpose; Lightning's own use; a model without parameters."""
    for expected in ("in eval mode at the start of training", "LeafSpec", ".configure_optimizers. returned .None."):
        warnings.filterwarnings("ignore", message=f".*{expected}")


def parts_of(cfg: DictConfig) -> tuple[L.LightningDataModule, Any, list[L.Callback]]:
    """Data module, module and callbacks of a run."""
    made = instantiate(cfg.datamodule), instantiate(cfg.lightning_module)
    return *made, [instantiate(c) for c in cfg.callbacks.values() if c]


def bars_of(trainer: DictConfig) -> dict[str, bool]:
    """No progress bars where the output is a file, unless they are asked for: it has the lines of each epoch."""
    return {} if sys.stdout.isatty() or "enable_progress_bar" in trainer else {"enable_progress_bar": False}


def finish_of(module: Any, callbacks: list[L.Callback]) -> Callable[..., Any] | None:
    """What only a finished model can have, such as a calibration and a test; a run that a sweep has pruned has none."""
    finish = getattr(module, "finish", None)
    return finish if callable(finish) and not any(getattr(c, "pruned", False) for c in callbacks) else None


def closing_lines(name: str, callbacks: list[L.Callback]) -> list[tuple[int, str]]:
    """Level and text of a run's last lines: what each stage reached, and the red flags that ended it."""
    stages = [c.stage_summary() for c in callbacks if hasattr(c, "stage_summary")]
    flags = [c.reason for c in callbacks if getattr(c, "red_flag", False) and c.reason]  # type: ignore[attr-defined]
    return [(logging.INFO, one) for one in stages] + [
        (logging.ERROR, f"{name} ended by a red flag: {one}") for one in flags
    ]


def check_start(cfg: DictConfig) -> None:
    """Refuses to start from a checkpoint that is not there; names the command that makes it."""
    if cfg.start_from and not Path(cfg.start_from).is_file():
        if not cfg.made_by:
            raise FileNotFoundError(f"no checkpoint at start_from='{cfg.start_from}'; pass a file, or leave it out.")
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


def given(options: DictConfig, taker: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Those options that are not null, as plain values: null is the default of whoever takes them.

    Raises:
        ValueError: an option that ``taker`` does not take.
    """
    plain = OmegaConf.to_container(options, resolve=True)
    found = {str(key): value for key, value in plain.items() if value is not None}  # type: ignore[union-attr]
    takes = signature(taker).parameters if taker else {}
    known = [name for name, one in takes.items() if one.kind != one.VAR_KEYWORD]
    if taker and len(known) == len(takes) and (unknown := [key for key in found if key not in known]):
        own = ", ".join(key for key in plain if key in known) or "none"  # type: ignore[union-attr]
        raise ValueError(f"options.{unknown[0]} means nothing to this checkpoint; it takes {own}; leave it out.")
    return found


@offering_names("train")
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Adds Hydra to :func:`run`; what a user can mend ends in one line, and in a sweep as a line of its table."""
    gc.freeze()  # what was imported stays: each full collection would look at all of it again
    try:
        with nullcontext() if is_one_of_many() else one_line_errors():
            return job(cfg)
    except SystemExit as end:
        if end.code == PREEMPTED:
            folder = f" hydra.sweep.dir={HydraConfig.get().sweep.dir}" if is_one_of_many() else ""
            log.warning("go on with the same command and%s resume=auto", folder)
        raise
    finally:
        gc.unfreeze()


def job(cfg: DictConfig) -> float | None:
    """:func:`run`; where a sweep goes on (``resume=auto``), a run of it that has ended is not made again."""
    if is_one_of_many() and cfg.resume == "auto":
        status, score = ended_before(Path(cfg.run_dir), HydraConfig.get().overrides.task) or ("failed", None)
        if status == "other":
            cfg.resume = None
        elif not status.startswith("failed"):
            log.info("%s: %s, score %s", cfg.run_dir, status, score)
            return score
    if must_run_apart(cfg):
        check_start(cfg)  # names the command line, which the other program does not know
        return run_apart(cfg)
    return run(cfg)


if __name__ == "__main__":
    main()
