"""Sweeps: folders of their own for the runs, and a table of them at the end."""

import csv
import json
import logging
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger("stagewise.sweep")
_OWN_COLUMNS = ("job", "status", "monitor", "mode", "score", "run_dir")
_FOLD = "datamodule.fold"
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
        own = config.hydra.sweeper.get("params") or {}  # what an experiment sweeps by itself
        if {*swept_keys(overrides), *own} - {"experiment"}:  # type: ignore[arg-type]
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
            **figures_of_run(_run_dir(config, job_return), config.get("table") or []),
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
        _write(folder / "sweep.csv", rows)
        for row in rows:
            score = f"{row['score']:.4f}" if row["score"] is not None else row["status"]
            keys = [f"{k}={_short(v)}" for k, v in row.items() if k not in _OWN_COLUMNS]
            log.info("%s %s  %s  %s", row["monitor"], score, " ".join(keys), row["run_dir"])
        log.info("written: %s", folder / "sweep.csv")
        if repeated := [key for key in config.get("repeats") or [] if any(key in row for row in rows)]:
            summary = summarise(rows, repeated)
            _write(folder / "sweep_summary.csv", summary)
            for row in summary:
                log.info("mean over %s: %s", ", ".join(repeated), " ".join(f"{k}={_short(v)}" for k, v in row.items()))
            log.info("written: %s", folder / "sweep_summary.csv")
        for line in differences(rows, dict(config.get("beside") or {})):
            log.info("%s", line)
        if config.get("pooled"):
            pool_folds(rows, folder, instantiate(config.pooled))


def figures_of_run(run_dir: str, names: Iterable[str]) -> dict[str, float]:
    """Those figures of the run's own test that stand in the table."""
    path = Path(run_dir) / "evaluation_test" / "metrics.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {f"test/{name}": found[f"test/{name}"] for name in names if f"test/{name}" in found}


def summarise(rows: list[dict[str, Any]], repeated: list[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the runs that differ in seed or fold alone.

    >>> runs = [{"seed": "1", "lr": "a", "score": 1.0}, {"seed": "2", "lr": "a", "score": 3.0}]
    >>> summarise(runs, ["seed"])
    [{'lr': 'a', 'runs': 2, 'score mean': 2.0, 'score sd': 1.4142135623730951}]
    """
    summary = []
    for own, members in alike(rows, repeated).items():
        numbers = {k: [m[k] for m in members if isinstance(m.get(k), float)] for k in members[0]}
        figures: dict[str, Any] = {}
        for key, values in numbers.items():
            if values:
                figures[f"{key} mean"] = statistics.fmean(values)
                figures[f"{key} sd"] = statistics.stdev(values) if len(values) > 1 else None
        summary.append({**dict(own), "runs": len(members), **figures})
    return summary


def differences(rows: list[dict[str, Any]], beside: dict[str, str]) -> list[str]:
    """How far the test figures of each run lie from those of the run that ``beside`` names, of the same other settings.

    >>> runs = [{"trap": "none", "test/kappa": 0.25}, {"trap": "row_split", "test/kappa": 0.5}]
    >>> differences(runs, {"trap": "none"})
    ['trap=row_split beside none: test/kappa 0.5000 (+0.2500)']
    """
    lines = []
    for key, plain in beside.items():
        for members in alike(rows, [key]).values():
            base: dict[str, Any] = next((row for row in members if row.get(key) == plain), {})
            for row in members:
                figures = [name for name in row if name.startswith("test/") and name in base]
                found = [f"{name} {row[name]:.4f} ({row[name] - base[name]:+.4f})" for name in figures]
                if row is not base and found:
                    lines.append(f"{key}={row.get(key)} beside {plain}: {', '.join(found)}")
    return lines


def pool_folds(rows: list[dict[str, Any]], folder: Path, pool: Callable[[list[str], str], Any]) -> None:
    """Calls ``pool(run folders, output folder)`` for the finished runs that differ in their fold alone."""
    groups = alike([row for row in rows if row["status"] == "done" and _FOLD in row], [_FOLD])
    for number, members in enumerate(groups.values()):
        if len(members) > 1:
            name = "pooled" if len(groups) == 1 else f"pooled_{number}"
            pool([row["run_dir"] for row in sorted(members, key=lambda row: row["job"])], str(folder / name))


def alike(rows: list[dict[str, Any]], repeated: list[str]) -> dict[tuple[tuple[str, str], ...], list[dict[str, Any]]]:
    """The runs with the same settings but for ``repeated``, by these settings."""
    groups: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for row in rows:
        own = tuple((k, v) for k, v in row.items() if isinstance(v, str) and k not in (*repeated, *_OWN_COLUMNS))
        groups.setdefault(own, []).append(row)
    return groups


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _run_dir(config: DictConfig, job_return: JobReturn) -> str:
    """``config`` is resolved outside the job, where ``${hydra:…}`` may name another one."""
    own = _OWN_FOLDER in (job_return.overrides or [])
    return str(job_return.hydra_cfg.hydra.runtime.output_dir) if own else str(config.run_dir)  # type: ignore[union-attr]
