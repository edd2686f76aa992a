"""The runs of a sweep as rows: collected from their folders, averaged, compared, pooled."""

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
JOB = "job.json"  # a run's row, in its folder
OWN_COLUMNS = ("job", "status", "monitor", "mode", "score", "run_dir")
_FOLD = "datamodule.fold"
_LONG = 8  # characters of a number
_HOW = ("resume", "launcher")


def settings_of(overrides: Iterable[str]) -> dict[str, str]:
    """Columns of the table: what the run was started with, but for what says how, and values taken from another key.

    >>> settings_of(["seed=1", "resume=auto", "run_dir=${hydra:runtime.output_dir}"])
    {'seed': '1'}
    """
    pairs = (one.partition("=") for one in overrides)
    return {key: value for key, _, value in pairs if key not in _HOW and not value.startswith("$")}


def collect(folder: Path) -> list[Row]:
    """Rows of the sweep in ``folder``, best first where they have the same monitor; those without a score last."""
    found = (path for path in sorted(folder.glob(f"*/{JOB}")) if "_until_" not in path.parent.name)
    rows = [json.loads(path.read_text()) for path in found]
    if len({row["monitor"] for row in rows}) == 1:
        sign = 1 if rows[0]["mode"] == "min" else -1
        rows.sort(key=lambda row: (row["score"] is None, sign * (row["score"] or 0), row["job"]))
    return rows


def finite(value: Any) -> float | None:
    """A number, or ``None`` for what is none.

    >>> finite(2), finite(float("nan")), finite(None)
    (2.0, None, None)
    """
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def ended_before(folder: Path, overrides: Iterable[str]) -> tuple[str, float | None] | None:
    """Status and score of the run that ended in ``folder``; the status is ``other`` where its settings were others.

    That happens where Optuna goes on after a run that had failed has succeeded, and proposes something else.
    """
    path = folder / JOB
    if not path.is_file():
        return None
    row = json.loads(path.read_text())
    return (row["status"], row["score"]) if _settings(row) == settings_of(overrides) else ("other", None)


def figures_of_run(run_dir: str, names: Iterable[str]) -> dict[str, float]:
    """Those figures of the run's own test that stand in the table."""
    path = Path(run_dir) / "evaluation_test" / "metrics.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {f"test/{name}": found[f"test/{name}"] for name in names if f"test/{name}" in found}


def swept_columns(rows: list[Row]) -> list[str]:
    """Settings in which the runs differ.

    >>> swept_columns([{"job": 0, "seed": "1", "lr": "1"}, {"job": 1, "seed": "1", "lr": "2"}])
    ['lr']
    """
    keys = dict.fromkeys(key for row in rows for key in _settings(row))
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]


def _settings(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in OWN_COLUMNS and not key.startswith("test/")}


def summarise(rows: list[Row], repeated: list[str]) -> list[Row]:
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


def differences(rows: list[Row], beside: dict[str, str]) -> list[str]:
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


def pool_folds(rows: list[Row], folder: Path, pool: Callable[[list[str], str], Any]) -> None:
    """Calls ``pool(run folders, output folder)`` for the finished runs that differ in their fold alone."""
    groups = alike([row for row in rows if row["status"] == "done" and _FOLD in row], [_FOLD])
    for number, members in enumerate(groups.values()):
        if len(members) > 1:
            name = "pooled" if len(groups) == 1 else f"pooled_{number}"
            pool([row["run_dir"] for row in sorted(members, key=lambda row: row["job"])], str(folder / name))


def alike(rows: list[Row], repeated: list[str]) -> dict[tuple[tuple[str, str], ...], list[Row]]:
    """The runs with the same settings but for ``repeated``, by these settings."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        own = tuple((k, v) for k, v in row.items() if isinstance(v, str) and k not in (*repeated, *OWN_COLUMNS))
        groups.setdefault(own, []).append(row)
    return groups


def write(path: Path, rows: list[Row]) -> None:
    """As CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is whole whenever another process reads it; of several that write at a time one wins."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def short(value: Any) -> str:
    """A cell as text; of a number that was drawn at random its first digits.

    >>> short(0.25), short("123456"), short("0.001229607110732572")
    ('0.2500', '123456', '0.00123')
    """
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value)
    try:
        return f"{float(text):.3g}" if len(text) > _LONG else text
    except ValueError:
        return text
