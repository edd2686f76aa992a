"""A trained module, or an ensemble of them, as the model of a map; and the maps of a folder of rasters."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...datamodules.errors import CheckpointError, StagewiseError
from ...datamodules.landslide.areas import find_areas
from ...datamodules.landslide.channel_inputs import find_sources, reference
from ...datamodules.landslide.channel_maker import make_channels
from ...datamodules.landslide.channels import ChannelList
from ...datamodules.landslide.prepared import PreparedArea
from ...datamodules.landslide.rasters import check_pixel_size, read_grid
from .inference import map_area
from .map_model import MapModel, MapSettings
from .model_card import model_card, write_model_card
from .passes import Member
from .quicklook import draw_quicklook
from .sliding_window import Tiling

if TYPE_CHECKING:
    from .module import LandslideModule

log = logging.getLogger(__name__)
INFERENCE: dict[str, Any] = {"window": 512, "overlap": 128, "batch": 4, "tta": True, "mc_dropout": 0}
INFERENCE |= {"crf": {}, "crf_must_pay": True}
CHANNELS_FOLDER = ".channels"


def check_inference(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """``{window, overlap, batch, tta, mc_dropout, crf, crf_must_pay}`` with the defaults.

    Raises:
        StagewiseError: an unknown key.

    >>> check_inference({"tta": False, "crf": None})["crf"] is None
    True
    """
    if unknown := sorted(set(given or {}) - set(INFERENCE)):
        raise StagewiseError(f"`inference` has unknown key(s) {unknown}; known: {', '.join(INFERENCE)}.")
    return INFERENCE | dict(given or {})


def settings_of(inference: Mapping[str, Any], device: str | torch.device) -> MapSettings:
    """The chain's settings."""
    tiling = Tiling(*(int(inference[name]) for name in ("window", "overlap", "batch")))
    passes = max(1, int(inference["mc_dropout"]))
    return MapSettings(tiling, bool(inference["tta"]), passes, inference["crf"], str(device))


def model_of(
    modules: Sequence["LandslideModule"], calibration: dict[str, Any] | None, mc_dropout: bool = False
) -> MapModel:
    """The members' networks, in eval mode, as one model.

    Args:
        modules: of the same channels, classes and pixel size.
        calibration: of the whole; None is uncalibrated.
        mc_dropout: leaves the dropout on.
    """
    schema = modules[0].schema
    digest = hashlib.blake2b(digest_size=12)
    for module in modules:
        for name, value in module.network.state_dict().items():
            digest.update(
                name.encode() + value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            )
    members = [_member(module, mc_dropout) for module in modules]
    key = f"{digest.hexdigest()}{'-dropout' if mc_dropout else ''}"
    channels, typical = ChannelList(schema["channels"]), schema["typical"]
    return MapModel(members, schema["classes"], channels, schema["mean"], schema["std"], key, typical, calibration)


def _member(module: "LandslideModule", mc_dropout: bool) -> Member:
    module.eval()

    def probability(images: Tensor) -> Tensor:
        with module.network.mc_dropout(mc_dropout):
            return module.network(images)["logits"].softmax(1)

    return probability


def check_members(modules: Sequence["LandslideModule"]) -> None:
    """Refuses an ensemble whose members see or answer other things.

    Raises:
        CheckpointError: names what differs.
    """
    first = modules[0].schema
    for number, module in enumerate(modules[1:], 2):
        for name in ("channels", "classes", "pixel_size_m", "channel_options"):
            if module.schema[name] != first[name]:
                raise CheckpointError(
                    f"member {number} of the ensemble has {name} {module.schema[name]}, the first {first[name]}; "
                    "train them with the same data module."
                )


def crs_name(wkt: str) -> str:
    """The name that a coordinate system goes by.

    >>> crs_name('PROJCS["WGS 84 / UTM zone 17S",GEOGCS["WGS 84"]]')
    'WGS 84 / UTM zone 17S'
    """
    return wkt.split('"')[1] if '"' in wkt else wkt


def map_folder(
    modules: Sequence["LandslideModule"],
    calibration: dict[str, Any] | None,
    inference: dict[str, Any],
    source: str | Path,
    target: str | Path,
    facts: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Maps of every area in a folder of rasters, each with a picture and a card.

    A run that was killed goes on. What lies between the steps is in ``.channels`` and ``.work`` until a map is whole.

    Args:
        modules: members.
        calibration: of the whole.
        inference: of :func:`check_inference`.
        source: folder with the rasters, or with a folder for each area.
        target: folder; maps of several areas lie in folders of their names.
        facts: for the card.

    Returns:
        ``{area, layer: path, …}`` for each area.

    Raises:
        StagewiseError: rasters that do not fit the model.
    """
    schema = modules[0].schema
    channels, options = ChannelList(schema["channels"]), schema["channel_options"]
    found = find_areas(source, channels, options["inputs"])
    model = model_of(modules, calibration, inference["mc_dropout"] > 1)
    settings, tags = settings_of(inference, modules[0].device), {"stagewise_model": model.key}
    figures = modules[0].metrics if len(modules) == 1 else {}  # an ensemble's are not those of its first member
    answers = []
    for name, folder in found.items():
        output = Path(target) / name if len(found) > 1 else Path(target)
        work = output / CHANNELS_FOLDER
        grid = read_grid(reference(folder, find_sources(folder, channels, options["inputs"])))
        check_pixel_size(grid, float(schema["pixel_size_m"]))
        make_channels(folder, channels, work, options["settings"], inputs=options["inputs"])
        with PreparedArea(name, work, channels) as area:
            layers = map_area(area, model, output, settings, tags)
            draw_quicklook(output, output / "quicklook.png", area)
        described = {**facts, "crs": crs_name(grid.crs), "map": {"area": name, "inference": inference}}
        write_model_card(output, *model_card(schema, figures, facts=described))
        shutil.rmtree(work)
        answers.append({"area": name, **{layer: str(path) for layer, path in layers.items()}})
    return answers


def predict_folder(
    module: "LandslideModule",
    source: str,
    target: str,
    inference: dict[str, Any] | None = None,
    calibration: str | None = None,
) -> list[dict[str, Any]]:
    """Maps of a folder of rasters; see :func:`map_folder`.

    Args:
        module: loaded from a checkpoint, or an ensemble.
        source: folder with the rasters, or with a folder for each area.
        target: folder.
        inference: changes to the checkpoint's, such as ``{mc_dropout: 20}``.
        calibration: JSON that evaluate.py wrote, of an ensemble or of a changed inference.
    """
    state = json.loads(Path(calibration).read_text()) if calibration else module.calibration
    if state is None or state["kind"] == "none":
        log.warning("the model is not calibrated: its probabilities are the network's own")
    if inference and not calibration:
        log.warning("the calibration was fitted with the checkpoint's inference, not with %s", inference)
    changed = check_inference(module.inference | (inference or {}))
    return map_folder(module.members, state, changed, source, target, facts(module))


def mean_calibration(states: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The geometric mean of temperatures and weights, the mean of biases; None where a member has none of them.

    >>> mean_calibration([{"kind": "temperature", "temperature": t} for t in (1.0, 4.0)])["temperature"]
    2.0
    """
    known = [state for state in states if state is not None and "temperature" in state]
    if len(known) < len(states) or len({state["kind"] for state in known}) > 1:
        return None
    mean: dict[str, Any] = {"kind": known[0]["kind"], "of": "the members' mean"}
    mean["temperature"] = float(np.exp(np.mean([np.log(state["temperature"]) for state in known])))
    if "bias" in known[0]:
        mean["bias"] = np.mean([state["bias"] for state in known], axis=0).tolist()
    if all("decision" in state for state in known):
        weights = np.exp(np.mean([np.log(state["decision"]["weights"]) for state in known], axis=0))
        mean["decision"] = {"weights": weights.tolist()}
    return mean


def facts(module: "LandslideModule") -> dict[str, Any]:
    """What the card says beside schema and figures."""
    areas = module.schema["areas"]
    return {
        "crs": sorted({crs_name(wkt) for wkt in areas.values()}),
        "training_areas": sorted(areas),
        "calibration": module.calibration,
        "network": dict(module.hparams["network"] or {}),
        "inference": module.inference,
        "members": len(module.members),
    }
