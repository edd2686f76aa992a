"""The Lightning module of landslide susceptibility."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import ModuleDict
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from ...datamodules.errors import CheckpointError
from ..base import EACH_STEP, TaskModule
from . import finishing, fitting, mapping
from .losses import DiceOfAll
from .network import LandslideNetwork
from .objective import LandslideObjective
from .scores import confusion_scores

log = logging.getLogger(__name__)


class LandslideModule(TaskModule):
    """Trains a :class:`LandslideNetwork` and turns rasters into calibrated maps.

    The network is built in ``setup`` from the data module's schema, or from a checkpoint.

    Args:
        network: of :class:`LandslideNetwork`: ``{encoder, weights, attention, dropout}``.
        loss: of :class:`LandslideObjective`: ``{focal, dice, ordinal, soft_labels}``.
        inference: ``{window, overlap, batch, tta, mc_dropout, crf, crf_must_pay}``, see ``mapping.check_inference``.
        calibration: ``temperature_bias``, ``temperature``, ``isotonic`` or ``none``.
        evaluation: ``{train_pixels, trees, block_px}`` of :func:`~.evaluation.evaluate_maps`.
        optimizer: a :class:`GroupedOptimizer`; not needed for inference.
    """

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        inference: dict[str, Any] | None = None,
        calibration: str = "temperature_bias",
        evaluation: dict[str, Any] | None = None,
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.optimizer, self.calibration_kind = optimizer, calibration
        self.inference = mapping.check_inference(inference)
        self.schema: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # the data module's configuration, for evaluate.py
        self.calibration: dict[str, Any] | None = None  # until `finish` has fitted it
        self.metrics: dict[str, float] = {}  # of the test, for the model card
        self.members: list[LandslideModule] = [self]

    # --- building ---

    @property
    def class_names(self) -> list[str]:
        """As they stand in metric names."""
        return list(self.schema["classes"])

    def setup(self, stage: str) -> None:
        """Builds the network for the data's channels and classes.

        Raises:
            StagewiseError: the calibration's split lacks what it needs.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self.schema:
            self.build(data.schema, load=True)
        fitting.check(self.calibration_kind, data.splits.counts["calibration"], self.class_names)

    def build(self, schema: dict[str, Any], load: bool) -> None:
        """Makes network, losses and metrics.

        Args:
            schema: of the data.
            load: the encoder's pretrained weights; a checkpoint brings its own.
        """
        self.schema, size = schema, len(schema["classes"])
        options = dict(self.hparams["network"] or {})
        if not load:
            options["weights"] = None
        network = LandslideNetwork(len(schema["channels"]), size, schema, **options)
        self.network = network.to(memory_format=torch.channels_last)  # faster convolutions, however the images lie
        self.objective = LandslideObjective(size, **(self.hparams["loss"] or {}))
        self.val_confusion = MulticlassConfusionMatrix(size, ignore_index=-1)
        means = {"focal": MeanMetric(), "ordinal": MeanMetric()}  # over labelled pixels
        self.val_losses: Any = ModuleDict({**means, "dice": DiceOfAll(size)})

    # --- steps ---

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch of tiles."""
        parts = self.objective(self.network(batch["image"]), batch["mask"])
        values = {f"train/{_named(name)}": value.detach() for name, value in parts.items()}
        self.log_dict(values, batch_size=len(batch["mask"]), **EACH_STEP)
        return parts["total"]

    def on_validation_epoch_start(self) -> None:
        """Forgets what a sanity check has left."""
        for metric in (self.val_confusion, *self.val_losses.values()):
            metric.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch of val: each labelled pixel of the split once."""
        out, mask = self.network(batch["image"]), batch["mask"]
        parts = self.objective(out, mask)
        self.val_confusion.update(out["logits"].argmax(1), mask)
        self.val_losses["dice"].update(out["logits"], mask)
        for name in ("focal", "ordinal"):
            self.val_losses[name].update(parts[name].detach(), (mask >= 0).sum())

    def on_validation_epoch_end(self) -> None:
        """Losses, kappa, F1 and each class's recall over all labelled pixels of val."""
        parts = {name: metric.compute() for name, metric in self.val_losses.items()}
        parts["total"] = self.objective.total(**parts)
        self.log_figures("val", {_named(name): value for name, value in parts.items()})
        self.log_figures("val", confusion_scores(self.val_confusion.compute().cpu().numpy(), self.class_names))

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint self-contained."""
        checkpoint["provenance"] = {**self.provenance, "module": type(self).__name__}
        state = {"schema": self.schema, "calibration": self.calibration, "metrics": self.metrics}
        checkpoint["landslide"] = state | {"inference": self.inference}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network of the checkpoint, or checks that it is the same one."""
        if "landslide" not in checkpoint:
            raise CheckpointError("the checkpoint is not one of LandslideModule; pass one that train.py wrote.")
        state = checkpoint["landslide"]
        if not self.schema:
            self.build(state["schema"], load=False)
        differs = [k for k in ("channels", "classes", "splits") if state["schema"][k] != self.schema[k]]
        if differs:
            raise CheckpointError(f"the checkpoint's {', '.join(differs)} are not those of this data; train anew.")
        self.calibration, self.metrics = state["calibration"], state["metrics"]
        if self.calibration is not None:  # it was fitted with this inference
            self.inference = mapping.check_inference(state["inference"])
        self.provenance = self.provenance or checkpoint.get("provenance", {})  # a run that starts here keeps its own

    # --- use ---

    def finish(self, trainer: L.Trainer, datamodule: Any, best: str, folder: str) -> None:
        """Calibrates the best checkpoint, scores it on test and writes its card; see :func:`finishing.finish`."""
        finishing.finish(self, trainer, datamodule, best, Path(folder))

    def ensemble(self, others: list["LandslideModule"]) -> "LandslideModule":
        """Answers with the mean over itself and others from now on.

        Its calibration is the mean of the members' temperatures until :meth:`evaluate` has fitted one.
        """
        mapping.check_members([self, *others])
        self.members = [self, *others]
        if any(member.inference != self.inference for member in others):
            log.warning("the members' inference differs; the ensemble uses the first one's: %s", self.inference)
        self.calibration = mapping.mean_calibration([member.calibration for member in self.members])
        return self

    def evaluate(
        self, datamodule: Any, trainer: L.Trainer, split: str, folder: str, **options: Any
    ) -> tuple[dict[str, float], str]:
        """Scores the exported map; see :func:`finishing.evaluate`."""
        return finishing.evaluate(self, datamodule, trainer, split, Path(folder), **options)

    def predict_folder(self, source: str, target: str, **options: Any) -> list[dict[str, Any]]:
        """Maps of a folder of rasters; see :func:`mapping.map_folder`."""
        return mapping.predict_folder(self, source, target, **options)


def _named(part: str) -> str:
    return "loss" if part == "total" else f"loss_{part}"
