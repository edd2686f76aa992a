"""The Python of README.md's section for other projects, as it stands."""

import re
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import ConfusionMatrix

from stagewise.lightning_modules import GroupedOptimizer

README = Path(__file__).resolve().parents[1] / "README.md"


class Module(L.LightningModule):
    class_names = ("a", "b", "c")

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4)])
        self.head = nn.Linear(4, 3)
        self.val_confusion = ConfusionMatrix(task="multiclass", num_classes=3)
        groups = {"head": {"modules": ["head"], "lr": 0.01}, "backbone": {"modules": ["backbone"], "lr": 0.001}}
        self.optimizer = GroupedOptimizer(partial(torch.optim.AdamW), groups)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.head(self.backbone(batch[0]))
        self.val_confusion.update(logits, batch[1])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))

    def on_validation_epoch_end(self):
        self.val_confusion.reset()

    def configure_optimizers(self):
        return self.optimizer(self)


def test_the_example_for_other_projects_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = README.read_text(encoding="utf-8").split("## In your own project")[1].split("\n## ")[0]
    assert section.count("\n") <= 42
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    labels = torch.arange(60) % 3
    dataset = TensorDataset(torch.randn(60, 4), labels)
    names = {"module": Module(), "labels": labels.numpy(), "dataset": dataset, "val_loader": DataLoader(dataset, 60)}
    quick = {"limit_train_batches": 4, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    monkeypatch.setattr(L, "Trainer", partial(L.Trainer, **quick, enable_model_summary=False))
    block = block.replace("num_workers=2", "num_workers=0")
    exec(compile(block, "README.md", "exec"), names)
    assert names["stages"].records and (tmp_path / "runs" / "first" / "resume.ckpt").is_file()
