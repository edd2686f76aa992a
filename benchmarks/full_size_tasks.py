"""The workloads of ``full_size.py``: real experiments on generated data, and what a step of each minimises."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bare_loop import Loss
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stagewise.lightning_modules.half_precision import runs_bf16_faster

KEPT = 4  # batches held in memory, taken again and again


def geopak_loss(module: Any, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The four losses of a phase, weighed."""
    total: Tensor = module.objective(network, batch, network(batch), module.loss_weights)["total"]
    return total


def landslide_loss(module: Any, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Focal, Dice and ordinal loss."""
    total: Tensor = module.objective(network(batch["image"]), batch["mask"])["total"]
    return total


def drains_loss(module: Any, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of the conditions that an object's type allows."""
    loss: Tensor = module.objective(network(batch)["logits"], batch["label"])
    return loss


@dataclass(frozen=True)
class Workload:
    """An experiment at its full size.

    Args:
        title: in the table.
        experiment: of ``conf/experiment``.
        batch: pictures a step, by recipe.
        loss: of a step.
        generated: the data module that writes its own data.
        stage: overrides that leave the stage to be timed.
        full: overrides for generated data of the recipe's size and random weights.
        quick: overrides beside the demo's small networks.
        frozen: both encoders are, so that they run in half precision where that is faster.
    """

    title: str
    experiment: str
    batch: int
    loss: Loss
    generated: str
    stage: tuple[str, ...]
    full: tuple[str, ...]
    quick: tuple[str, ...]
    frozen: bool = False

    def in_half(self, device: torch.device) -> bool:
        """Whether most of a step is in bf16 whatever the trainer's precision."""
        return self.frozen and runs_bf16_faster(device)

    @property
    def family(self) -> str:
        """Name of the demo, and of the folder of its data."""
        return self.experiment.split("_")[0]


RANDOM_GEOPAK = ("lightning_module.network.clip.pretrained=null", "lightning_module.network.scene.weights=null")
COUNTRY = "+datamodule.generated={root: ${datamodule.root}, rows: {train: 512, val: 64, test: 64}, image_px: 256}"
SMALL_COUNTRY = "datamodule.generated.rows={train: 128, val: 32, test: 32}"
GEOPAK: dict[str, Any] = {
    "batch": 64,
    "loss": geopak_loss,
    "generated": "GeneratedGeolocationDataModule",
    "full": (*RANDOM_GEOPAK, COUNTRY, "datamodule.regions=null", "datamodule.loader.batches_per_epoch=100000"),
    "quick": (SMALL_COUNTRY, "datamodule.loader.batches_per_epoch=1000", "frozen_views=0"),
}
TERRAIN = "+datamodule.generated={root: ${datamodule.root}, size_px: 1536}"
PICTURES = "+datamodule.generated={root: ${datamodule.root}, pictures: 60, px: 1024, locations: 20, seed: 0}"
WORKLOADS = {
    "geopak_phase1": Workload(
        title="GeoPak Phase 1, ViT-B/16 + ResNet-50, encoders frozen",
        experiment="geopak_phase1",
        stage=("start_from=null", "callbacks.ramp=null"),
        frozen=True,
        **GEOPAK,
    ),
    "geopak_phase2": Workload(
        title="GeoPak Phase 2, ViT-B/16 + ResNet-50, tops open",
        experiment="geopak_phase2",
        stage=("start_from=null", "~callbacks.stages.stages.heads"),
        **GEOPAK,
    ),
    "landslide_v25": Workload(
        title="Landslide V2.5, U-Net-B4, 28 channels of 256 x 256",
        experiment="landslide_v25",
        batch=4,
        loss=landslide_loss,
        generated="GeneratedLandslideDataModule",
        stage=(),
        full=(
            "lightning_module.network.weights=null",
            TERRAIN,
            "datamodule.rare.smote=null",
            "datamodule.loader.tiles_per_epoch=100000",
            "datamodule.rare.sampler.max_repeats=100000",  # the generated area has few tiles, the epoch no end
        ),
        quick=("datamodule.generated.size_px=512", "datamodule.rare.smote=null"),
    ),
    "drains_clip": Workload(
        title="Drains, CLIP ViT-L/14, image tower open",
        experiment="drains_clip",
        batch=16,
        loss=drains_loss,
        generated="GeneratedDrainDataModule",
        stage=("~stages.top",),
        full=("lightning_module.network.clip.pretrained=null", PICTURES, "datamodule.loader.batches_per_epoch=100000"),
        quick=(
            "datamodule.generated.pictures=40",
            "datamodule.generated.px=160",
            "~lightning_module.captions",
            "datamodule.loader.batches_per_epoch=1000",
        ),
    ),
}


def config_of(workload: Workload, options: argparse.Namespace, folder: str) -> DictConfig:
    """The experiment, with random weights and data of its own below ``folder``."""
    device = "gpu" if torch.cuda.is_available() else "cpu"
    bf16 = options.precision == "bf16"
    overrides = [
        f"experiment={workload.experiment}",
        *([f"demo={workload.family}"] if options.quick else []),
        f"trainer={device}",
        f"paths.data={folder}/data",
        f"paths.cache={folder}/cache",
        f"paths.checkpoints={folder}/runs",
        f"datamodule.root={folder}/data/{workload.family}",
        f"datamodule._target_=stagewise.datamodules.{workload.generated}",
        *(workload.quick if options.quick else workload.full),
        *workload.stage,
        f"datamodule.loader.batch_size={options.batch[workload.experiment]}",
        f"datamodule.loader.num_workers={options.workers}",
        f"optimizer.factory.fused={str(options.fused).lower()}",
        "optimizer.schedule.shape=constant",
        "++optimizer.schedule.warmup_steps=0",
        f"++trainer.benchmark={str(options.benchmark).lower()}",
        f"trainer.precision={'bf16-mixed' if bf16 else '32-true'}",
        "callbacks.report=null",  # of epochs alone
        "callbacks.resume=null",  # it seeds each step, so that no other loop could draw the same dropout
    ]
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return compose("train", overrides)


def from_memory(cfg: DictConfig, batches: int) -> Any:
    """The data module, whose train loader hands out ``batches`` from a few that are there already."""
    data: Any = instantiate(cfg.datamodule)
    data.prepare_data()
    data.setup("fit")
    kept = [batch for batch, _ in zip(data.train_dataloader(), range(KEPT))]
    if torch.cuda.is_available():
        kept = [{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in kept]
    data.train_dataloader = lambda: DataLoader([kept[i % len(kept)] for i in range(batches)], batch_size=None)
    return data


def switched(options: argparse.Namespace) -> Callable[[nn.Module], None]:
    """What the switches do to a network that is on its device."""

    def apply(network: nn.Module) -> None:
        if options.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.compile:
            network.compile()

    return apply
