"""This project's own callbacks."""

from lightning.pytorch import Callback


class CountBatches(Callback):
    """Batches that this process has trained on."""

    batches = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
