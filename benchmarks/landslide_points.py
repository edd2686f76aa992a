"""Does the network beat pixel models on a few hundred landslide points, over spatial folds?

    python benchmarks/landslide_points.py FOLDER      # --repeats N, --seeds N, --quick

FOLDER holds ``terrain_attributes.tif`` (bands slope, plan and profile curvature, elevation, log catchment area) and
``landslide_points.csv`` (x, y, landslide 0 or 1). Five folds by k-means on the places, in ``--repeats`` divisions, each
a run of ``experiment=landslide_points`` without the height above the sea, which names the place more than the ground;
logistic regression and random forest are fitted and scored in every run on the same pixels, and once more with the
height (in runs whose network hardly trains and is not reported). AUROC of landslide: mean over folds and repeats, the
mean over folds of each repeat, and how many folds the network wins. Settings, and to go without the height, were chosen
on folds inside the train part of each fold.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from timing import parse, parser_of, verdict, write

ROOT = Path(__file__).resolve().parents[1]
BAR, FOLDS = 0.79, 5
ATTRIBUTES = "{attributes:{path:terrain_attributes.tif,bands:{steepness:slope}}}"
WITHOUT, WITH = "[steepness,cplan,cprof,log10_carea]", "[steepness,cplan,cprof,elev,log10_carea]"
POINTS = "{class_column:landslide,class_values:{0:stable,1:landslide}}"
FIGURES = {
    "network": "test/auroc/landslide",
    "logistic regression": "test/baseline/logistic_regression/auroc/landslide",
    "random forest": "test/baseline/random_forest/auroc/landslide",
}


def sweep(data: Path, work: Path, folds: int, repeats: int, names: str, *more: str) -> list[dict[str, str]]:
    """One run for each fold of each division; rows of the sweep's table."""
    command = [sys.executable, "train.py", "-m", "experiment=landslide_points", f"datamodule.root={data}"]
    command += [f"datamodule.channels.inputs={ATTRIBUTES}", f"datamodule.channels.names={names}"]
    command += [f"datamodule.labels={{file:landslide_points.csv,settings:{POINTS}}}"]
    command += [f"datamodule.fold={','.join(map(str, range(folds)))}"]
    command += [f"datamodule.splits.seed={','.join(map(str, range(repeats)))}"]
    command += [f"paths.cache={work}/cache", f"paths.checkpoints={work}/runs", f"hydra.sweep.dir={work}/sweep"]
    command += ["+trainer.enable_progress_bar=false", "~logger", *more]
    subprocess.run(command, cwd=ROOT, check=True)
    with open(work / "sweep" / "sweep.csv") as file:
        return list(csv.DictReader(file))


def figures_of(model: str, height: str, rows: list[dict[str, str]], ours: list[float]) -> dict[str, Any]:
    """Mean over all, means of the repeats, folds that the network wins."""
    by_repeat = defaultdict(list)
    for row in rows:
        by_repeat[row["datamodule.splits.seed"]].append(float(row[FIGURES[model]]))
    theirs = [value for values in by_repeat.values() for value in values]
    means = [statistics.fmean(values) for values in by_repeat.values()]
    wins = sum(a > float(row[FIGURES[model]]) for a, row in zip(ours, rows, strict=True))
    figures = {"auroc": statistics.fmean(theirs), "by repeat": means, "network wins": wins, "runs": len(rows)}
    return {"model": model, "height": height, **figures}


def report(options: Any, rows: list[dict[str, str]], high: list[dict[str, str]]) -> None:
    """Writes the table; ``high`` are the runs with the height, none while they have not been."""
    ours = [float(row[FIGURES["network"]]) for row in rows]
    figures = [figures_of(model, "without", rows, ours) for model in FIGURES]
    figures += [figures_of(model, "with", high, ours) for model in FIGURES if high and model != "network"]
    table = [
        {
            "model": found["model"],
            "height": found["height"],
            "AUROC": f"{found['auroc']:.3f}",
            "by repeat": ", ".join(f"{value:.3f}" for value in found["by repeat"]),
            "folds the network wins": f"{found['network wins']} of {found['runs']}",
        }
        for found in figures
    ]
    write("landslide_points", options, {"figures": figures}, table)
    print(verdict("AUROC of the network", figures[0]["auroc"], BAR, at_most=False))


def main() -> None:
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parse(parser)
    if not (options.data / "landslide_points.csv").is_file():
        sys.exit(f"no landslide_points.csv in '{options.data}'; pass the folder that has it.")
    folds, repeats = (2, 1) if options.quick else (FOLDS, options.repeats)
    data, options.data = options.data.resolve(), options.data.name  # the table is kept, the machine's paths are not
    with tempfile.TemporaryDirectory() as work:
        rows = sweep(data, Path(work) / "without", folds, repeats, WITHOUT)
        report(options, rows, [])  # the second sweep takes long: what is measured is kept
        report(options, rows, sweep(data, Path(work) / "with", folds, repeats, WITH, "+trainer.limit_train_batches=1"))


if __name__ == "__main__":
    main()
