"""What only a finished model can have: a calibration, the score of its exported map, a card."""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np

from ...datamodules.errors import StagewiseError
from . import fitting, mapping
from .evaluation import evaluate_maps
from .inference import WORK
from .model_card import model_card, write_model_card
from .quicklook import draw_quicklook

if TYPE_CHECKING:
    from .module import LandslideModule

log = logging.getLogger(__name__)
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
    module.calibration, module.inference = fitting.fit(module, datamodule, target, choose_crf=True)
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
    if len(module.members) > 1 or inference:
        module.calibration, _ = fitting.fit(module, datamodule, folder, choose_crf=False)
        (folder / CALIBRATION_FILE).write_text(json.dumps(module.calibration))
    return scored(module, datamodule, split, folder, baselines)


def scored(
    module: "LandslideModule", datamodule: Any, split: str, folder: Path, baselines: bool = True
) -> tuple[dict[str, float], str]:
    """The maps of all areas that have labels of the split, and their figures."""
    maps = {}
    for name in fitting.areas_of(datamodule, split):
        chain = fitting.chain_of(module, datamodule.areas[name], folder, module.inference, module.calibration)
        if chain.waiting(fitting.maps_folder(folder, name)):
            chain.run()
            chain.write(fitting.maps_folder(folder, name), {"stagewise_model": chain.model.key})
        maps[name] = fitting.maps_folder(folder, name)
        draw_quicklook(maps[name], maps[name] / "quicklook.png", datamodule.areas[name])
    if not maps:
        raise StagewiseError(f"no area has labelled pixels of the split '{split}'.")
    for work in folder.glob(f"maps/*/{WORK}"):  # also of areas that only calibrated
        shutil.rmtree(work)
    options = {**(module.hparams["evaluation"] or {}), "baselines": baselines}
    return evaluate_maps(maps, datamodule.areas, datamodule.splits, module.schema, folder, split, **options)
