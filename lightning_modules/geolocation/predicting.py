"""Coordinates for pictures without labels."""

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...datamodules.errors import BadRowsError, DatasetNotFoundError
from ...datamodules.images import centre_box, crop, find_images, read_image
from . import scores
from .decoding import answer_of, combine
from .figures import draw_photo

if TYPE_CHECKING:
    from .module import GeolocationModule

log = logging.getLogger(__name__)
COLUMNS = ("image", "latitude", "longitude", "province", "province_probability", "radius_90_km")


def predict_tensors(module: "GeolocationModule", images: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Answers for a batch.

    Args:
        module: with its network built.
        images: uint8 (B, 3, px, px).
        names: of the pictures.

    Returns:
        A dict a picture: ``COLUMNS`` and ``hypotheses`` (``latitude, longitude, province, cell_id, probability``).
    """
    was_training = module.training
    module.eval()
    with torch.no_grad():
        out = module.network({"image": images.to(module.device).float() / 255})
        rows = {k: v.cpu() for k, v in module.prediction_rows(out).items()}
    module.train(was_training)
    place = combine(rows, module.calibration["rule"])
    radius = scores.radius_km(rows, place, module.calibration)
    region_p = (rows["region_logits"] / module.calibration["temperature"]).softmax(-1)
    answer = answer_of(rows["log_p"], rows["hypothesis_region"])
    answers = []
    for i, name in enumerate(names):
        chosen = int(rows["hypothesis_region"][i, answer[i]])
        values = (
            str(name),
            *place[i].tolist(),
            module.geography["region_names"][chosen],
            region_p[i, chosen].item(),
            radius[i].item(),
        )
        answers.append(dict(zip(COLUMNS, values)) | {"hypotheses": _hypotheses(module, rows, i)})
    return answers


def _hypotheses(module: "GeolocationModule", rows: dict[str, Tensor], i: int) -> list[dict[str, Any]]:
    names, ids = module.geography["region_names"], module.geography["cells"]["cell_id"]
    columns = (
        rows["place_deg"][i],
        rows["hypothesis_region"][i],
        rows["hypothesis_cell"][i],
        rows["log_p"][i].softmax(-1),
    )
    found = [
        {"latitude": p[0], "longitude": p[1], "province": names[r], "cell_id": ids[c], "probability": w}
        for p, r, c, w in zip(*(column.tolist() for column in columns))
        if w > 0  # padding, where a region has fewer cells
    ]
    return sorted(found, key=lambda h: -h["probability"])


def predict_images(
    module: "GeolocationModule", paths: Sequence[str | Path], batch_size: int = 32
) -> list[dict[str, Any]]:
    """Answers for picture files; see :func:`predict_tensors`.

    Raises:
        BadRowsError: a file that cannot be read.
    """
    px, answers = module.network.image_px, []
    for start in tqdm(
        range(0, len(paths), batch_size), desc="locating", unit="batch", disable=len(paths) <= batch_size
    ):
        chunk = paths[start : start + batch_size]
        images = torch.stack([crop(image, centre_box(*image.shape[-2:]), px) for image in map(read_image, chunk)])
        answers += predict_tensors(module, images, [str(p) for p in chunk])
    return answers


def predict_folder(
    module: "GeolocationModule", source: str, target: str, limit: int | None = None, most_maps: int = 50
) -> list[dict[str, Any]]:
    """Locates every picture below a folder; writes ``predictions.csv``, ``predictions.geojson`` and maps.

    A broken picture is named and left out, the others are answered.

    Args:
        module: loaded from a checkpoint.
        source: folder of pictures, a pattern of their names, or one picture.
        target: folder for the results.
        limit: of pictures, the first by path; None answers all.
        most_maps: maps drawn at most.

    Raises:
        DatasetNotFoundError: no picture there.
    """
    found = find_images(source)[:limit]
    if not found:
        raise DatasetNotFoundError(
            f"no picture at input='{source}'; pass a folder with .jpg, .png, .webp or .gif files."
        )
    good = []
    for path in found:
        try:
            read_image(path)
            good.append(path)
        except BadRowsError as error:
            log.warning("left out %s", error)
    if not good:
        raise BadRowsError(f"none of the {len(found)} pictures at input='{source}' can be read; see the lines above.")
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    answers = predict_images(module, good)
    _write_csv(folder / "predictions.csv", answers)
    (folder / "predictions.geojson").write_text(json.dumps(geojson(answers), indent=1))
    for path, answer in tqdm(list(zip(good, answers))[:most_maps], desc="drawing maps"):
        name = f"{answers.index(answer):04d}_{path.stem}.png"
        draw_photo(read_image(path), answer, module.geography, folder / name)
    return answers


def _write_csv(path: Path, answers: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "hypotheses"])
        writer.writeheader()
        for answer in answers:
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in answer.items()}
            writer.writerow(rounded | {"hypotheses": json.dumps(answer["hypotheses"])})


def geojson(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """A FeatureCollection (RFC 7946) with one point a picture."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [round(a["longitude"], 5), round(a["latitude"], 5)]},
            "properties": {k: v for k, v in a.items() if k not in ("latitude", "longitude")},
        }
        for a in answers
    ]
    return {"type": "FeatureCollection", "features": features}
