"""A network, its loss, and the two metrics that the callbacks read."""

import lightning as L
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassConfusionMatrix

from stagewise.lightning_modules import Quantile


class Classifier(L.LightningModule):
    def __init__(self, network, optimizer, class_names):
        super().__init__()
        self.network, self.optimizer = network, optimizer
        self.class_names = class_names  # RareClassCollapseStopping reads it
        self.loss_weights = {"large_logits": 0.0}  # LossRamp writes it
        self.val_confusion = MulticlassConfusionMatrix(len(class_names))
        self.val_median = Quantile(0.5)

    def training_step(self, batch, batch_idx):
        logits = self.network(batch["image"])
        return cross_entropy(logits, batch["label"]) + self.loss_weights["large_logits"] * logits.square().mean()

    def validation_step(self, batch, batch_idx):
        logits = self.network(batch["image"])
        self.val_confusion.update(logits, batch["label"])
        self.val_median.update(cross_entropy(logits, batch["label"], reduction="none"), batch["sample_id"])
        self.log("val/median_loss", self.val_median, batch_size=len(logits))

    def on_validation_epoch_end(self):
        self.val_confusion.reset()

    def configure_optimizers(self):
        return self.optimizer(self)
