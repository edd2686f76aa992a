"""This project's own data: noise, brighter in one channel for each class."""

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from stagewise.datamodules import ResumableDataLoader


class Patches(Dataset):
    def __init__(self, counts, seed):
        self.groups = [name for name, count in counts.items() for _ in range(count)]
        self.labels = [list(counts).index(name) for name in self.groups]
        self.images = torch.rand(len(self.groups), 3, 32, 32, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, row):
        image, label = self.images[row].clone(), self.labels[row]
        image[label] += 0.2
        return {"image": image + 0.1 * torch.randn(3, 1, 1), "label": label, "sample_id": row}


class PatchesDataModule(L.LightningDataModule):
    def __init__(self, counts, sampler):
        super().__init__()
        self.counts, self.sampler = counts, sampler

    def train_dataloader(self):
        patches = Patches(self.counts, seed=1)
        return ResumableDataLoader(patches, batch_sampler=self.sampler(patches.groups))

    def val_dataloader(self):
        return DataLoader(Patches(self.counts, seed=2), batch_size=14)
