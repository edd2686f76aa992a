"""Run by a test: a fit on two gloo processes through thaw, freeze and roll-back; prints what rank 0 gathered."""

import json
import sys

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, sys.argv[1])
import tiny

from stagewise.callbacks import BestMedianCheckpoint, StagedUnfreezing

STAGES = {
    "heads": {"open": ["heads"], "epochs": 1},
    "all": {"open": ["body"], "epochs": 2},  # thaw, no gain: rolled back
    "body": {"open": ["body"], "epochs": 1, "only": True},  # freeze
    "end": {"open": ["heads", "body"], "epochs": 1},
}


class RankDifference(Callback):
    """The largest difference between the ranks over all weights and buffers, after each epoch and at the end."""

    def __init__(self):
        self.differences, self.trainable = [], []

    def measure(self, trainer, pl_module):
        flat = torch.cat([value.double().flatten() for value in pl_module.parameters()])
        every = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(every, flat.detach())
        self.differences.append(float((every[0] - every[1]).abs().max()))
        self.trainable.append(sum(p.requires_grad for p in pl_module.parameters()))

    def on_train_epoch_end(self, trainer, pl_module):
        self.measure(trainer, pl_module)

    on_train_end = on_train_epoch_end


class RankedModule(tiny.TinyModule):
    """Each rank has data and scores of its own; rank 0's are the ones that decide."""

    def on_validation_epoch_end(self):
        self.log("val/score", [4.0, 5.0, 6.0, 3.0, 2.0][min(self.evaluation, 4)] if self.global_rank == 0 else 0.0)
        self.evaluation += 1


def main(folder, ckpt_path=None):
    measure = RankDifference()
    module = RankedModule()
    stages = StagedUnfreezing(STAGES, monitor="val/score", dirpath=folder, keep_best=5)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=9,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[stages, measure, BestMedianCheckpoint(folder, "run", monitor="val/score")],
    )
    trainer.fit(module, tiny.loader(), tiny.loader(), ckpt_path=ckpt_path)
    if trainer.is_global_zero:
        outcomes = [row["outcome"] for row in stages.progress.records]
        total = sum(float(value.double().sum()) for value in module.state_dict().values())
        result = {"differences": measure.differences, "trainable": measure.trainable, "total": total}
        print("RESULT " + json.dumps({**result, "outcomes": outcomes}))


if __name__ == "__main__":
    main(*sys.argv[2:])
