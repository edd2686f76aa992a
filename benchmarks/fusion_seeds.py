"""Is fusion above both single modalities on generated clinics of several seeds, and at chance on permuted labels?

    python benchmarks/fusion_seeds.py             # --seeds 5, --go-on, --quick

A clinic of each seed is the demo of ``experiment=fusion_v5``, all three of its folds, whose test rows are pooled: every
row once, answered by a model that never saw its patient. Intervals of 95 % are over draws of patients. A seed meets the
bar if the interval of fusion's kappa minus that of the better single modality is above 0.

The same with ``trap=permuted``, labels in random order: what is left of kappa is a leak. The bar is 0.05 on either
side; the interval says how far chance alone reaches on that many rows, which is about as far. So the forest, which
costs little, answers ``PERMUTATIONS`` orders of each clinic's labels as well; their mean has a standard error of under
0.01.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fusion_folds import RULES, SINGLES, Metrics, bounded, run_folds, shown
from hydra import compose, initialize_config_module
from timing import RESULTS, parse, parser_of, verdict, write

from stagewise.datamodules.fusion.folds import make_splits
from stagewise.datamodules.fusion.reader import read_table
from stagewise.lightning_modules.fusion.forest import MetadataForest
from stagewise.lightning_modules.fusion.scores import kappa_of

PERMUTATIONS = 20
LEAD = "lead/best_single/kappa"
QUICK = (
    "datamodule.generated.patients=45",
    "datamodule.image.px=32",
    "lightning_module.branch={name:test_resnet,model:null}",
    "lightning_module.forest.trees=20",
    "plans.image.epochs=1",
    "plans.fusion.stages.open.epochs=1",
)
Line = tuple[dict[str, Any], dict[str, str]]


def of_seed(work: Path, seed: int, more: tuple[str, ...]) -> Line:
    """Figures and the line of the table of one clinic."""
    clinic = (f"datamodule.generated.seed={seed}", f"datamodule.generated.root={work}/data", *more)
    honest = run_folds(work / "honest", range(3), clinic)
    permuted = run_folds(work / "permuted", range(3), (*clinic, "+trap=permuted"))
    own = figures_of(honest)
    own |= {"permuted": bounded(permuted, "kappa"), "permuted over folds": _of_folds(permuted, ("fusion",))}
    own["forest on permuted"] = forest_on_permuted(work / "data", 2 if more else PERMUTATIONS)
    line = {"seed": str(seed), "rows": f"{honest['rows']:.0f}", "patients": f"{honest['patients']:.0f}"}
    line |= {name: shown(own[name]) for name in (*SINGLES, "fusion", "lead", "permuted")}
    line["forest, permuted"] = "{:.3f} (se {:.3f})".format(*own["forest on permuted"])
    return {"seed": seed, **own}, line


def forest_on_permuted(clinic: Path, orders: int) -> list[float]:
    """Kappa of the forest over the test rows of all folds, each order of the labels apart: mean and standard error."""
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose("train", ["experiment=fusion_v5", "demo=fusion"])
    data, kappas = cfg.datamodule, []
    table = read_table(clinic, data.files, data.columns, data.classes)
    for seed in range(orders):
        label = table.label[np.random.default_rng(seed).permutation(len(table))]
        parts = [make_splits(replace(table, label=label), fold=fold) for fold in range(3)]
        trees = cfg.lightning_module.forest.trees
        said = [MetadataForest(trees=trees).fit(one["train"]).probabilities(one["test"]) for one in parts]
        kappas.append(kappa_of(np.concatenate(said), np.concatenate([one["test"].label for one in parts])))
    return [float(np.mean(kappas)), float(np.std(kappas, ddof=1) / len(kappas) ** 0.5)]


def figures_of(metrics: Metrics) -> dict[str, Any]:
    """Kappa of each modality, its lead over the better single one, and the leads of the other rules."""
    kappa = {name: bounded(metrics, f"{name}/kappa") for name in (*SINGLES, "fusion")}
    lead = {"lead": bounded(metrics, LEAD), "lead's standard error": metrics[f"{LEAD}/se"], "p": metrics[f"{LEAD}/p"]}
    rules = {f"lead, {kind}": bounded(metrics, f"rule/{kind}/{LEAD}") for kind in RULES}
    return {**kappa, **lead, **rules, "over folds": _of_folds(metrics, (*SINGLES, "fusion"))}


def _of_folds(metrics: Metrics, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Mean and standard deviation of the folds' own kappas."""
    return {name: [metrics[f"fold/{name}/kappa/{end}"] for end in ("mean", "sd")] for name in names}


def done_before() -> list[Line]:
    """The seeds that the results hold."""
    path = RESULTS / "fusion_seeds.json"
    found = json.loads(path.read_text()) if path.is_file() else {"figures": {"seeds": []}, "table": []}
    return list(zip(found["figures"]["seeds"], found["table"], strict=True))


def main() -> None:
    parser = parser_of(__doc__, pairs=1)
    parser.add_argument("--seeds", type=int, default=5, help="of the generator, from 0 (default: %(default)s)")
    parser.add_argument("--go-on", action="store_true", help="after a kill: keep the seeds that the results hold")
    options = parse(parser)
    rows = done_before() if options.go_on else []
    for seed in range(len(rows), 2 if options.quick else options.seeds):
        with tempfile.TemporaryDirectory() as work:
            rows.append(of_seed(Path(work), seed, QUICK if options.quick else ()))
        write("fusion_seeds", options, {"seeds": [own for own, _ in rows]}, [line for _, line in rows])
    for own, _ in rows:
        print(verdict(f"seed {own['seed']}: low end of the lead in kappa", own["lead"][1], 0.0, at_most=False))
    for own, _ in rows:
        print(verdict(f"seed {own['seed']}: kappa of permuted labels", abs(own["permuted"][0]), 0.05, at_most=True))
    for own, _ in rows:
        mean = own["forest on permuted"][0]
        print(verdict(f"seed {own['seed']}: mean kappa of the forest, permuted labels", abs(mean), 0.05, at_most=True))
    lead, permuted = (np.array([own[key][0] for own, _ in rows]) for key in ("lead", "permuted"))
    for what, values in (("lead in kappa", lead), ("kappa of permuted labels", permuted)):
        print(f"{what} over {len(rows)} seeds: mean {values.mean():.3f}, sd {values.std(ddof=1):.3f}")


if __name__ == "__main__":
    main()
