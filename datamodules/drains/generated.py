"""Generated pictures of embankments as a YOLO folder, to run the drains task without the real ones.

``write_generated_drains`` writes ``data.yaml``, ``images/``, ``labels/`` (boxes, and polygons for some objects) and
``locations.csv``. The pictures are drawn, not photographed: the set shows that a pipeline works and compares settings;
it says nothing about accuracy on real embankments. Each location has its own look and its own habits, so a split by
picture leaks. ``caption_pairs`` gives crops with captions from other locations, for the pre-training of a small CLIP.
"""

import csv
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..errors import StagewiseError
from .generated_layout import Thing, draw_conditions, draw_terraces, draw_things
from .generated_objects import Brush, paint
from .generated_scene import draw_ground, draw_look, expose
from .vocabulary import CLASSES, class_of

DIFFICULTY = 0.5
"""How faint the marks of a condition may be, and how loud stains and dust, in the demo's pictures."""

_NAMES = [one.name.replace("_", " ").removesuffix(" normal") for one in CLASSES]
_POLYGONS = 0.25  # share of the objects that are written as polygons
_LEAST_PX = 160  # below it the drains are thinner than the reader accepts


@dataclass(frozen=True)
class Embankment:
    """One picture.

    Attributes:
        pixels: uint8 (px, px, 3).
        things: what is on it.
        location: number of its location.
    """

    pixels: NDArray[np.uint8]
    things: list[Thing]
    location: int


def draw_embankments(
    count: int, *, px: int = 320, locations: int = 10, seed: int = 0, difficulty: float = DIFFICULTY, stream: int = 0
) -> Iterator[Embankment]:
    """Draws pictures one by one; the same arguments give the same pictures.

    Args:
        count: of pictures.
        px: side of a picture.
        locations: of which pictures are taken in turn.
        seed: of everything random.
        difficulty: 0 for plain conditions, 1 for hardly visible ones.
        stream: another world for the same seed, with other locations.
    """
    if px < _LEAST_PX or locations < 1 or count < 0 or not 0 <= difficulty <= 1:
        raise StagewiseError(
            f"generated pictures need px >= {_LEAST_PX}, locations >= 1 and difficulty from 0 to 1; "
            f"got px={px}, locations={locations}, pictures={count}, difficulty={difficulty}."
        )
    looks = [draw_look(np.random.default_rng((seed, stream, 0, place))) for place in range(locations)]
    rngs = [np.random.default_rng((seed, stream, 1, i)) for i in range(count)]
    where = [i % locations for i in range(count)]
    terraces = [draw_terraces(rng, looks[place].crest, looks[place].two) for rng, place in zip(rngs, where)]
    bare = [draw_things(rng, steps) for rng, steps in zip(rngs, terraces)]
    habits = [looks[place].habits for place in where]
    things = draw_conditions(np.random.default_rng((seed, stream, 2)), bare, habits)
    for i, place in enumerate(where):
        picture = draw_ground(rngs[i], looks[place], terraces[i], px)
        brush = Brush(rngs[i], looks[place], difficulty, px / 320)
        for thing in sorted(things[i], key=_depth):
            paint(picture, thing, brush)
        yield Embankment(expose(rngs[i], picture, looks[place]), things[i], place)


def _depth(thing: Thing) -> int:
    return ("vegetation", "rock_toe", "toe_drain", "slope_drain").index(thing.type)  # what lies on top comes last


def write_generated_drains(
    root: str | Path,
    *,
    pictures: int = 300,
    px: int = 320,
    locations: int = 10,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
) -> None:
    """Writes a generated YOLO folder; the same arguments give the same bytes.

    All files are written to a hidden folder beside ``root`` that takes its name at the end.

    Args:
        root: Folder to make; it must not exist or be empty.
        pictures: How many; there are about five objects on each.
        px: Side of the pictures, at least 160.
        locations: Among which the pictures are shared out evenly.
        seed: Of everything random.
        difficulty: 0 for plain conditions, 1 for hardly visible ones.

    Raises:
        StagewiseError: ``root`` holds something, or an argument is out of its range.
    """
    target = Path(root).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StagewiseError(f"{target} exists and is not an empty folder; remove it or choose another `root`.")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    drawn = draw_embankments(pictures, px=px, locations=locations, seed=seed, difficulty=difficulty)
    try:
        for folder in ("images", "labels"):
            (partial / folder).mkdir(parents=True)
        rng = np.random.default_rng((seed, 3))
        bar = tqdm(drawn, desc="generated drains", total=pictures, unit="picture", leave=False)
        stems = [_write_picture(partial, i, one, rng) for i, one in enumerate(bar)]
        _write_tables(partial, stems)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_picture(folder: Path, number: int, drawn: Embankment, rng: np.random.Generator) -> tuple[str, str]:
    """Writes a picture and its labels; returns its stem and its location."""
    location = f"site{drawn.location:02d}"
    stem = f"{location}_{number:04d}"
    Image.fromarray(drawn.pixels).save(folder / "images" / f"{stem}.jpg", quality=92)
    rows = []
    for thing in drawn.things:
        shape = thing.outline().ravel().tolist() if rng.random() < _POLYGONS else thing.box
        rows.append(" ".join([str(class_of(thing.type, thing.condition)), *(f"{value:.6f}" for value in shape)]))
    text = "".join(row + "\n" for row in rows)
    (folder / "labels" / f"{stem}.txt").write_text(text, encoding="utf-8")
    return stem, location


def _write_tables(folder: Path, stems: list[tuple[str, str]]) -> None:
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(_NAMES))
    text = f"path: .\ntrain: images\nnc: {len(_NAMES)}\nnames:\n{names}"
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    with (folder / "locations.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([("stem", "location"), *stems])
