"""The forest's probabilities for every split, those of train out of fold: nobody is judged by their own answers."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from filelock import FileLock
from numpy.typing import NDArray

from ...datamodules.errors import SplitLeakError, StagewiseError
from ...datamodules.fusion.table import FusionTable
from .forest import MetadataForest
from .scores import kappa_of

log = logging.getLogger(__name__)
PROBABILITIES = ("out_of_fold", "in_sample")
_FORMAT = 1  # another number when what is stored changes
_COPIED = 0.5  # share of the rows that may agree by chance, such as those of pure leaves
Forests = dict[str, Any]


def forest_probabilities(
    tables: Mapping[str, FusionTable], cache_dir: str | Path, *, probabilities: str = "out_of_fold", **options: Any
) -> Forests:
    """Fits the forest, or finds what was fitted on the same rows with the same options.

    Args:
        tables: of the splits; ``train`` is learned from.
        cache_dir: the result lies in ``fusion/forest-KEY.pt`` below it.
        probabilities: ``out_of_fold``; ``in_sample`` is the trap itself, for the run that shows what it flatters.
        options: ``folds`` of the train rows, default 5, and those of :class:`MetadataForest`.

    Returns:
        ``probability``: name of the split -> (N, K) float32, NaN where a row has no metadata; ``state`` of the forest
        of all train rows.

    Raises:
        StagewiseError: an unknown kind of ``probabilities``, or too few patients.
        SplitLeakError: the answers for train are the forest's own.
    """
    if probabilities not in PROBABILITIES:
        raise StagewiseError(f"forest.probabilities must be one of {', '.join(PROBABILITIES)}, got '{probabilities}'.")
    path = Path(cache_dir) / "fusion" / f"forest-{_key(tables, probabilities, options)}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        found = _read(path) or _made(tables, probabilities, dict(options))
        if not path.is_file():
            _write(path, found)
    train, label = found["probability"]["train"], tables["train"].label
    if probabilities == "in_sample":
        log.warning(
            "forest: train rows are answered IN SAMPLE, by trees that have seen them (kappa %.3f): whatever is trained "
            "on them learns to trust the metadata blindly. This run shows a trap; it is no result.",
            kappa_of(train.numpy(), label),
        )
        return found
    check_out_of_fold(train.numpy(), MetadataForest.from_state(found["state"]).probabilities(tables["train"]))
    log.info("forest: kappa %.3f on train rows, out of fold by patient", kappa_of(train.numpy(), label))
    return found


def _made(tables: Mapping[str, FusionTable], probabilities: str, options: dict[str, Any]) -> Forests:
    folds, train = int(options.pop("folds", 5)), tables["train"]
    forest = MetadataForest(**options).fit(train)
    answers = {name: forest.probabilities(table) for name, table in tables.items()}
    if probabilities == "out_of_fold":
        answers["train"] = out_of_fold(train, options, folds)
    return {"probability": {name: torch.from_numpy(p) for name, p in answers.items()}, "state": forest.state()}


def out_of_fold(table: FusionTable, options: Mapping[str, Any], folds: int = 5) -> NDArray[np.float32]:
    """Each row is answered by a forest that saw no row of its patient.

    Args:
        table: of train.
        options: of :class:`MetadataForest`; its seed also draws the folds.
        folds: at most; never more than there are patients.

    Returns:
        (N, K).

    Raises:
        StagewiseError: fewer than two patients or folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    parts = min(folds, len(np.unique(table.group)))
    if parts < 2:
        raise StagewiseError(
            f"forest.folds={folds} over {len(np.unique(table.group))} patients of train: out-of-fold answers need "
            "two of each at least."
        )
    found = np.full((len(table), len(table.classes)), np.nan, np.float32)
    cut = StratifiedGroupKFold(parts, shuffle=True, random_state=int(options.get("seed", 0)))
    for others, own in cut.split(table.numbers, table.label, table.group):
        found[own] = MetadataForest(**options).fit(table.subset(others)).probabilities(table.subset(own))
    return found


def check_out_of_fold(train: NDArray[np.float32], own: NDArray[np.float32]) -> None:
    """Refuses probabilities of train rows that the forest of all train rows gave.

    Args:
        train: (N, K) to be checked.
        own: (N, K) of that forest on the same rows.

    Raises:
        SplitLeakError: most rows agree to the last digit.
    """
    known = ~np.isnan(train).any(1)
    same = np.isclose(train[known], own[known], rtol=0, atol=1e-6).all(1)
    if same.size and same.mean() > _COPIED:
        raise SplitLeakError(
            f"the forest's probabilities of {int(same.sum())} of {same.size} train rows are in sample: the trees that "
            "answer have seen those rows. Set lightning_module.forest.probabilities=out_of_fold and clear the cache."
        )


def _key(tables: Mapping[str, FusionTable], probabilities: str, options: Mapping[str, Any]) -> str:
    rows = {name: table.content_key() for name, table in tables.items()}
    content = [_FORMAT, sklearn.__version__, rows, probabilities, dict(options)]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def _read(path: Path) -> Forests | None:
    if not path.is_file():
        return None
    try:
        found: Forests = torch.load(path, weights_only=True)
    except Exception as error:  # torch names no common base of what a damaged file raises
        log.warning("forest: '%s' is damaged (%s) and is made anew", path, type(error).__name__)
        path.unlink()
        return None
    log.info("forest: found %s", path)
    return found


def _write(path: Path, found: Forests) -> None:
    part = path.with_suffix(".part")
    torch.save(found, part)
    part.replace(path)
