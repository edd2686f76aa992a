"""A callback that fails in one process of one run; ``test_machines.py`` puts it into a sweep."""

from lightning import Callback


class FailingCallback(Callback):
    """Fails at the second batch of the run with seed 0."""

    def __init__(self, seed, rank):
        self.seed, self.rank = seed, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.seed == 0 and trainer.global_rank == self.rank and batch_idx == 1:
            raise OverflowError(f"rank {self.rank} ends here")
