"""Does the network beat what the boxes alone say, on real pictures, over location folds?

    python benchmarks/drains_folds.py FOLDER      # --settings "KEY=VALUE …", --quick

FOLDER is a YOLO folder with ``locations.csv`` (stem, location, fold). Every fold of that file is the test split of a
run of ``experiment=drains_clip demo=drains``: the network's "pretrained" start is a small CLIP of generated captions,
since published weights are files that not everybody has. Two networks a fold: pixels with box features, and pixels
alone.
The objects of all folds are pooled; 95 % intervals are over pictures, of the figures and of the lead over the forest on
box features, which is fitted on the same train objects.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import parse, parser_of, verdict, write

from stagewise.datamodules.drains.vocabulary import CLASS_NAMES
from stagewise.lightning_modules.drains.scores import confusions, intervals, lead, scores

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "pixels and box features": ["mode=vision_features"],
    "pixels": [],
}
QUICK = ["stages={all:{epochs:1}}", "trainer.max_epochs=2", "lightning_module.captions.epochs=1"]
FIGURES = ("accuracy", "macro_f1")
Columns = dict[str, list[str]]


def folds_of(data: Path) -> list[int]:
    """Those that ``locations.csv`` names."""
    with open(data / "locations.csv") as file:
        return sorted({int(row["fold"]) for row in csv.DictReader(file)})


def answers(data: Path, work: Path, folds: list[int], more: list[str]) -> Columns:
    """``answers.csv`` of every fold's test, one below the other."""
    command = [sys.executable, "train.py", "-m", "experiment=drains_clip", "demo=drains", f"datamodule.root={data}"]
    command += [f"datamodule.splits.fold={','.join(map(str, folds))}", "+trainer.enable_progress_bar=false", "~logger"]
    command += [f"paths.cache={work.parent}/cache", f"hydra.sweep.dir={work}", *more]
    subprocess.run(command, cwd=ROOT, check=True)
    found: Columns = {}
    for path in sorted(work.glob("*/**/evaluation_test/answers.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    found.setdefault(name, []).append(value)
    return found


def row_of(name: str, column: str, found: Columns) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures and the line of the table."""
    truth, said, forest = (
        np.array([CLASS_NAMES.index(one) for one in found[key]]) for key in ("truth", column, "features_forest")
    )
    picture = np.unique(found["picture"], return_inverse=True)[1]
    ours, theirs = confusions(truth, said, picture), confusions(truth, forest, picture)
    bounds, values = intervals(ours), scores(ours.sum(0))
    figures: dict[str, Any] = {"model": name, "objects": len(truth)}
    line = {"model": name}
    for key in FIGURES:
        ahead = float(values[key] - scores(theirs.sum(0))[key])
        figures[key], figures[f"lead in {key}"] = [float(values[key]), *bounds[key]], [ahead, *lead(ours, theirs, key)]
        for what in (key, f"lead in {key}"):
            line[what] = "{:.3f} ({:.3f} to {:.3f})".format(*figures[what])
    return figures, line


def main() -> None:
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", default="", help="more overrides of every run")
    options = parse(parser)
    if not (options.data / "locations.csv").is_file():
        sys.exit(f"no locations.csv in '{options.data}'; pass the folder that has it.")
    data, options.data = options.data.resolve(), options.data.name  # the table is kept, the machine's paths are not
    folds = folds_of(data)[: 2 if options.quick else None]
    more = options.settings.split() + (QUICK if options.quick else [])
    rows: list[tuple[dict[str, Any], dict[str, str]]] = []
    with tempfile.TemporaryDirectory() as work:
        for number, (name, own) in enumerate(NETWORKS.items()):
            found = answers(data, Path(work) / str(number), folds, own + more)
            rows.append(row_of(name, "network", found))
            if not number:
                baselines = [key for key in ("features_forest", "majority_of_type", "zero_shot") if key in found]
                rows += [row_of(key.replace("_", " "), key, found) for key in baselines]
            write("drains_folds", options, {"figures": [one for one, _ in rows]}, [line for _, line in rows])
    print(verdict("lead in macro-F1 over the forest", rows[0][0]["lead in macro_f1"][0], 0.0, at_most=False))


if __name__ == "__main__":
    main()
