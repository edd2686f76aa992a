"""What only a finished model can have: a calibration, the score of its exported map, a card."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from . import calibration, mapping
from .evaluation import evaluate_maps
from .inference import WORK, Inference, squares
from .model_card import model_card, write_model_card
from .quicklook import draw_quicklook

if TYPE_CHECKING:
    from .module import LandslideModule

log = logging.getLogger(__name__)
MOST_PIXELS = 2_000_000
CALIBRATION_FILE = "calibration.json"


def finish(module: "LandslideModule", trainer: L.Trainer, datamodule: Any, best: str, folder: Path) -> None:
    """Calibrates the best checkpoint, scores it on test, and writes what a user reads.

    Args:
        module: with the weights of the best checkpoint.
        trainer: of the run.
        datamodule: of the run.
        best: the checkpoint, which gets calibration and metrics.
        folder: of the run; ``evaluation_test`` in it takes the maps, figures and ``metrics.json``.
    """
    if not trainer.is_global_zero:
        return
    module.to(trainer.strategy.root_device)
    target = folder / "evaluation_test"
    if module.calibration_kind != "none":
        module.calibration = fitted(module, datamodule, target)
    module.metrics, text = scored(module, datamodule, "test", target)
    numbers = {name: None if np.isnan(value) else value for name, value in module.metrics.items()}  # NaN is no JSON
    (target / "metrics.json").write_text(json.dumps(numbers, indent=1))
    checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(best, weights_only=True)
    module.on_save_checkpoint(checkpoint)
    trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, best)
    write_model_card(folder, *model_card(module.schema, module.metrics, facts=mapping.facts(module)))
    log.info("%s\nwritten: %s/model_card.md and %s", text, folder, target)


def evaluate(
    module: "LandslideModule",
    datamodule: Any,
    trainer: L.Trainer,
    split: str,
    folder: Path,
    baselines: bool = True,
    inference: dict[str, Any] | None = None,
) -> tuple[dict[str, float], str]:
    """Makes the maps of a split's areas and scores them; an ensemble is calibrated first.

    Args:
        module: loaded from a checkpoint, or an ensemble.
        datamodule: its data; takes the checkpoint's splits.
        trainer: says the device.
        split: ``test``, ``val``, ``calibration`` or ``train``.
        folder: for maps and pictures.
        baselines: fits and scores them, too.
        inference: changes to the checkpoint's, such as ``{crf: null}``.
    """
    datamodule.adopt(module.schema)
    datamodule.prepare_data()
    datamodule.setup("test")
    for member in module.members:
        member.to(trainer.strategy.root_device)
    module.inference = mapping.check_inference(module.inference | (inference or {}))
    if module.calibration_kind != "none" and (len(module.members) > 1 or inference):
        module.calibration = fitted(module, datamodule, folder)
        (folder / CALIBRATION_FILE).write_text(json.dumps(module.calibration))
    return scored(module, datamodule, split, folder, baselines)


def scored(
    module: "LandslideModule", datamodule: Any, split: str, folder: Path, baselines: bool = True
) -> tuple[dict[str, float], str]:
    """The maps of all areas that have labels of the split, and their figures."""
    maps = {}
    for name in areas_of(datamodule, split):
        chain = chain_of(module, datamodule.areas[name], folder, module.calibration)
        if chain.waiting(maps_folder(folder, name)):
            chain.run()
            chain.write(maps_folder(folder, name), {"stagewise_model": chain.model.key})
        maps[name] = maps_folder(folder, name)
        draw_quicklook(maps[name], maps[name] / "quicklook.png", datamodule.areas[name])
    if not maps:
        raise StagewiseError(f"no area has labelled pixels of the split '{split}'.")
    options = {**(module.hparams["evaluation"] or {}), "baselines": baselines}
    return evaluate_maps(maps, datamodule.areas, datamodule.splits, module.schema, folder, split, **options)


def areas_of(datamodule: Any, split: str) -> list[str]:
    """Areas with labelled pixels of a split."""
    found = [name for name, area in datamodule.areas.items() if name in datamodule.splits.codes and area.has_labels]
    return [name for name in found if datamodule.splits.has(name, split)]


def maps_folder(folder: Path, area: str) -> Path:
    """Where an area's layers lie."""
    return folder / "maps" / area


def chain_of(module: "LandslideModule", area: Any, folder: Path, state: dict[str, Any] | None) -> Inference:
    """The chain of an area, with its steps kept in the folder of its map."""
    model = mapping.model_of(module.members, state, module.inference["mc_dropout"] > 1)
    settings = mapping.settings_of(module.inference, module.device)
    return Inference(area, model, settings, maps_folder(folder, area.name) / WORK)


def fitted(module: "LandslideModule", datamodule: Any, folder: Path) -> dict[str, Any]:
    """A calibration fitted on its own split, after everything that inference does."""
    probability, label = [], []
    for name in areas_of(datamodule, "calibration"):
        area = datamodule.areas[name]
        chain = chain_of(module, area, folder, None)
        chain.run()
        for window in squares(area.height, area.width):
            here = np.where(datamodule.splits.mask(name, window, "calibration"), area.read_labels(window), -1)
            if (here >= 0).any():
                probability.append(chain.probability(window, calibrated=False)[:, here >= 0].T)
                label.append(here[here >= 0])
    if not label:
        raise StagewiseError("the split has no calibration part; give it a share, or set calibration=none.")
    state = calibration.fit(*_thinned(np.concatenate(probability), np.concatenate(label)), module.calibration_kind)
    log.info(
        "calibration: %s", {k: round(v, 4) if isinstance(v, float) else v for k, v in state.items() if k != "steps"}
    )
    return state


def _thinned(
    probability: NDArray[np.float32], label: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    known = np.flatnonzero(np.isfinite(probability).all(1))
    if len(known) > MOST_PIXELS:
        known = np.random.default_rng(0).choice(known, MOST_PIXELS, replace=False)
    return probability[known], label[known]
