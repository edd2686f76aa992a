"""Sweeps: folders of their own for the runs, and a table of them at the end."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger("stagewise.sweep")
_OWN_FOLDER = "run_dir=${hydra:runtime.output_dir}"


def swept_keys(overrides: list[str]) -> list[str]:
    """Keys with more than one value.

    >>> swept_keys(["experiment=a,b", "seed=1", "optimizer.groups.clip.lr=1e-5,3e-6"])
    ['experiment', 'optimizer.groups.clip.lr']
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [o.get_key_element() for o in parsed if o.is_sweep_override()]


class SweepReport(Callback):
    """Hydra callback: keeps sweep runs apart from the phases' folders, and writes ``sweep.csv``.

    A multirun over ``experiment`` alone is a chain of phases and keeps their folders. Any other sweep trains in
    ``multirun/…/N``, so that it never overwrites a phase's best checkpoint.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Adds the folder override where something else than the experiment is swept."""
        overrides = OmegaConf.to_container(config.hydra.overrides.task)
        if set(swept_keys(overrides)) - {"experiment"}:  # type: ignore[arg-type]
            with open_dict(config):
                config.hydra.overrides.task.append(_OWN_FOLDER)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Leaves the job's result in its folder, where any launcher's jobs can be collected from."""
        if (
            "monitor" not in config
            or job_return.hydra_cfg is None
            or job_return.hydra_cfg.hydra.mode.name != "MULTIRUN"
        ):
            return
        done = job_return.status == JobStatus.COMPLETED
        row = {
            "job": job_return.hydra_cfg.hydra.job.num,
            "status": "done" if done else f"failed: {job_return._return_value}",
            **{o.partition("=")[0]: o.partition("=")[2] for o in job_return.overrides or [] if o != _OWN_FOLDER},
            "monitor": config.monitor.name,
            "mode": config.monitor.mode,
            "score": job_return._return_value if done else None,
            "run_dir": _run_dir(config, job_return),
        }
        folder = Path(job_return.hydra_cfg.hydra.runtime.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(row))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the runs, best first, and writes them as CSV."""
        folder = Path(config.hydra.sweep.dir)
        rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*/job.json"))]
        if not rows:
            return
        if len({row["monitor"] for row in rows}) == 1:
            sign = 1 if rows[0]["mode"] == "min" else -1
            rows.sort(key=lambda row: (row["score"] is None, sign * (row["score"] or 0)))
        names = list(dict.fromkeys(key for row in rows for key in row))
        with open(folder / "sweep.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            score = f"{row['score']:.4f}" if row["score"] is not None else row["status"]
            keys = [
                f"{k}={v}" for k, v in row.items() if k not in ("job", "status", "monitor", "mode", "score", "run_dir")
            ]
            log.info("%s %s  %s  %s", row["monitor"], score, " ".join(keys), row["run_dir"])
        log.info("written: %s", folder / "sweep.csv")


def _run_dir(config: DictConfig, job_return: JobReturn) -> str:
    """``config`` is resolved outside the job, where ``${hydra:…}`` may name another one."""
    own = _OWN_FOLDER in (job_return.overrides or [])
    return str(job_return.hydra_cfg.hydra.runtime.output_dir) if own else str(config.run_dir)  # type: ignore[union-attr]
