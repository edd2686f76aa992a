"""Sweeps: folders of their own for the runs, a table and a picture of them at the end."""

import json
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stagewise.command_line import OWN_FOLDER, cause_of, check_swept, has_own_folder, one_line_errors, swept_keys
from stagewise.run_processes import started_by_launcher
from stagewise.sweep_space import Factors, check_storage, sweep_rates
from stagewise.sweep_table import (
    JOB,
    Row,
    collect,
    differences,
    figures_of_run,
    finite,
    pool_folds,
    replace_text,
    settings_of,
    short,
    summarise,
    swept_columns,
    write,
)

log = logging.getLogger("stagewise.sweep")
_TABLE = "sweep.csv"
_ERROR = "error.txt"


class SweepReport(Callback):
    """Hydra callback: keeps sweep runs apart from the phases' folders, and writes ``sweep.csv`` and ``sweep.png``.

    A multirun over ``experiment`` alone is a chain of phases: it keeps their folders, and ends with the first that
    fails. Any other sweep trains in ``multirun/…/N``, so that it never overwrites a phase's best checkpoint; a run that
    fails stands in the table with its error, its traceback in ``error.txt``, and the others go on, unless a launcher of
    processes has started the sweep: its other processes may hang in the run that failed. The program's exit code is
    then 1. The table is there from the first run's end on; process 0 writes it.

    Args:
        draw: config of what writes the picture, called with the rows, the swept keys and the path; made at the end.
        rates: factors on the learning rate of each group that a stage opens, to sweep; see
            :func:`~stagewise.sweep_space.sweep_rates`.
    """

    def __init__(self, draw: Mapping[str, Any] | None = None, rates: Factors | None = None) -> None:
        self.draw, self.rates = _plain(draw), _plain(rates)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Adds the folder override where something else than the experiment is swept; refuses what cannot work."""
        with one_line_errors():
            if self.rates is not None:
                sweep_rates(config, self.rates)
            own = config.hydra.sweeper.get("params") or {}  # what an experiment sweeps by itself
            overrides = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in own.items())]
            check_swept(config, overrides)
            check_storage(config.hydra.sweeper)
        if {*swept_keys(overrides), *own} - {"experiment"}:
            with open_dict(config.hydra), read_write(config.hydra):
                config.hydra.overrides.task.append(OWN_FOLDER)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Leaves the job's result in its folder, where any launcher's jobs can be collected from."""
        hydra = job_return.hydra_cfg and job_return.hydra_cfg.hydra
        if "monitor" not in config or hydra is None or hydra.mode.name != "MULTIRUN":
            return
        folder = Path(hydra.runtime.output_dir)
        value = job_return._return_value
        is_failed = job_return.status == JobStatus.FAILED
        said = "".join(traceback.format_exception(value)) if is_failed else ""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / JOB, json.dumps(row_of(config, job_return, hydra.job.num)))
            write(folder.parent / _TABLE, collect(folder.parent))
            if is_failed:
                (folder / _ERROR).write_text(said)
        if is_failed:
            is_chain = not has_own_folder(job_return.overrides or [])
            log.error("run %s failed: %s", hydra.job.num, said if is_chain else error_line(value))
            if is_chain or started_by_launcher(config):  # a chain's next would start from an older run of this phase
                raise SystemExit(1)
        if job_return.status == JobStatus.FAILED or (isinstance(value, float) and finite(value) is None):
            # no sweeper is to raise the error again; for Optuna None is a failed trial, NaN would end the sweep
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the runs, best first, writes the tables and the picture, and ends with 1 where a run failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = collect(folder)
        if not rows or rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        write(folder / _TABLE, rows)
        told = {*swept_columns(rows), *(key for row in rows for key in row if key.startswith("test/"))}
        for row in rows:
            score = f"{row['score']:.4f}" if row["score"] is not None else row["status"]
            keys = [f"{k}={short(v)}" for k, v in row.items() if k in told]
            log.info("%s %s  %s  %s", row["monitor"], score, " ".join(keys), row["run_dir"])
        log.info("written: %s", folder / _TABLE)
        self._add_to_table(config, folder, rows)
        if failed := [row for row in rows if row["status"].startswith("failed")]:
            log.error("%d of %d runs failed; %s has the errors", len(failed), len(rows), folder / _TABLE)
            raise SystemExit(1)

    def _add_to_table(self, config: DictConfig, folder: Path, rows: list[Row]) -> None:
        keys, scored = swept_columns(rows), [row for row in rows if row["score"] is not None]
        if self.draw and keys and scored and len({row["monitor"] for row in rows}) == 1:
            instantiate(self.draw)(rows, keys, str(folder / "sweep.png"))
            log.info("written: %s", folder / "sweep.png")
        repeated = [key for key in config.get("repeats") or [] if any(key in row for row in rows)]
        if repeated and (summary := summarise(scored, repeated)):
            write(folder / "sweep_summary.csv", summary)
            for row in summary:
                log.info("mean over %s: %s", ", ".join(repeated), " ".join(f"{k}={short(v)}" for k, v in row.items()))
            log.info("written: %s", folder / "sweep_summary.csv")
        for line in differences(rows, dict(config.get("beside") or {})):
            log.info("%s", line)
        if config.get("pooled"):
            pool_folds(rows, folder, instantiate(config.pooled))


def row_of(config: DictConfig, job_return: JobReturn, number: int) -> Row:
    """The line of the table for one run."""
    # `config` is resolved outside the job, where ${hydra:…} may name another one
    own = has_own_folder(job_return.overrides or [])
    run_dir = str(job_return.hydra_cfg.hydra.runtime.output_dir if own else config.run_dir)  # type: ignore[union-attr]
    value = job_return._return_value
    is_done = job_return.status == JobStatus.COMPLETED
    return {
        "job": number,
        "status": _how_it_ended(Path(run_dir), value) if is_done else f"failed: {error_line(value)}",
        **settings_of(job_return.overrides or []),
        "monitor": config.monitor.name,
        "mode": config.monitor.mode,
        "score": finite(value) if is_done else None,
        **figures_of_run(run_dir, config.get("table") or []),
        "run_dir": run_dir,
    }


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def error_line(error: BaseException) -> str:
    r"""Type and first line of what went wrong.

    >>> error_line(FileNotFoundError("no train.csv\nin the folder"))
    'FileNotFoundError: no train.csv'
    """
    cause = cause_of(error)
    return f"{type(cause).__name__}: {str(cause).strip()}".splitlines()[0]


def _how_it_ended(run_dir: Path, value: Any) -> str:
    if finite(value) is None:
        return "no score"
    summary = run_dir / "summary.json"
    reason = str(json.loads(summary.read_text())["stopped_by"]) if summary.is_file() else ""
    return reason if reason.startswith("pruned") else "done"
