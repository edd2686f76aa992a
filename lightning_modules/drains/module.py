"""The Lightning module of drain conditions."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ...datamodules.errors import CheckpointError, StagewiseError
from ..base import EACH_STEP, TaskModule
from ..metrics import PredictionTable
from ..start import rank_zero_first
from . import evaluation, export_cost, serving
from .detectors import open_detector
from .network import DrainNetwork
from .objective import DrainObjective
from .pretraining import clip_of_captions
from .scores import confusions, scores

log = logging.getLogger(__name__)


class DrainModule(TaskModule):
    """Trains a :class:`DrainNetwork`: which condition is the object in, whose type a detector has said.

    The network is built in ``setup`` from the data module's schema, or from a checkpoint.

    Args:
        clip: name of the architecture, open_clip's.
        network: of :class:`DrainNetwork`: ``{clip, prompts, head, text, lora, features}``.
        loss: of :class:`DrainObjective`: ``{gamma, beta, tau, label_smoothing}``; which correction of the imbalance it
            holds, the data module's ``rare.correction`` says.
        captions: of :func:`clip_of_captions`: the network starts from a small CLIP that is first trained on the data
            module's ``caption_pairs``; for demonstrations.
        evaluation: ``{trees, draws}`` of :func:`evaluation.evaluate`.
        optimizer: a :class:`GroupedOptimizer`; not needed for inference.
    """

    def __init__(
        self,
        clip: str = "ViT-L-14",
        network: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        captions: dict[str, Any] | None = None,
        evaluation: dict[str, Any] | None = None,
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.optimizer = optimizer
        self.schema: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # the data module's configuration, for evaluate.py
        self.zero_shot: dict[str, list[int]] | None = None  # split -> answers before anything was trained
        self.metrics: dict[str, float] = {}  # of the test

    # --- building ---

    @property
    def class_names(self) -> list[str]:
        """As they stand in metric names."""
        return [name.replace(" ", "_") for name in self.schema["classes"]]

    def setup(self, stage: str) -> None:
        """Builds the network for the data's features."""
        if not self.schema:
            self.build({**self.data.schema, "corrections": list(self.data.corrections)}, load=True)

    def build(self, schema: dict[str, Any], load: bool) -> None:
        """Makes network, loss and metrics.

        Args:
            schema: of the data.
            load: the published weights; a checkpoint brings its own.
        """
        self.schema = schema
        options = dict(self.hparams["network"] or {})
        clip = {"name": self.hparams["clip"], **(options.get("clip") or {})}
        if load and self.hparams["captions"]:
            plain = {name: value for name, value in clip.items() if name != "pretrained"}
            device, settings = self.trainer.strategy.root_device, self.hparams["captions"]
            with rank_zero_first(self.trainer):
                clip["pretrained"] = clip_of_captions(
                    plain, schema["image"], self.data.caption_pairs, device=device, **settings
                )
        options["clip"] = clip
        self.network = DrainNetwork(schema, **options, load=load)
        self.objective = DrainObjective(schema["class_count"], schema["corrections"], **(self.hparams["loss"] or {}))
        self.val_confusion = MulticlassConfusionMatrix(len(schema["classes"]))
        self.table = PredictionTable(("label", "picture", "logits"))

    def on_fit_start(self) -> None:
        """Says how the imbalance is corrected; answers val and test once before anything is trained."""
        log.info("imbalance is corrected by: %s", " and ".join(self.schema["corrections"]) or "nothing")
        if self.zero_shot is None:
            self.zero_shot = {
                name: evaluation.answer(self, self.data, name)["logits"].argmax(1).tolist()
                for name in self.data.splits
                if name != "train"
            }

    # --- one step for all splits ---

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch of objects."""
        loss: Tensor = self.objective(self.network(batch)["logits"], batch["label"])
        self.log("train/loss", loss.detach(), batch_size=len(batch["label"]), **EACH_STEP)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch of val."""
        logits, label = self.network(batch)["logits"], batch["label"]
        loss = self.objective(logits, label, train=False)
        self.log("val/loss", loss, on_epoch=True, batch_size=len(label), sync_dist=True)
        self.val_confusion.update(logits.argmax(1), label)
        self.table.update(batch["sample_id"], {"label": label, "picture": batch["picture"], "logits": logits})

    def on_validation_epoch_start(self) -> None:
        """Counts anew."""
        self.val_confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Logs every figure of val."""
        rows = {name: value.numpy() for name, value in self.table.compute().items()}
        self.table.reset()
        found = scores(confusions(rows["label"], rows["logits"].argmax(1), rows["picture"]).sum(0))
        self.log_figures("val", {name: value for name, value in found.items() if value == value})  # without NaN

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint self-contained."""
        checkpoint["provenance"] = {**self.provenance, "module": type(self).__name__}
        checkpoint["drains"] = {"schema": self.schema, "zero_shot": self.zero_shot, "metrics": self.metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network of the checkpoint, or checks that it is for the same data."""
        if "drains" not in checkpoint:
            raise CheckpointError("the checkpoint is not one of DrainModule; pass one that train.py wrote.")
        state = checkpoint["drains"]
        if not self.schema:
            self.build(state["schema"], load=False)
        differs = [k for k in ("classes", "features", "image", "splits") if state["schema"][k] != self.schema[k]]
        if differs:
            raise CheckpointError(f"the checkpoint's {', '.join(differs)} are not those of this data; train anew.")
        self.zero_shot, self.metrics = state["zero_shot"], state["metrics"]
        self.provenance = self.provenance or checkpoint.get("provenance", {})  # a run that starts here keeps its own

    # --- use ---

    def finish(self, trainer: L.Trainer, datamodule: Any, best: str, folder: str) -> None:
        """Scores the best checkpoint on test and writes the figures into it; see :func:`evaluation.finish`."""
        evaluation.finish(self, trainer, datamodule, best, Path(folder))

    def evaluate(
        self,
        datamodule: Any,
        trainer: L.Trainer,
        split: str,
        folder: str,
        detections: str | None = None,
        names: list[str] | None = None,
        **settings: Any,
    ) -> tuple[dict[str, float], str]:
        """Scores a split; see :func:`evaluation.evaluate`.

        With ``detections`` (``names`` and ``settings`` as of :meth:`predict_folder`) also from the detector on.
        """
        detector = None if detections is None else open_detector(detections, names, **settings)
        self._adopted(datamodule)
        self.to(trainer.strategy.root_device)
        options = self.hparams["evaluation"] or {}
        return evaluation.evaluate(self, datamodule, split, Path(folder), detector=detector, **options)

    def _adopted(self, datamodule: Any) -> None:
        """Sets a data module up with this checkpoint's splits."""
        datamodule.adopt(self.schema)
        datamodule.prepare_data()
        datamodule.setup("test")

    def export(self, output: str, int8: bool, datamodule: Any, split: str | None) -> str:
        """Writes ONNX and scores it on a split (None scores nothing); see :func:`export_cost.export`."""
        if split is not None:
            self._adopted(datamodule)
        return export_cost.export(self, output, int8, datamodule, split)

    def predict_folder(
        self,
        source: str,
        target: str,
        detections: str | None = None,
        names: list[str] | None = None,
        limit: int | None = None,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Finds the condition of every detected object of a folder of pictures; see :func:`serving.predict_folder`.

        Args:
            source: folder of pictures, or one picture.
            target: folder for what is written.
            detections: of :func:`open_detector`: a folder of YOLO rows, a JSON, an ONNX model.
            names: of the detector's classes by id, where it does not know them itself.
            limit: pictures at most.
            settings: of the detector: ``{px, conf, iou}``.

        Raises:
            StagewiseError: no detections are given.
        """
        if detections is None:
            raise StagewiseError("where the objects are is not known; pass detections=FOLDER_OR_FILE_OR_MODEL.")
        self.network.freeze()
        return serving.predict_folder(self, source, target, open_detector(detections, names, **settings), limit).answers
