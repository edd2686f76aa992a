"""Run by tests: one fit on two processes whose data, scores and shards differ, and what each of them saw."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))
import exact
import processes
import tiny
from lightning.pytorch.callbacks import Callback

from stagewise.callbacks import BestMedianCheckpoint, RareClassCollapseStopping, StagedUnfreezing
from stagewise.datamodules import GroupBalancedBatchSampler, ResumableDataLoader
from stagewise.lightning_modules import Quantile

STAGES = {
    "heads": {"open": ["heads"], "epochs": 1},
    "all": {"open": ["body"], "epochs": 2},  # thaw, no gain: rolled back
    "body": {"open": ["body"], "epochs": 1, "only": True},  # freeze
    "end": {"open": ["heads", "body"], "epochs": 1},
}
ERRORS = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0, 200.0, 300.0])  # seven samples: two ranks see one of them twice
LABELS = [0, 1, 0, 1, 0, 1, 2]  # one sample of the third class, on one rank
GROUPS = [0] * 40 + [1] * 10


class Errors(Dataset):
    def __len__(self):
        return len(ERRORS)

    def __getitem__(self, row):
        return row, ERRORS[row], LABELS[row]


class RankedModule(tiny.TinyModule):
    """Its scores differ between the ranks; rank 0's are the ones that decide."""

    def __init__(self):
        super().__init__()
        self.median = Quantile(0.5)
        self.medians, self.rows = [], []

    def training_step(self, batch, batch_idx):
        self.rows.append(batch[0][:, 0].tolist())
        inputs = torch.randn(len(batch[0]), 4, generator=torch.Generator().manual_seed(self.global_rank))
        return super().training_step((inputs, batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx):
        rows, errors, labels = batch
        self.median.update(errors, sample_ids=rows)
        self.val_confusion.update(labels, labels)

    def on_validation_epoch_end(self):
        self.medians.append(self.median.compute().item())
        self.median.reset()
        self.log("val/score", [4.0, 5.0, 6.0, 3.0, 2.0][min(self.evaluation, 4)] if self.global_rank == 0 else 0.0)
        self.evaluation += 1


class Rows(Dataset):
    def __len__(self):
        return len(GROUPS)

    def __getitem__(self, row):
        return torch.full((4,), float(row)), row % 3


class Watch(Callback):
    """After each epoch: the largest difference between the ranks over all parameters, and how many are open."""

    def __init__(self):
        self.differences, self.trainable = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        flat = torch.cat([value.detach().double().flatten() for value in pl_module.parameters()])
        every = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(every, flat)
        self.differences.append(float((every[0] - every[1]).abs().max()))
        self.trainable.append(sum(p.requires_grad for p in pl_module.parameters()))

    on_train_end = on_train_epoch_end


def fit(rank, world, folder):
    module, watch = RankedModule(), Watch()
    stages = StagedUnfreezing(STAGES, monitor="val/score", dirpath=str(folder))
    collapse = RareClassCollapseStopping("val_confusion", {"recall": {"floor": 0.5}}, min_support=1)
    best = BestMedianCheckpoint(str(folder), "run", monitor="val/score")
    trainer = tiny.make_trainer(folder, [stages, collapse, watch, best], max_epochs=9, **processes.options(world))
    sampler = GroupBalancedBatchSampler(GROUPS, {0: 4, 1: 2}, batches_per_epoch=3)
    # made outside a hook, and Lightning puts its distributed samplers in
    loaders = ResumableDataLoader(Rows(), batch_sampler=sampler), DataLoader(Errors(), batch_size=2)
    trainer.fit(module, *loaders)
    seen = {
        "differences": watch.differences,
        "trainable": watch.trainable,
        "outcomes": [row["outcome"] for row in stages.progress.records],
        "medians": module.medians,
        "flag": collapse.reason,
        "rows": module.rows,
        "weights": {name: exact.digest(value) for name, value in module.named_parameters()},
    }
    (Path(folder) / f"seen_{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    codes = processes.wait(processes.start(2, fit, folder))
    ranks = [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in range(2)]
    print("RESULT " + json.dumps({"codes": codes, "ranks": ranks}))
