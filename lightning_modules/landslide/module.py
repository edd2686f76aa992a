"""The Lightning module of landslide susceptibility."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ...datamodules.errors import CheckpointError, StagewiseError
from . import finishing, fitting, mapping
from .network import LandslideNetwork
from .objective import LandslideObjective
from .scores import confusion_scores

log = logging.getLogger(__name__)


class LandslideModule(L.LightningModule):
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

    def configure_optimizers(self) -> Any:
        """What the :class:`GroupedOptimizer` makes of this module."""
        if self.optimizer is None:
            raise StagewiseError("the module has no optimizer; pass optimizer=GroupedOptimizer(...).")
        return self.optimizer(self)

    # --- steps ---

    def _step(self, batch: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
        out = self.network(batch["image"])
        parts = self.objective(out, batch["mask"])
        values = {f"{prefix}/loss" if k == "total" else f"{prefix}/loss_{k}": v.detach() for k, v in parts.items()}
        train, size = prefix == "train", len(batch["mask"])
        self.log_dict(values, on_step=train, on_epoch=True, prog_bar=train, batch_size=size, sync_dist=not train)
        return parts["total"], out["logits"].detach()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch of tiles."""
        return self._step(batch, "train")[0]

    def on_validation_epoch_start(self) -> None:
        """Forgets what a sanity check has left."""
        self.val_confusion.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch of val: each labelled pixel of the split once."""
        logits = self._step(batch, "val")[1]
        self.val_confusion.update(logits.argmax(1), batch["mask"])

    def on_validation_epoch_end(self) -> None:
        """Kappa, F1 and each class's recall over all labelled pixels of val."""
        found = confusion_scores(self.val_confusion.compute().cpu().numpy(), self.class_names)
        self.log_dict({f"val/{k}": torch.tensor(v, dtype=torch.float32) for k, v in found.items()})

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
