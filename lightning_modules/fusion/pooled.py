"""One report over the test rows of several folds: each row was answered by a model that never saw its patient."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datamodules.errors import StagewiseError
from ..text_tables import number, table
from .comparison import SINGLES, Answers, best_single, compare_modalities, compare_rules
from .evaluation import write_metrics
from .pictures import draw_all
from .report import lead_lines, modality_table, rule_lines
from .row_file import FILE, RowFile, read_rows, write_rows
from .scores import DRAWS, corrected_p, kappa_of

log = logging.getLogger(__name__)
_FOLDER = "evaluation_test"


def pool_runs(folders: Sequence[str], output: str, draws: int = DRAWS) -> tuple[dict[str, float], str]:
    """Pools the folds of one experiment.

    Args:
        folders: of the runs, one a fold; each has ``evaluation_test/rows.csv``.
        output: folder for ``pooled_rows.csv``, ``pooled.json``, ``pooled.txt`` and the pictures.
        draws: of the intervals.

    Returns:
        ``pooled/name`` -> number of :func:`~.comparison.compare_modalities` and :func:`~.comparison.compare_rules` over
        all rows; ``fold/modality/kappa/mean`` and ``/sd`` over the folds; ``fold/lead/best_single/kappa/p`` of
        :func:`~.scores.corrected_p`. And the report.

    Raises:
        DatasetNotFoundError: a run without rows.
        StagewiseError: runs of other classes or modalities, or a row or patient that two folds have tested.
    """
    runs = [read_rows(Path(folder) / _FOLDER / FILE) for folder in folders]
    whole = _joined(runs, folders)
    metrics = compare_modalities(whole.answers, whole.label, whole.group, draws)
    metrics |= compare_rules(whole.rules, whole.answers, whole.label, whole.group, draws)
    metrics |= _over_folds(runs, folders)
    target = Path(output)
    target.mkdir(parents=True, exist_ok=True)
    title = f"test rows of {len(runs)} folds"
    draw_all(target, whole.answers, whole.label, whole.classes, metrics, title)
    _write_pooled(target / "pooled_rows.csv", runs)
    text = _as_text(metrics, title, runs)
    (target / "pooled.txt").write_text(f"{text}\n", encoding="utf-8")
    named = {f"pooled/{name}": value for name, value in metrics.items()}
    write_metrics(target / "pooled.json", named)
    log.info("%s\nwritten: %s", text, target)
    return named, text


def _joined(runs: Sequence[RowFile], folders: Sequence[str]) -> RowFile:
    first = runs[0]
    for run, folder in zip(runs, folders):
        if run.classes != first.classes or list(run.answers)[-1] != list(first.answers)[-1]:
            raise StagewiseError(
                f"'{folder}' has other classes or another modality than '{folders[0]}'; pool one model."
            )
    ids, fold, group = (np.concatenate([getattr(run, key) for run in runs]) for key in ("ids", "fold", "group"))
    if len(np.unique(ids)) < len(ids):
        twice = next(one for one in ids if (ids == one).sum() > 1)
        raise StagewiseError(f"row '{twice}' was tested by two of the runs; give one run for each fold, of one seed.")
    tested = {(one, run) for run, own in enumerate(runs) for one in set(own.group.tolist())}
    if len(tested) > len(np.unique(group)):
        raise StagewiseError("a patient's rows were tested by two of the runs: their splits are by row; use by=group.")
    answers, rules = (_shared([getattr(run, key) for run in runs]) for key in ("answers", "rules"))
    return RowFile(ids, group, fold, np.concatenate([run.label for run in runs]), answers, first.classes, rules)


def _shared(parts: Sequence[Answers]) -> dict[str, Any]:
    """Name -> (N, K) over all runs, of what every run has."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _over_folds(runs: Sequence[RowFile], folders: Sequence[str]) -> dict[str, float]:
    kappa = {
        name: np.array([kappa_of(run.answers[name], run.label) for run in runs])
        for name in runs[0].answers
        if all(name in run.answers for run in runs)
    }
    metrics: dict[str, float] = {}
    for name, values in kappa.items():
        sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        metrics |= {f"fold/{name}/kappa/mean": float(values.mean()), f"fold/{name}/kappa/sd": sd}
    if "fusion" in kappa and set(SINGLES) <= set(kappa):
        single = best_single({name: float(kappa[name].mean()) for name in SINGLES})
        lead = kappa["fusion"] - kappa[single]
        metrics["fold/lead/best_single/kappa"] = float(lead.mean())
        metrics["fold/lead/best_single/kappa/p"] = corrected_p(lead, _test_share(runs, folders))
    return metrics


def _test_share(runs: Sequence[RowFile], folders: Sequence[str]) -> float:
    """Test rows for each train row."""
    train = []
    for folder in folders:
        path = Path(folder) / _FOLDER / "metrics.json"
        train.append(float(json.loads(path.read_text())["test/train_rows"]) if path.is_file() else float("nan"))
    tested = [len(run.label) for run in runs]
    others = [sum(tested) - own for own in tested]  # what is not test, where a run does not say how much it trained on
    return float(
        np.mean([own / (rows if rows == rows else max(rest, 1)) for own, rows, rest in zip(tested, train, others)])
    )


def _write_pooled(path: Path, runs: Sequence[RowFile]) -> None:
    parts = []
    for number_of_run, run in enumerate(runs):
        part = path.with_name(f".{path.name}.{number_of_run}")
        rows = {"ids": run.ids, "group": run.group, "label": run.label}
        write_rows(part, rows, run.answers, run.classes, int(run.fold[0]), "test", run.rules)
        parts.append(part.read_text(encoding="utf-8").splitlines(keepends=True))
        part.unlink()
    path.write_text("".join(parts[0][:1] + [line for part in parts for line in part[1:]]), encoding="utf-8")


def _as_text(metrics: dict[str, float], title: str, runs: Sequence[RowFile]) -> str:
    names = [name for name in runs[0].answers if f"{name}/kappa" in metrics]
    header = ["fold", *(f"kappa of {name.replace('_', ' ')}" for name in names)]
    rows = [[str(run.fold[0]), *(number(kappa_of(run.answers[name], run.label)) for name in names)] for run in runs]
    rows.append(
        [
            "mean (sd)",
            *(f"{number(metrics[f'fold/{n}/kappa/mean'])} ({number(metrics[f'fold/{n}/kappa/sd'])})" for n in names),
        ]
    )
    lines = [
        f"{title}: {metrics['rows']:.0f} rows of {metrics['patients']:.0f} patients, none answered by a model that saw "
        "its patient; intervals of 95 % over patients in brackets",
        "",
        *modality_table(metrics, names),
        *lead_lines(metrics),
        *rule_lines(metrics),
        "",
        *table(header, rows),
    ]
    if "fold/lead/best_single/kappa/p" in metrics:
        lead, p = (number(metrics[f"fold/lead/best_single/kappa{end}"]) for end in ("", "/p"))
        lines.append(f"  fusion minus the best single modality over the folds: kappa {lead}, corrected p {p}")
    return "\n".join(lines)
