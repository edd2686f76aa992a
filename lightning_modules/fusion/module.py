"""The Lightning module of fusion."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from ...datamodules.errors import CheckpointError, StagewiseError
from ..base import TaskModule
from ..metrics import PredictionTable
from ..start import rank_zero_first
from . import evaluation, predicting
from .answers import Rows, cross_fitted_rows, rows_of
from .forest import MetadataForest
from .network import FusionNetwork
from .objective import FusionObjective
from .out_of_fold import forest_probabilities
from .rules import fit_rule
from .scores import figures, recalls, tally
from .settings import check_checkpoint, check_pictures, check_settings
from .transfer import load_branch, read_branch

log = logging.getLogger(__name__)
_NO_START = (
    "modality=fusion without image_from would fuse the metadata with a random head. Train the pictures alone first "
    "(lightning_module.modality=image) and pass lightning_module.image_from=CHECKPOINT; allow_random_head=true shows "
    "what it does."
)


class FusionModule(TaskModule):
    """Trains a :class:`FusionNetwork`: which phase is a wound in, by its metadata and its thermal pictures.

    The network is built in ``setup`` from the data module's schema, or from a checkpoint. The forest is fitted there,
    too; its probabilities are looked up by a batch's ``row``.

    Args:
        modality: ``fusion``, or ``metadata`` or ``image`` alone, on the same rows.
        forest: of :func:`~.out_of_fold.forest_probabilities`: ``cache_dir``, ``probabilities``, ``folds`` and those of
            :class:`MetadataForest`.
        branch: of :class:`~.branch.PictureBranch`: ``{name, pretrained, head, model}``.
        rule: of :func:`~.rules.make_rule`: ``{kind, weights}``.
        loss: of :class:`FusionObjective`: ``{kind, gamma, weighting, beta, ordinal}``.
        image_from: checkpoint of a run with ``modality=image``, whose branch a fusion starts from.
        allow_random_head: fuses a branch that was never trained; only to see what it does.
        evaluation: ``{draws}`` of :func:`evaluation.evaluate`.
        scored: on test, at the end of a run; not where a fusion starts from it, which scores it on the same rows.
        optimizer: a :class:`GroupedOptimizer`; not needed for inference.

    Raises:
        StagewiseError: settings of :func:`~.settings.check_settings`.
    """

    def __init__(
        self,
        modality: str = "fusion",
        forest: dict[str, Any] | None = None,
        branch: dict[str, Any] | None = None,
        rule: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        image_from: str | None = None,
        allow_random_head: bool = False,
        evaluation: dict[str, Any] | None = None,
        scored: bool = True,
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        check_settings(self.hparams)
        self.optimizer = optimizer
        self.schema: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # the data module's configuration, for evaluate.py
        self.metadata: dict[str, Tensor] = {}  # split -> (N, K) of the forest, NaN where a row has no metadata
        self.forest: dict[str, Any] | None = None  # state of the forest, and its answers for train
        self.alone: dict[str, Tensor] | None = None  # the picture branch as it was before the fusion moved it
        self.metrics: dict[str, float] = {}  # of the test

    # --- building ---

    @property
    def class_names(self) -> list[str]:
        """As they stand in metric names."""
        return [str(name).replace(" ", "_") for name in self.schema["classes"]]

    def setup(self, stage: str) -> None:
        """Builds the network for the data's classes and pictures; fits the forest, or finds it in the cache."""
        if not self.schema:
            check_pictures(self.hparams["modality"], self.data.splits)
            self.build(self.data.schema, load=True)
            with rank_zero_first(self.trainer):
                self._fit_forest()

    def build(self, schema: dict[str, Any], load: bool) -> None:
        """Makes network, loss and metrics.

        Args:
            schema: of the data.
            load: pretrained weights and ``image_from``; a checkpoint brings its own.

        Raises:
            StagewiseError: a fusion that would start from a random head.
            CheckpointError: ``image_from`` is of other data, or a tensor does not match.
        """
        modality, start = self.hparams["modality"], self.hparams["image_from"]
        if load and modality == "fusion" and not start and not self.hparams["allow_random_head"]:
            raise StagewiseError(_NO_START)
        plain = load and not (modality == "fusion" and start)
        self.schema = schema
        self.network = FusionNetwork(schema, modality, self.hparams["branch"], self.hparams["rule"], load=plain)
        if load and modality == "fusion":
            self._start(start)
        self.objective = FusionObjective(schema["class_count"], **(self.hparams["loss"] or {}))
        self.val_confusion = MulticlassConfusionMatrix(len(schema["classes"]))
        self.table = PredictionTable(("row", "label", "picture", "probability"))
        self.train_loss = MeanMetric()  # logged once an epoch: at each step it cost a tenth of a small network's time

    def _start(self, path: str | None) -> None:
        branch = self.network.picture
        assert branch is not None
        if path:
            load_branch(branch, read_branch(path, self.schema), path)
        else:
            log.warning("fusion: the picture branch was never trained (allow_random_head=true). This run shows a trap.")
        self.alone = {name: value.detach().cpu().clone() for name, value in branch.state_dict().items()}

    def _fit_forest(self) -> None:
        if self.hparams["modality"] == "image":
            return
        tables = {name: self.data.table(name) for name in self.data.splits}
        found = forest_probabilities(tables, **{"cache_dir": ".cache/stagewise", **(self.hparams["forest"] or {})})
        self.metadata = found["probability"]
        train = {"ids": tables["train"].ids.tolist(), "probability": self.metadata["train"]}
        self.forest = {"state": found["state"], "train": train}

    def metadata_of(self, name: str, table: Any) -> Tensor:
        """(N, K) of the forest for the rows of a split, those of train out of fold; NaN where there is none."""
        if self.forest is None:
            return torch.full((len(table), len(self.schema["classes"])), torch.nan)
        if name == "train":
            place = {one: i for i, one in enumerate(self.forest["train"]["ids"])}
            found: Tensor = self.forest["train"]["probability"][[place[one] for one in table.ids.tolist()]]
            return found
        return torch.from_numpy(MetadataForest.from_state(self.forest["state"]).probabilities(table))

    # --- one step for all splits ---

    def answer(self, batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """What the network says of a batch of a split."""
        if name not in self.metadata:
            self.metadata[name] = self.metadata_of(name, self.data.table(name))
        found: dict[str, Tensor] = self.network(batch, self.metadata[name].to(self.device)[batch["row"]])
        return found

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """One batch of rows; None where nothing is trained, or no row has a picture to learn from."""
        seen, trained = batch["has_image"].bool(), any(p.requires_grad for p in self.parameters())
        if seen.any() and trained:
            out = self.answer(batch, "train")
            levels = {"levels": out["levels"]} if "levels" in out else {}
            loss: Tensor = self.objective({"probability": out["probability"][seen], **levels}, batch["label"][seen])
        elif trained and self.trainer.world_size > 1:  # the other processes wait for this one's gradients
            loss = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0
        else:
            return None
        self.train_loss.update(loss.detach(), int(seen.sum()))
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss of the rows."""
        if self.train_loss.update_called:
            self.log_figures("train", {"loss": self.train_loss.compute()})
            self.train_loss.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch of val."""
        out = self.answer(batch, "val")
        answers = {name: out[name].float() for name in ("picture", "probability")}
        self.table.update(batch["sample_id"], {"row": batch["row"], "label": batch["label"], **answers})

    def on_validation_epoch_start(self) -> None:
        """Counts anew."""
        self.val_confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Fits the rule if it learns from val, and logs every figure; each row weighs once."""
        items = self.table.compute()
        self.table.reset()
        rows = rows_of(self.network, items, self.metadata["val"], self.data.table("val"))
        rule = self.network.rule
        if rule is not None and rule.fitted:
            rows = cross_fitted_rows(self.network, rows)
            if self.trainer.state.fn == "fit":
                fit_rule(rule, rows)
        self._log_rows(rows)

    def _log_rows(self, rows: Rows) -> None:
        probability, label = rows["probability"], rows["label"]
        counted = tally(probability, label, rows["group"])
        found = {name: float(value[0]) for name, value in figures(counted).items()}
        found |= {f"recall/{name}": value for name, value in zip(self.class_names, recalls(counted))}
        p, y = (torch.from_numpy(one).to(self.device) for one in (probability, label))
        found["loss"] = float(self.objective({"probability": p}, y))
        self.log_figures("val", {name: value for name, value in found.items() if value == value})  # without NaN
        # every rank has all rows, and the ranks' counts are added up
        own = slice(self.trainer.global_rank, None, self.trainer.world_size)
        self.val_confusion.update(p.argmax(1)[own], y[own])

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint self-contained."""
        checkpoint["provenance"] = {**self.provenance, "module": type(self).__name__}
        own = {"schema": self.schema, "modality": self.hparams["modality"], "metrics": self.metrics}
        checkpoint["fusion"] = {**own, "forest": self.forest, "alone": self.alone}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network of the checkpoint, or checks that it is for the same data."""
        if "fusion" not in checkpoint:
            raise CheckpointError("the checkpoint is not one of FusionModule; pass one that train.py wrote.")
        state = checkpoint["fusion"]
        if not self.schema:
            self.build(state["schema"], load=False)
        check_checkpoint(state, self.schema, self.forest)
        self.forest, self.alone, self.metrics = state["forest"], state["alone"], state["metrics"]
        self.provenance = self.provenance or checkpoint.get("provenance", {})  # a run that starts here keeps its own

    # --- use ---

    def finish(self, trainer: L.Trainer, datamodule: Any, best: str, folder: str) -> None:
        """Scores the best checkpoint on test and writes the figures into it; see :func:`evaluation.finish`."""
        if self.hparams["scored"]:
            evaluation.finish(self, trainer, datamodule, best, Path(folder))

    def evaluate(self, datamodule: Any, trainer: L.Trainer, split: str, folder: str) -> tuple[dict[str, float], str]:
        """Scores a split; see :func:`evaluation.evaluate`."""
        datamodule.adopt(self.schema)
        datamodule.prepare_data()
        datamodule.setup("test")
        self.to(trainer.strategy.root_device)
        return evaluation.evaluate(self, datamodule, split, Path(folder), **(self.hparams["evaluation"] or {}))

    def predict_folder(self, source: str, target: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Answers the rows of a CSV; see :func:`predicting.predict_rows`."""
        return predicting.predict_rows(self, source, target, limit)
