"""Does the network beat pixel models on a few hundred landslide points, over spatial folds?

    python benchmarks/landslide_points.py FOLDER      # --repeats N, --seeds N, --quick

FOLDER holds ``terrain_attributes.tif`` (bands slope, plan and profile curvature, elevation, log catchment area) and
``landslide_points.csv`` (x, y, landslide 0 or 1). Five folds by k-means on the places, in ``--repeats`` divisions, each
a run of ``experiment=landslide_points``; logistic regression and random forest are fitted and scored in every run on
the same pixels. All of it with the height above the sea and without: it names the place more than the ground. AUROC of
landslide: mean over folds and repeats, the mean over folds of each repeat, and how many folds the network wins.
Settings, and to go without the height, were chosen on folds inside the train part of each fold.
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
CHANNELS = {"[steepness,cplan,cprof,log10_carea]": "without", "[steepness,cplan,cprof,elev,log10_carea]": "with"}
POINTS = "{class_column:landslide,class_values:{0:stable,1:landslide}}"
FIGURES = {
    "network": "test/auroc/landslide",
    "logistic regression": "test/baseline/logistic_regression/auroc/landslide",
    "random forest": "test/baseline/random_forest/auroc/landslide",
}


def sweep(data: Path, work: Path, folds: int, repeats: int) -> list[dict[str, str]]:
    """One run for each fold of each division; rows of the sweep's table."""
    command = [sys.executable, "train.py", "-m", "experiment=landslide_points", f"datamodule.root={data}"]
    command += [f"datamodule.channels.inputs={ATTRIBUTES}", f"datamodule.channels.names={','.join(CHANNELS)}"]
    command += [f"datamodule.labels={{file:landslide_points.csv,settings:{POINTS}}}"]
    command += [f"datamodule.fold={','.join(map(str, range(folds)))}"]
    command += [f"datamodule.splits.seed={','.join(map(str, range(repeats)))}"]
    command += [f"paths.cache={work}/cache", f"paths.checkpoints={work}/runs", f"hydra.sweep.dir={work}/sweep"]
    command += ["+trainer.enable_progress_bar=false", "~logger"]
    subprocess.run(command, cwd=ROOT, check=True)
    with open(work / "sweep" / "sweep.csv") as file:
        return list(csv.DictReader(file))


def figures_of(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Mean over all, means of the repeats, folds won; a row for each model and choice of channels."""
    found = []
    for names, height in CHANNELS.items():
        chosen = [row for row in rows if row["datamodule.channels.names"].replace(" ", "") == names]
        ours = [float(row[FIGURES["network"]]) for row in chosen]
        for model, name in FIGURES.items():
            by_repeat = defaultdict(list)
            for row in chosen:
                by_repeat[row["datamodule.splits.seed"]].append(float(row[name]))
            theirs = [float(row[name]) for row in chosen]
            won = sum(a > b for a, b in zip(ours, theirs))
            means = [statistics.fmean(values) for values in by_repeat.values()]
            figures = {"auroc": statistics.fmean(theirs), "by repeat": means, "network wins": won, "runs": len(chosen)}
            found.append({"model": model, "height": height, **figures})
    return found


def main() -> None:
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parse(parser)
    if not (options.data / "landslide_points.csv").is_file():
        sys.exit(f"no landslide_points.csv in '{options.data}'; pass the folder that has it.")
    folds, repeats = (2, 1) if options.quick else (FOLDS, options.repeats)
    with tempfile.TemporaryDirectory() as work:
        rows = sweep(options.data.resolve(), Path(work), folds, repeats)
    options.data = options.data.name  # the table is kept, the machine's paths are not
    figures = figures_of(rows)
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
    print(verdict("AUROC of the network without height", figures[0]["auroc"], BAR, at_most=False))


if __name__ == "__main__":
    main()
