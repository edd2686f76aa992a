"""The script that ``fusion_demo.py`` compares with: scikit-learn, timm and a bare PyTorch loop, nothing of stagewise.

    python benchmarks/peers_fusion.py CLINIC OUT --alone 20,17,20 --opened 6,4,5

The work of ``experiment=fusion_v5 demo=fusion`` over three folds, as somebody would write it for one data set: pictures
decoded once into memory, no workers, no settings, no resume. For each fold a forest whose answers for train are out of
fold by patient, a network on pictures alone, and that network again under the fixed average; val is answered every
epoch and the best weights are kept; then kappa on test with 1000 draws of patients, of each fold and over all of them,
with curves, confusion matrices, reliability, scores and a CSV of the rows (``peers_fusion_figures.py``).
``--alone`` and ``--opened`` are the epochs of each fold, as many as those of the run it is compared with.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from peers_fusion_data import CLASSES, PX, ROLES, folds_of, read_pictures, read_table, splits_of
from peers_fusion_figures import draw_curves, draw_report
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import cohen_kappa_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

BATCH, DRAWS = 16, 1000
FLIP, SHIFT, ZOOM = 0.5, 0.04, 0.1
Array = np.ndarray[Any, Any]
Join = Callable[[str, Tensor, Any], Tensor]  # split, what the network says, rows -> the answer


def fit_forest(table: pd.DataFrame) -> Any:
    features = table.drop(columns=ROLES)
    numbers = features.select_dtypes("number").columns
    columns = make_column_transformer(
        (SimpleImputer(strategy="median", add_indicator=True), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), features.columns.drop(numbers)),
    )
    forest = RandomForestClassifier(200, min_samples_leaf=3, class_weight="balanced", random_state=42, n_jobs=-1)
    return make_pipeline(columns, forest).fit(features, table["label"])


def forest_answers(splits: dict[str, pd.DataFrame]) -> dict[str, Tensor]:
    """Split -> (N, 3); the rows of train by forests that saw no row of their patient."""
    train, forest = splits["train"], fit_forest(splits["train"])
    found = {name: forest.predict_proba(part) for name, part in splits.items()}
    for others, own in folds_of(train, 5, 42):
        found["train"][own] = fit_forest(train.iloc[others]).predict_proba(train.iloc[own])
    return {name: torch.from_numpy(p).float() for name, p in found.items()}


class Shown(Dataset[tuple[Tensor, int, int, bool]]):
    """Picture, label, row, and whether there is a picture: for training one of each row, moved; else all of them."""

    def __init__(self, table: pd.DataFrame, pictures: dict[str, Tensor], training: bool) -> None:
        self.names, self.label = table["image"].tolist(), table["label"].tolist()
        self.pictures, self.training = pictures, training
        self.items = [(row, name) for row, names in enumerate(self.names) for name in names or [""]]

    def __len__(self) -> int:
        return len(self.names) if self.training else len(self.items)

    def __getitem__(self, key: int) -> tuple[Tensor, int, int, bool]:
        row, name = self.items[key] if not self.training else (key, "")
        if self.training and self.names[row]:
            name = self.names[row][int(torch.randint(len(self.names[row]), ()))]
        image = self.pictures[name].float() / 255 if name else torch.zeros(1, PX, PX)
        return moved(image) if self.training and name else image, self.label[row], row, bool(name)


def moved(image: Tensor) -> Tensor:
    """Mirrored, zoomed and shifted at random."""
    u = torch.rand(4).tolist()
    zoom, x, y = 1 + ZOOM * (2 * u[1] - 1), SHIFT * (2 * u[2] - 1), SHIFT * (2 * u[3] - 1)
    side = (-1 if u[0] < FLIP else 1) / zoom
    theta = torch.tensor([[[side, 0, -2 * x * side], [0, 1 / zoom, -2 * y / zoom]]])
    return F.grid_sample(image[None], F.affine_grid(theta, [1, 1, PX, PX], align_corners=False), align_corners=False)[0]


class Network(nn.Module):
    """P(class | picture)."""

    def __init__(self) -> None:
        super().__init__()
        options = {"channels": [24, 48, 96, 192], "stem_width": 12}
        self.body = timm.create_model("resnet10t", in_chans=1, num_classes=len(CLASSES), **options)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, PX, PX) -> (B, 3)."""
        return self.body((image - 0.449) / 0.226).softmax(-1)


@torch.no_grad()
def answer(network: Network, data: Shown) -> Tensor:
    """(N, 3), the mean over the pictures of a row; NaN where it has none."""
    network.eval()
    total, count = torch.zeros(len(data.names), len(CLASSES)), torch.zeros(len(data.names), 1)
    for image, _, row, seen in DataLoader(data, batch_size=64):
        total.index_add_(0, row[seen], network(image[seen]))
        count.index_add_(0, row[seen], torch.ones(int(seen.sum()), 1))
    return total / count


def fuse(metadata: Tensor, picture: Tensor) -> Tensor:
    """(N, 3), (N, 3) -> (N, 3); a row without picture is answered by its metadata."""
    return torch.where(picture.isnan(), metadata, 0.7 * metadata + 0.3 * picture)


class Trainer:
    """Trains on the loss of ``join(split, picture, rows)`` and ends with the weights of the best kappa on val."""

    def __init__(self, network: Network, data: dict[str, Shown], join: Join, path: Path) -> None:
        self.network, self.data, self.join, self.path = network, data, join, path
        self.loader = DataLoader(data["train"], BATCH, shuffle=True, drop_last=True)
        count = torch.bincount(torch.tensor(data["train"].label)).float()
        self.weight = count.sum() / count / len(count)

    def run(self, epochs: int, lr: float, start: bool = False) -> None:
        """``start``: the weights as they are count as an epoch before the first, and the rate stays as it is."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr, weight_decay=1e-4, fused=True)
        steps = epochs * len(self.loader)
        schedule = CosineAnnealingLR(optimizer, steps) if not start else ConstantLR(optimizer, 1.0)
        losses, kappas = [], []
        for epoch in range(0 if start else 1, epochs + 1):
            losses.append(self.train_epoch(optimizer, schedule) if epoch else float("nan"))
            kappas.append(self.val_kappa())
            print(f"epoch {epoch}: loss {losses[-1]:.4f}, val kappa {kappas[-1]:.4f}", flush=True)
            if kappas[-1] > max(kappas[:-1], default=-2.0):
                self.save()
        self.network.load_state_dict(torch.load(self.path, weights_only=True))
        draw_curves(losses, kappas, self.path.with_suffix(".png"))

    def train_epoch(self, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> float:
        """The mean loss."""
        self.network.train()
        total = 0.0
        for image, label, row, seen in self.loader:
            p = self.join("train", self.network(image[seen]), row[seen])
            true = p.gather(1, label[seen, None])[:, 0].clamp(min=1e-7)
            loss = (-self.weight[label[seen]] * true.log()).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        return total / len(self.loader)

    def val_kappa(self) -> float:
        """Of the answer, with the weights as they are."""
        p = self.join("val", answer(self.network, self.data["val"]), slice(None))
        return kappa_of(p, self.data["val"].label)

    def save(self) -> None:
        """Keeps the weights."""
        torch.save(self.network.state_dict(), self.path)


def kappa_of(p: Tensor, label: Any) -> float:
    return float(cohen_kappa_score(label, p.nan_to_num(1 / len(CLASSES)).argmax(1)))


def interval(p: Tensor, label: Array, patient: Array) -> list[float]:
    """95 % of kappa over ``DRAWS`` draws of patients."""
    _, number = np.unique(patient, return_inverse=True)
    counts = np.zeros((number.max() + 1, len(CLASSES), len(CLASSES)))
    np.add.at(counts, (number, label, p.nan_to_num(1 / len(CLASSES)).argmax(1).numpy()), 1)
    taken = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), DRAWS)
    share = np.tensordot(taken, counts, 1)
    share /= share.sum((1, 2), keepdims=True)
    chance = (share.sum(1) * share.sum(2)).sum(1)
    kappa = (np.trace(share, axis1=1, axis2=2) - chance) / (1 - chance)
    return [float(limit) for limit in np.quantile(kappa, [0.025, 0.975])]


def run_fold(splits: dict[str, pd.DataFrame], pictures: dict[str, Tensor], epochs: Sequence[int], path: Path) -> Any:
    """Answers of the three on test, (N, 3) each."""
    torch.manual_seed(42)
    data = {name: Shown(part, pictures, name == "train") for name, part in splits.items()}
    network = Network()
    Trainer(network, data, lambda split, picture, rows: picture, path).run(epochs[0], 3e-3)
    alone = answer(network, data["test"])
    metadata = forest_answers(splits)
    both = Trainer(network, data, lambda split, picture, rows: fuse(metadata[split][rows], picture), path)
    both.run(epochs[1], 1e-5, start=True)
    plain = Shown(splits["train"], pictures, False)
    train = kappa_of(fuse(metadata["train"], answer(network, plain)), plain.label)
    print(f"fusion: kappa on train {train:.4f}, on val {both.val_kappa():.4f}")
    fused = fuse(metadata["test"], answer(network, data["test"]))
    return {"metadata": metadata["test"], "image": alone, "fusion": fused}


def report(tested: list[tuple[pd.DataFrame, Any]], folder: Path) -> None:
    """Kappa of each over the test rows of some folds, with its interval, the rows and the pictures."""
    rows, found, answers = pd.concat([part for part, _ in tested]), {}, {}
    for name in ("metadata", "image", "fusion"):
        p = torch.cat([said[name] for _, said in tested])
        limits = interval(p, rows["label"].to_numpy(), rows["patient_id"].to_numpy())
        found[name], answers[name] = [kappa_of(p, rows["label"]), *limits], p.nan_to_num(1 / len(CLASSES)).numpy()
    draw_report(folder, answers, rows, found)
    (folder / "kappa.json").write_text(json.dumps(found, indent=1))
    print(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clinic", type=Path)
    parser.add_argument("out", type=Path, help="a folder to make")
    parser.add_argument("--alone", help="epochs of pictures alone, one number for each fold")
    parser.add_argument("--opened", help="epochs of the second stage, likewise")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    table = read_table(options.clinic)
    pictures = read_pictures(options.clinic, table)
    tested = []
    for fold, epochs in enumerate(zip(*(map(int, given.split(",")) for given in (options.alone, options.opened)))):
        splits = splits_of(table, fold)
        tested.append((splits["test"], run_fold(splits, pictures, epochs, options.out / f"best_{fold}.pt")))
        report(tested[-1:], options.out / f"fold_{fold}")
    report(tested, options.out)


if __name__ == "__main__":
    main()
