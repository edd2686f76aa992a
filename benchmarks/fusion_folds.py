"""Is fusion not below the forest on metadata, on real rows, under each rule?

    python benchmarks/fusion_folds.py FOLDER      # --settings "KEY=VALUE …", --folds 5, --quick

FOLDER holds ``metadata.csv`` and the pictures. Every fold of its groups is the test split of a run of
``experiment=fusion_v5 demo=fusion``: a small network that starts from nothing, since published weights are files that
not everybody has. ``--settings`` says what is different about the data; unless it is given, that of 535 houses (classes
L, M and H of their price, grouped by zip code, one photograph each).

The test rows of all folds are pooled. 95 % intervals and standard errors are over draws of groups, those of a lead over
draws that fusion and the single modality share. A rule meets the bar if its kappa is below the forest's by one standard
error of the lead at most.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import parse, parser_of, verdict, write

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("kappa", "kappa_quadratic", "log_loss")
SINGLES = ("metadata", "image")
RULES = ("average", "tuned", "stacking")
HOUSES = (
    "datamodule.classes=[L,M,H] datamodule.columns.group=group datamodule.columns.drop=[price_usd,zipcode] "
    "datamodule.files.boxes=null datamodule.image.channels=3 datamodule.image.colormap=null plans.image.epochs=12"
)
Metrics = dict[str, float]


def run_folds(work: Path, folds: Sequence[int], settings: Sequence[str]) -> Metrics:
    """Trains a run for each fold.

    Args:
        work: an empty folder for all that is written, but for data that ``settings`` put elsewhere.
        folds: two or more.
        settings: more overrides of every run.

    Returns:
        ``pooled.json`` without its prefix.
    """
    command = [sys.executable, "train.py", "-m", "experiment=fusion_v5", "demo=fusion", "~logger"]
    command += [f"datamodule.fold={','.join(map(str, folds))}", "+trainer.enable_progress_bar=false"]
    command += [f"paths.checkpoints={work}/runs", f"paths.cache={work}/cache", f"hydra.sweep.dir={work}/sweep"]
    subprocess.run([*command, *settings], cwd=ROOT, check=True)
    found = json.loads((work / "sweep" / "pooled" / "pooled.json").read_text())
    return {name.removeprefix("pooled/"): float("nan") if value is None else value for name, value in found.items()}


def bounded(metrics: Metrics, name: str) -> list[float]:
    """A figure and both ends of its interval."""
    return [metrics[f"{name}{end}"] for end in ("", "/ci_low", "/ci_high")]


def shown(figure: Sequence[float]) -> str:
    """``figure [low, high]``.

    >>> shown([0.1, -0.02, 0.25])
    '0.100 [-0.020, 0.250]'
    """
    return "{:.3f} [{:.3f}, {:.3f}]".format(*figure)


def row_of(metrics: Metrics, title: str, prefix: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures and the line of the table of a modality or a rule."""
    own: dict[str, Any] = {key: bounded(metrics, f"{prefix}/{key}") for key in FIGURES}
    line = {"": title, **{key.replace("_", " "): shown(value) for key, value in own.items()}}
    for single in ("metadata", "best_single"):
        name, what = f"{prefix}/lead/{single}/kappa", f"kappa minus {single.replace('_', ' ')}"
        if f"{name}/se" not in metrics:
            line |= {what: "", "standard error": "", "p": ""}
            continue
        own[what] = {"lead": bounded(metrics, name), "se": metrics[f"{name}/se"], "p": metrics[f"{name}/p"]}
        line[what] = shown(own[what]["lead"])
        if single == "metadata":
            line |= {"standard error": f"{own[what]['se']:.3f}", "p": f"{own[what]['p']:.3f}"}
    return {"model": title, **own}, line


def main() -> None:
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", default=HOUSES, help="more overrides of every run")
    parser.add_argument("--folds", type=int, default=5, help="of the groups (default: %(default)s)")
    options = parse(parser)
    if not (options.data / "metadata.csv").is_file():
        sys.exit(f"no metadata.csv in '{options.data}'; pass the folder that has it.")
    data, options.data = options.data.resolve(), options.data.name  # the table is kept, the machine's paths are not
    settings = [f"datamodule.root={data}", f"datamodule.splits.folds={options.folds}", *shlex.split(options.settings)]
    if options.quick:
        settings += ["plans.image.epochs=1", "plans.fusion.stages.open.epochs=1"]
    with tempfile.TemporaryDirectory() as work:
        metrics = run_folds(Path(work), range(2 if options.quick else options.folds), settings)
    rows = [row_of(metrics, name, name) for name in SINGLES]
    rows += [row_of(metrics, f"fusion, {kind}", f"rule/{kind}") for kind in RULES]
    counts = {"rows": metrics["rows"], "groups": metrics["patients"]}
    over_folds = {name: value for name, value in metrics.items() if name.startswith("fold/")}
    figures = {**counts, "models": [own for own, _ in rows], "over folds": over_folds}
    write("fusion_folds", options, figures, [line for _, line in rows])
    for kind in RULES:
        lead = f"rule/{kind}/lead/metadata/kappa"
        print(verdict(f"{kind}: kappa minus the forest's", metrics[lead], -metrics[f"{lead}/se"], at_most=False))


if __name__ == "__main__":
    main()
