"""From pictures and detections to conditions: annotated pictures, one JSON, one CSV, and where the time went."""

import csv
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...datamodules.drains.boxes import box_features, context_of, from_corners, position_of
from ...datamodules.drains.crops import crop_window, letterbox, mark_box, whole_window
from ...datamodules.drains.detections import Detection, DetectionSource
from ...datamodules.drains.vocabulary import CLASSES, TYPES, UNKNOWN
from ...datamodules.errors import BadRowsError, DatasetNotFoundError, StagewiseError
from ...datamodules.images import find_images, read_image
from .drawing import colour_of, draw_objects

if TYPE_CHECKING:
    from .module import DrainModule

log = logging.getLogger(__name__)
COLUMNS = ("image", "object", "type", "condition", "type_score", "condition_score", "left", "top", "right", "bottom")
STAGES = ("read", "detect", "classify", "draw")


@dataclass
class Run:
    """What a run has answered so far.

    Attributes:
        answers: an entry for each picture.
        broken: picture -> why it could not be read.
        seconds: of each stage, over all pictures.
    """

    answers: list[dict[str, Any]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start  # type: ignore[assignment]


def predict_folder(
    module: "DrainModule", source: str, target: str, detector: DetectionSource, limit: int | None = None
) -> Run:
    """Answers every picture below a folder; one that cannot be read is named and left out.

    Args:
        module: in eval mode, on its device.
        source: folder of pictures, a pattern of their names, or one picture.
        target: gets ``pictures/``, ``objects.json``, ``objects.csv`` and ``summary.json``.
        detector: says where the objects are.
        limit: pictures at most.

    Raises:
        DatasetNotFoundError: there is no picture.
        BadRowsError: none of them can be read.
        StagewiseError: what is drawn would lie among them.
    """
    run, drawn = Run(), Path(target) / "pictures"
    paths, base = _pictures(source, drawn)[:limit], Path(source) if Path(source).is_dir() else Path(source).parent
    with logging_redirect_tqdm():  # else a warning stands in the line of the bar
        for path in tqdm(paths, desc="pictures", leave=False):
            name = path.relative_to(base).as_posix()
            try:
                with run.timed("read"):
                    picture = read_image(path)
            except BadRowsError as error:
                run.broken[name] = str(error)
                continue
            with run.timed("detect"):
                found = detector.detect(path, picture)
            with run.timed("classify"):
                objects = classify(module, picture, found)
            with run.timed("draw"):
                _draw(drawn / name, picture, objects)
            run.answers.append({"image": name, "objects": objects})
    if run.broken and not run.answers:
        raise BadRowsError(f"of {len(paths)} pictures none can be read: {next(iter(run.broken.values()))}")
    _write(Path(target), run, detector)
    return run


def _pictures(source: str, drawn: Path) -> list[Path]:
    paths = find_images(source)
    if not paths:
        raise DatasetNotFoundError(f"no picture at input='{source}'; pass a folder, a pattern of names, or a picture.")
    if any(drawn.resolve() in path.resolve().parents for path in paths):
        raise StagewiseError(f"pictures of input='{source}' lie in '{drawn}', where it draws; pass another output.")
    return paths


@torch.inference_mode()
def classify(module: "DrainModule", picture: Tensor, detections: list[Detection]) -> list[dict[str, Any]]:
    """The condition of every object of a picture, in one batch; objects of unknown type get none.

    Args:
        module: in eval mode.
        picture: uint8 (3, H, W).
        detections: of it.

    Returns:
        For each detection ``{type, condition, type_score, condition_score, box}``; ``condition_score`` is the
        probability among the classes that the type allows.
    """
    known = [one for one in detections if one.type != UNKNOWN]
    answers = {}
    if known:
        batch = {name: value.to(module.device) for name, value in as_batch(module.schema, picture, known).items()}
        probability = module.network(batch)["logits"].softmax(-1).float().cpu()
        best = probability.max(-1)
        for one, score, k in zip(known, best.values.tolist(), best.indices.tolist(), strict=True):
            answers[id(one)] = (CLASSES[k].condition, score if CLASSES[k].condition else None)
    return [_described(one, *answers.get(id(one), (None, None))) for one in detections]


def as_batch(schema: dict[str, Any], picture: Tensor, detections: list[Detection]) -> dict[str, Tensor]:
    """What the network sees of objects of known type, cut as in training.

    Args:
        schema: of the model.
        picture: uint8 (3, H, W).
        detections: of it.
    """
    height, width = picture.shape[-2:]
    boxes = from_corners([one.box for one in detections], (width, height))
    types = np.array([TYPES.index(one.type) for one in detections])
    batch = {name: pixels.float() / 255 for name, pixels in _pixels(schema["image"], picture, boxes).items()}
    metadata = box_features(boxes, types, (width, height))
    numbers = {"box_type": types, "position": position_of(boxes), "context": context_of(types), "metadata": metadata}
    return batch | {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in numbers.items()}


def _pixels(seen: dict[str, Any], picture: Tensor, boxes: NDArray[np.float64]) -> dict[str, Tensor]:
    size, px = (picture.shape[-1], picture.shape[-2]), int(seen["px"])
    whole = letterbox(picture, whole_window(size), px) if seen["view"] or seen["input"] == "whole" else None
    if seen["input"] == "whole":
        assert whole is not None
        return {"image": whole.expand(len(boxes), -1, -1, -1)}
    windows = [crop_window(box, size, float(seen["margin"]), seen["pad"]) for box in boxes]
    found = {"image": torch.stack([letterbox(picture, window, px) for window in windows])}
    if whole is not None:
        found["view"] = torch.stack([mark_box(whole, box, size) for box in boxes])
    return found


def _described(one: Detection, condition: str | None, score: float | None) -> dict[str, Any]:
    return {
        "type": one.type,
        "condition": condition,
        "type_score": round(float(one.score), 4),
        "condition_score": None if score is None else round(score, 4),
        "box": [round(float(edge), 1) for edge in one.box],
    }


def _draw(path: Path, picture: Tensor, objects: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(filter(None, (one["type"].replace("_", " "), one["condition"]))) for one in objects]
    colours = [colour_of(one["type"], one["condition"]) for one in objects]
    image = draw_objects(picture, [one["box"] for one in objects], texts, colours)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}.get(path.suffix.lower())
    named = path if kind else path.with_name(f"{path.name}.png")
    part = path.with_name(f".{path.name}.part")
    image.save(part, kind or "PNG", quality=92)
    part.replace(named)


def _write(target: Path, run: Run, detector: DetectionSource) -> None:
    target.mkdir(parents=True, exist_ok=True)
    named = [" ".join(filter(None, (o["type"], o["condition"]))) for one in run.answers for o in one["objects"]]
    pictures, bare = max(1, len(run.answers)), sum(not one["objects"] for one in run.answers)
    summary = {
        "pictures": len(run.answers),
        "broken": run.broken,
        "without_detections": bare,
        "objects": len(named),
        "counts": dict(sorted(Counter(named).items())),
        "unknown_types": dict(detector.unknown),
        "seconds_a_picture": {stage: round(run.seconds[stage] / pictures, 4) for stage in STAGES},
    }
    _replace(target / "objects.json", json.dumps(run.answers, indent=1))
    _replace(target / "summary.json", json.dumps(summary, indent=1))
    part = target / ".objects.csv.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for one in run.answers:
            for number, found in enumerate(one["objects"]):
                scores = (found["type_score"], found["condition_score"])
                rows.writerow((one["image"], number, found["type"], found["condition"], *scores, *found["box"]))
    part.replace(target / "objects.csv")
    _report(run, summary)


def _report(run: Run, summary: dict[str, Any]) -> None:
    for name, reason in run.broken.items():
        log.warning("left out %s: %s", name, reason)
    if summary["without_detections"]:
        log.warning(
            "%d of %d pictures have no detection; look whether `detections` are of these pictures",
            summary["without_detections"],
            summary["pictures"],
        )
    if summary["unknown_types"]:
        log.warning("no type of drains, so grey and without a condition: %s", summary["unknown_types"])
    log.info("counts: %s; seconds a picture: %s", summary["counts"], summary["seconds_a_picture"])


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
