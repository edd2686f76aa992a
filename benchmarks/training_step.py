"""What does a training step of GeolocationModule under lightning.Trainer cost beside a bare PyTorch loop?

    python benchmarks/training_step.py            # --full, --stage heads, --threads N, --pairs N, --quick

Both train the same network from the same weights with the same losses, optimizer, clipping and batches from memory.
Ours runs with the loggers, callbacks and trainer settings of experiment geopak_phase2. Blocks of steps alternate within
one fit: a callback lets Lightning do its block, then runs the bare one. The losses of both must agree step by step.
If the bar is missed, the same is measured without the callbacks, the loggers and the record of train errors in turn.
"""

import argparse
import tempfile
from functools import partial
from typing import Any

import lightning as L
import torch
from bare_loop import Bare, InTurn
from timing import agree, parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stagewise.callbacks import BestMedianCheckpoint, MetricRedFlags, RareClassCollapseStopping, StagedUnfreezing
from stagewise.lightning_modules import GeolocationModule, GroupedOptimizer

BAR, BATCH, CLIP_NORM, LOG_EVERY = 1.05, 64, 1.0, 20
RECORD = "record of train errors and losses"
CELLS = (450, 85, 63, 42, 20, 50, 13)
HEADS = {"heads": True, "embeddings": True, "fusion": True}
TOP = {"clip": {"last": 0.30, "also": ["ln_post", "proj"]}, "scene": ["layer4"]}
STAGES = {"heads": {"open": HEADS}, "top": {"open": HEADS | TOP}}
SMALL_CLIP = {
    "embed_dim": 192,
    "vision_cfg": {"layers": 6, "width": 192, "head_width": 64, "patch_size": 16, "image_size": 96},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"px": 96, "clip": {"pretrained": None, **SMALL_CLIP}, "scene": "resnet18"},
    "quick": {"px": 32, "clip": {"pretrained": None, **SMALL_CLIP}, "scene": "resnet10t"},
    "full": {"px": 224, "clip": {"pretrained": None}, "scene": "resnet50"},
}


def geography() -> dict[str, Any]:
    """723 cells in seven regions, as the data module describes them."""
    region = torch.repeat_interleave(torch.arange(len(CELLS)), torch.tensor(CELLS))
    centre = torch.rand(len(region), 2, generator=torch.Generator().manual_seed(0)) * 12 + torch.tensor([24.0, 62.0])
    cells = {"cell_id": range(len(region)), "region": region, "centre_deg": centre, "radius_km": [20.0] * len(region)}
    return {
        "region_names": [f"region {i}" for i in range(len(CELLS))],
        "count": list(CELLS),
        "tau_km": [None] * len(CELLS),
        "offset_scale": [1.0] * len(CELLS),
        "centroid_deg": [30.0, 68.0],
        "region_centroid_deg": [[30.0, 68.0]] * len(CELLS),
        "cells": {k: torch.as_tensor(v).tolist() for k, v in cells.items()} | {"neighbours": [[]] * len(region)},
    }


class InMemory(L.LightningDataModule):
    """Float pictures that are there already: nothing is decoded or augmented."""

    views = 0

    def __init__(self, px: int, steps: int) -> None:
        super().__init__()
        self.geography = geography()
        region = torch.tensor(self.geography["cells"]["region"])
        cell = torch.randint(len(region), (BATCH * 4,), generator=torch.Generator().manual_seed(1))
        centre = torch.tensor(self.geography["cells"]["centre_deg"])
        rows = {"image": torch.rand(len(cell), 3, px, px), "label": region[cell], "cell": cell}
        rows |= {"lat_lon_deg": centre[cell], "sample_id": torch.arange(len(cell)), "draw": torch.arange(len(cell))}
        chunks = [{k: v[i : i + BATCH] for k, v in rows.items()} for i in range(0, len(cell), BATCH)]
        self.batches = [chunks[i % len(chunks)] for i in range(steps)]

    def train_dataloader(self) -> DataLoader[Any]:
        """One batch an item."""
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = train_dataloader


def loss_of(module: GeolocationModule, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What a step minimises."""
    total: Tensor = module.objective(network, batch, network(batch), module.loss_weights)["total"]
    return total


class WithoutRecord(GeolocationModule):
    """The module without the log of its losses and the end-to-end error of each training picture."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Losses only."""
        return self.losses_of(batch, self.network(batch))["total"]

    def on_train_epoch_end(self) -> None:
        """Nothing to log."""


def callbacks_of(stage: str, folder: str) -> list[L.Callback]:
    """Those of geopak_phase2 that do something within an epoch, in the one stage that is timed."""
    monitor = "val/median_km"
    return [
        StagedUnfreezing({stage: {**STAGES[stage], "epochs": 35}}, monitor, dirpath=folder, on_no_gain="keep"),
        RareClassCollapseStopping("val_confusion", {"recall": {"floor": 0.30, "patience": 2}}),
        MetricRedFlags({"rising_median": {"metric": monitor, "rising_for": 5}}),
        BestMedianCheckpoint(folder, "phase2", monitor),
    ]


def module_of(options: argparse.Namespace, kind: type[GeolocationModule]) -> GeolocationModule:
    """Random weights; the recipe's optimizer with a constant rate, so that both loops have the same one."""
    size = SIZES[options.size]
    groups = {
        "heads": {"modules": ["region_head", "cell_heads", "offset_head", "aux_head"], "lr": 5e-4},
        "embeddings": {"modules": ["cell_embedding", "region_embedding"], "lr": 5e-4},
        "fusion": {"modules": ["clip_projection", "scene_projection", "gate"], "lr": 5e-4},
        "clip": {"modules": ["clip"], "lr": 1e-5},
        "scene": {"modules": ["scene"], "lr": 5e-6},
    }
    optimizer = GroupedOptimizer(partial(torch.optim.AdamW, weight_decay=1e-5, fused=True), groups, prefix="network")
    network = {"clip": size["clip"], "scene": {"name": size["scene"]}, "image_px": size["px"]}
    return kind(network=network, optimizer=optimizer)


def fit(options: argparse.Namespace, without: str = "") -> InTurn:
    """One fit with alternating blocks."""
    torch.manual_seed(0)
    turns = InTurn(options.block, partial(Bare, loss=loss_of, clip_norm=CLIP_NORM))
    with tempfile.TemporaryDirectory() as folder:
        used = callbacks_of(options.stage, folder)
        loggers = [kind(folder) for kind in (L.pytorch.loggers.CSVLogger, L.pytorch.loggers.TensorBoardLogger)]
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=CLIP_NORM,
            log_every_n_steps=LOG_EVERY,
            limit_val_batches=0,
            enable_model_summary=False,
            enable_checkpointing=without != "callbacks",
            use_distributed_sampler=False,
            default_root_dir=folder,
            logger=False if without == "loggers" else loggers,
            callbacks=[turns, *(used[:1] if without == "callbacks" else used)],
        )
        module = module_of(options, WithoutRecord if without == RECORD else GeolocationModule)
        trainer.fit(module, datamodule=InMemory(SIZES[options.size]["px"], turns.steps(options.pairs)))
    return turns


def row_of(name: str, turns: InTurn) -> dict[str, str]:
    """A line of the table."""
    extra = spread([(a - b) * 1e3 for a, b in zip(turns.ours, turns.bare_s, strict=True)])
    return {
        "what": name,
        "Lightning, ms a step": show(spread(turns.ours), "{:.1f}", 1e3),
        "bare loop, ms a step": show(spread(turns.bare_s), "{:.1f}", 1e3),
        "ratio": show(ratio(turns.ours, turns.bare_s), "{:.3f}"),
        "extra ms": show(extra, "{:.1f}"),
    }


def main() -> None:
    parser = parser_of(__doc__, pairs=7)
    parser.add_argument("--full", dest="size", action="store_const", const="full", default="small")
    parser.add_argument("--stage", choices=STAGES, default="top", help="of geopak_phase2 (default: %(default)s)")
    parser.add_argument("--block", type=int, default=LOG_EVERY, help="steps timed at once (default: %(default)s)")
    options = parse(parser)
    if options.quick:
        options.size, options.block = "quick", 2
    turns = fit(options)
    parity = agree("loss of each step", turns.parity(), 1e-3)
    rows, result = [row_of(f"{options.size}, stage {options.stage}", turns)], ratio(turns.ours, turns.bare_s)
    if result["median"] > BAR and not options.quick:
        for part in ("loggers", "callbacks", RECORD):
            rows.append(row_of(f"without {part}", fit(options, part)))
    write(
        "training_step" + ("_full" if options.size == "full" else ""),
        options,
        {"ratio": result, "parity": parity},
        rows,
    )
    print(verdict("Lightning / bare loop", result["median"], BAR, at_most=True))


if __name__ == "__main__":
    main()
