"""A generated clinic in the layout of a real one, to run the fusion task without any patient's data.

``write_generated_clinic`` writes ``metadata.csv``, ``boxes.csv`` and ``images/``. Nothing of it was measured: the set
shows that a pipeline works and compares settings; it says nothing about wounds. What the phases follow from is told in
``generated_clinic``.
"""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import StagewiseError
from .generated_clinic import PHASES, Visit, draw_visits
from .generated_thermal import draw_wound, false_colours
from .picture_rows import SEPARATOR, SIDES

_LEAST_PX, _FEWEST = 32, 9


def write_generated_clinic(root: str | Path, *, patients: int = 150, px: int = 96, seed: int = 0) -> None:
    """Writes a generated clinic; the same arguments give the same bytes.

    All files are written to a hidden folder beside ``root`` that takes its name at the end.

    Args:
        root: Folder to make; it must not exist or be empty.
        patients: How many; each has 1 to 4 visits, which are the rows, and a row up to three pictures.
        px: Side of the pictures.
        seed: Of everything random.

    Raises:
        StagewiseError: ``root`` holds something, or an argument is out of its range.
    """
    if patients < _FEWEST or px < _LEAST_PX:
        raise StagewiseError(
            f"a generated clinic needs patients >= {_FEWEST} and px >= {_LEAST_PX}; got {patients} and {px}."
        )
    target = Path(root).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StagewiseError(f"{target} exists and is not an empty folder; remove it or choose another `root`.")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "images").mkdir(parents=True)
        _write(partial, draw_visits(patients, np.random.default_rng((seed, 0))), px, seed)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(folder: Path, visits: list[Visit], px: int, seed: int) -> None:
    rows, boxes = [], []
    for number, visit in enumerate(visits):
        rng, names = np.random.default_rng((seed, 1, number)), []
        for view in range(visit.pictures):
            field, box = draw_wound(visit.contrast_deg, visit.rim, visit.skin_deg, px, rng)
            names.append(f"images/{visit.cells['patient_id']}_{visit.cells['visit']}_{view}.png")
            Image.fromarray(false_colours(field)).save(folder / names[-1], compress_level=1)
            boxes.append({"filename": names[-1], **dict(zip(SIDES, map(int, box)))})
        cells = {"image": SEPARATOR.join(names), **visit.cells, "label": PHASES[visit.phase]}
        rows.append({"id": f"W{number:04d}", **cells})
    _write_csv(folder / "metadata.csv", rows)
    _write_csv(folder / "boxes.csv", boxes)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
