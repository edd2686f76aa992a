"""What is fitted to a finished network: calibration, rule of decision, and whether the CRF is used at all."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from . import calibration, decision, mapping
from .inference import WORK, Inference, squares

if TYPE_CHECKING:
    from .module import LandslideModule

log = logging.getLogger(__name__)
MOST_PIXELS = 2_000_000
Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Probabilities (N, K) before calibration, and labels (N,)."""


def fit(
    module: "LandslideModule", datamodule: Any, folder: Path, choose_crf: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fits what comes after the network, never on test.

    The calibration is fitted on its split, after everything that inference does. The rule of decision, and with
    ``inference.crf_must_pay`` the CRF, are chosen on val, which chose the epoch: a refinement that lowers the map's
    quadratic kappa there is left out and said to be, like a training stage that did not pay.

    Args:
        module: on its device.
        datamodule: set up.
        folder: of the maps; the network's answers stay there for them.
        choose_crf: whether the CRF may be left out.

    Returns:
        The state for a checkpoint, and the inference that it holds for.
    """
    inference = module.inference
    state = _fit_one(module, datamodule, folder, inference)
    if not choose_crf or inference["crf"] is None or not inference["crf_must_pay"]:
        return state, inference
    kappa = state.get("decision", {}).get("quadratic_kappa", float("nan"))
    if np.isnan(kappa):
        log.warning("CRF kept unchecked: val has no labelled pixels, or of one class alone, to choose it on.")
        return state, inference
    plain = _fit_one(module, datamodule, folder, inference | {"crf": None})
    kappas = {"kappa_with": kappa, "kappa_without": plain["decision"]["quadratic_kappa"]}
    kept = bool(kappas["kappa_with"] >= kappas["kappa_without"])
    said = "kept" if kept else "left out"
    log.info("CRF %s: quadratic kappa on val is %.3f with it, %.3f without.", said, *kappas.values())
    crf = {"crf": {"kept": kept, **kappas}}
    return (state | crf, inference) if kept else (plain | crf, inference | {"crf": None})


def _fit_one(module: "LandslideModule", datamodule: Any, folder: Path, inference: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"kind": "none"}
    if module.calibration_kind != "none":
        p, y = labelled(module, datamodule, folder, inference, "calibration")
        state = calibration.fit(p, y, module.calibration_kind)
        said = {k: round(v, 4) if isinstance(v, float) else v for k, v in state.items() if k != "steps"}
        log.info("calibration: %s", said)
    if areas_of(datamodule, "val"):
        p, y = labelled(module, datamodule, folder, inference, "val")
        frequency = np.array(module.schema["class_count"]) / sum(module.schema["class_count"])
        state["decision"] = decision.choose(calibration.apply(p.T, state).T, y, frequency)
    return state


def check(kind: str, pixels: Sequence[int], classes: Sequence[str]) -> None:
    """Refuses before training what could not be fitted after it.

    Args:
        kind: of the calibration.
        pixels: (K,) labelled ones of the calibration split.
        classes: names.

    Raises:
        StagewiseError: names what the split lacks, and the remedy.
    """
    if kind not in calibration.KINDS:
        raise StagewiseError(f"`calibration` must be one of {', '.join(calibration.KINDS)}, got '{kind}'.")
    absent = [name for name, count in zip(classes, pixels) if not count]
    if kind == "none" or not absent or (kind != "temperature_bias" and len(classes) - len(absent) > 1):
        return
    raise StagewiseError(
        f"the calibration split has no labelled pixel of {', '.join(absent)}; give splits.shares.calibration more, "
        f"change splits.seed, or set calibration={'temperature' if len(classes) - len(absent) > 1 else 'none'}."
    )


def labelled(
    module: "LandslideModule", datamodule: Any, folder: Path, inference: Mapping[str, Any], split: str
) -> Labelled:
    """Uncalibrated answers of the whole chain over the labelled pixels of a split.

    Raises:
        StagewiseError: the split has none.
    """
    probability, label = [], []
    for name in areas_of(datamodule, split):
        area = datamodule.areas[name]
        chain = chain_of(module, area, folder, inference, None)
        chain.run()
        for window in squares(area.height, area.width):
            here = np.where(datamodule.splits.mask(name, window, split), area.read_labels(window), -1)
            if (here >= 0).any():
                probability.append(chain.probability(window, calibrated=False)[:, here >= 0].T)
                label.append(here[here >= 0])
    if not label:
        raise StagewiseError(f"the split has no {split} part; give it a share, or set calibration=none.")
    return _thinned(np.concatenate(probability), np.concatenate(label))


def _thinned(probability: NDArray[np.float32], label: NDArray[np.int64]) -> Labelled:
    known = np.flatnonzero(np.isfinite(probability).all(1))
    if len(known) > MOST_PIXELS:
        known = np.random.default_rng(0).choice(known, MOST_PIXELS, replace=False)
    return probability[known], label[known]


def areas_of(datamodule: Any, split: str) -> list[str]:
    """Areas with labelled pixels of a split."""
    found = [name for name, area in datamodule.areas.items() if name in datamodule.splits.codes and area.has_labels]
    return [name for name in found if datamodule.splits.has(name, split)]


def maps_folder(folder: Path, area: str) -> Path:
    """Where an area's layers lie."""
    return folder / "maps" / area


def chain_of(
    module: "LandslideModule", area: Any, folder: Path, inference: Mapping[str, Any], state: dict[str, Any] | None
) -> Inference:
    """The chain of an area, with its steps kept in the folder of its map."""
    model = mapping.model_of(module.members, state, inference["mc_dropout"] > 1)
    settings = mapping.settings_of(inference, module.device)
    return Inference(area, model, settings, maps_folder(folder, area.name) / WORK)
