"""The Lightning module of image geolocation."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ...datamodules.errors import CheckpointError, StagewiseError
from ...datamodules.geolocation.geodesy import haversine_km
from ..base import TaskModule
from ..metrics import PredictionTable
from ..start import load_start, rank_zero_first
from . import decoding, evaluation, losses, predicting, scores
from .figures import draw_predictions
from .network import GeolocationNetwork, check_same_geography
from .objective import GeolocationObjective
from .retrieval import ReferenceBank

log = logging.getLogger(__name__)
_TABLE = (
    "truth_deg",
    "label",
    "region_logits",
    "log_p",
    "place_deg",
    "hypothesis_cell",
    "hypothesis_region",
    "cell_rank",
    *scores.LADDER,
)


class GeolocationModule(TaskModule):
    """Trains, validates and tests a :class:`GeolocationNetwork` end to end.

    The network is built in ``setup`` from the data module's geography, or from a checkpoint.

    Args:
        network: ``{clip, scene, image_px, dropout}`` of :class:`GeolocationNetwork`.
        loss: ``{weights, tau_km, km, beta, balance}``; ``balance`` ``weights`` weighs the region and offset losses by
            effective numbers; ``sampler`` leaves the balance to the batches.
        decode: ``{regions, cells, rule, retrieval}``; ``rule`` ``auto`` takes the one that wins on val;
            ``retrieval`` is null or the arguments of :meth:`ReferenceBank.refine`.
        optimizer: a :class:`GroupedOptimizer`; not needed for inference.
        start_from: checkpoint of the phase before.
    """

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        decode: dict[str, Any] | None = None,
        optimizer: Any = None,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.optimizer = optimizer
        self.loss_options = dict(loss or {})
        self.loss_weights = {"province": 0.5, "cell": 1.0, "offset": 1.0, "aux": 0.1} | self.loss_options.pop(
            "weights", {}
        )
        if unknown := sorted(set(self.loss_weights) - set(losses.LOSSES)):
            raise StagewiseError(f"loss.weights has unknown key(s) {unknown}; known: {', '.join(losses.LOSSES)}.")
        if not any(self.loss_weights.values()):
            raise StagewiseError("all loss.weights are 0, nothing would be trained; give one of them a weight.")
        self.decode = {"regions": 2, "cells": 5, "retrieval": None} | (decode or {})
        self.rule = self.decode.pop("rule", "auto")
        self.geography: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # the data module's configuration, for evaluate.py
        self.calibration: dict[str, Any] = dict(scores.NO_CALIBRATION)
        self.bank: ReferenceBank | None = None
        self.evaluated: dict[str, Tensor] = {}  # rows of the last evaluation, for figures and reports
        self.eval_prefix = "test"

    # --- building ---

    @property
    def class_names(self) -> list[str]:
        """Regions as they stand in metric names."""
        return [scores.slug(name) for name in self.geography["region_names"]]

    def setup(self, stage: str) -> None:
        """Builds the network from the data's geography and loads the weights of the phase before."""
        starts = self.hparams["start_from"] is not None
        if not self.geography:
            self.build(self.data.geography, load=stage != "fit" or not starts)
            if stage == "fit" and starts:
                load_start(self, self.hparams["start_from"])

    def build(self, geography: dict[str, Any], load: bool) -> None:
        """Makes the network, tables and metrics for a region list and a cell table."""
        self.geography = geography
        self.network = GeolocationNetwork(geography, **(self.hparams["network"] or {}), load=load)
        self.objective = GeolocationObjective(geography, **self.loss_options)
        n = len(geography["region_names"])
        self.val_confusion = MulticlassConfusionMatrix(n)
        self.train_table = PredictionTable(("error_km", "label", "predicted"))
        self.eval_table = PredictionTable(_TABLE)

    def on_fit_start(self) -> None:
        """Says how the imbalance is corrected; fills the feature cache where one is asked for."""
        log.info("class imbalance is corrected by: %s", self.objective.balance)
        if self.data.views:
            with torch.no_grad(), rank_zero_first(self.trainer):
                self.data.cache_features(self.network.encode, self.network.encoder_key(), self.device)

    # --- one step for all splits ---

    def losses_of(self, batch: dict[str, Tensor], out: dict[str, Tensor]) -> dict[str, Tensor]:
        """The four losses and their weighted ``total``."""
        return self.objective(self.network, batch, out, self.loss_weights)

    def _log_losses(self, prefix: str, parts: dict[str, Tensor], size: int) -> None:
        train = prefix == "train"
        names = {"total": "loss", "cell": "loss_geocell"}
        values = {f"{prefix}/{names.get(k, 'loss_' + k)}": v.detach() for k, v in parts.items()}
        self.log_dict(values, on_step=train, on_epoch=True, prog_bar=train, batch_size=size, sync_dist=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch; also keeps the end-to-end error of its likeliest cell."""
        if "clip_features" in batch and (self.network.is_open("clip") or self.network.is_open("scene")):
            raise StagewiseError("an encoder is open but its features are cached; set datamodule.feature_cache=null.")
        out = self.network(batch)
        parts = self.losses_of(batch, out)
        self._log_losses("train", parts, len(batch["label"]))
        with torch.no_grad():
            region = out["region_logits"].argmax(-1)
            cell = self.network.cell_at[region, out["cell_logits"][torch.arange(len(region)), region].argmax(-1)]
            error = haversine_km(self.network.locate(out["embedding"], cell).float(), batch["lat_lon_deg"])
            self.train_table.update(batch["draw"], {"error_km": error, "label": batch["label"], "predicted": region})
        return parts["total"]

    def on_train_epoch_end(self) -> None:
        """Logs the train side of ``losses.csv``."""
        rows = self.train_table.compute()
        values = scores.error_scores(rows["error_km"]) | scores.region_scores(
            rows["predicted"], rows["label"], self.geography["region_names"]
        )
        self.log_figures("train", values)
        self.train_table.reset()

    def _evaluation_step(self, batch: dict[str, Tensor], prefix: str) -> None:
        out = self.network(batch)
        self._log_losses(prefix, self.losses_of(batch, out), len(batch["label"]))
        rows = self.prediction_rows(out) | decoding.truth_rows(self.network, batch, out)
        self.eval_table.update(batch["sample_id"], rows)
        if prefix == "val":
            answer = decoding.answer_of(rows["log_p"], rows["hypothesis_region"]).unsqueeze(1)
            self.val_confusion.update(rows["hypothesis_region"].gather(1, answer).squeeze(1), batch["label"])

    def prediction_rows(self, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hypotheses of a forward pass; see :func:`decoding.prediction_rows`."""
        return decoding.prediction_rows(self.network, out, self.bank, **self.decode)

    # --- validation and test ---

    def on_validation_epoch_start(self) -> None:
        """Embeds the train pictures anew, as retrieval needs them."""
        self.val_confusion.reset()
        if self.decode["retrieval"] is not None and self.trainer.state.fn == "fit":
            self.bank = self._embed_reference()

    def _embed_reference(self) -> ReferenceBank:
        parts = []
        for batch in self.data.reference_dataloader():
            batch = self.data.on_after_batch_transfer({k: v.to(self.device) for k, v in batch.items()}, 0)
            parts.append((self.network.embed(self.network.encode(batch)), batch["lat_lon_deg"], batch["cell"]))
        embedding, place, cell = (torch.cat(column) for column in zip(*parts))
        return ReferenceBank.of(embedding.float(), place, cell)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch of val."""
        self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Calibrates on val, then logs every figure."""
        rows = self.eval_table.compute()
        self.calibration = scores.calibrate(rows, self.rule)
        self._finish("val", rows)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch of any other split."""
        self._evaluation_step(batch, self.eval_prefix)

    def on_test_epoch_end(self) -> None:
        """Logs every figure with the calibration of val."""
        self._finish(self.eval_prefix, self.eval_table.compute())

    def _finish(self, prefix: str, rows: dict[str, Tensor]) -> None:
        self.evaluated = rows
        values = scores.end_to_end_scores(rows, self.geography["region_names"], self.calibration)
        self.log_figures(prefix, values)
        self.eval_table.reset()

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint self-contained."""
        metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()} if self._trainer else {}
        bank = vars(self.bank) if self.bank is not None else None
        checkpoint["provenance"] = {**self.provenance, "module": type(self).__name__}
        checkpoint["geolocation"] = {
            "geography": self.geography,
            "calibration": self.calibration,
            "bank": bank,
            "metrics": metrics,
            "start_from": self.hparams["start_from"],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network of the checkpoint, or checks that it is the same one."""
        if "geolocation" not in checkpoint:
            raise CheckpointError("the checkpoint is not one of GeolocationModule; pass one that train.py wrote.")
        state = checkpoint["geolocation"]
        if not self.geography:
            self.build(state["geography"], load=False)
        check_same_geography(state["geography"], self.geography)
        self.calibration = state["calibration"]
        self.provenance = self.provenance or checkpoint.get("provenance", {})  # a run that starts here keeps its own
        self.bank = ReferenceBank(**state["bank"]) if state["bank"] and self.decode["retrieval"] else None

    # --- use ---

    def evaluate(
        self, datamodule: Any, trainer: L.Trainer, split: str, folder: str, **options: Any
    ) -> tuple[dict[str, float], str]:
        """The whole list of :func:`evaluation.evaluate`, as numbers and as text."""
        metrics = evaluation.evaluate(self, datamodule, trainer, split, folder, **options)
        return metrics, evaluation.as_text(metrics, split, self.geography["region_names"])

    def predict_images(self, paths: Sequence[str | Path]) -> list[dict[str, Any]]:
        """Coordinates, hypotheses and a 90 % radius for picture files; see :func:`predicting.predict_tensors`."""
        return predicting.predict_images(self, paths)

    def predict_folder(self, source: str, target: str, **options: Any) -> list[dict[str, Any]]:
        """The same for a folder, written as CSV, GeoJSON and maps; see :func:`predicting.predict_folder`."""
        return predicting.predict_folder(self, source, target, **options)

    def draw_report(self, folder: Path) -> None:
        """``map.png`` of the last evaluation, for the run's folder."""
        draw_predictions(self.evaluated, self.geography, self.calibration["rule"], folder / "map.png", "val split")
