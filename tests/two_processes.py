"""Run by ``test_two_processes.py``: each experiment on two processes, and its best checkpoint validated by one."""

import json
import sys
import traceback
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from lightning import Callback, Trainer

sys.path.insert(0, str(Path(__file__).parent / "callbacks"))
import processes
import test_drains
import test_fusion
import test_landslide
import test_train

from stagewise import train
from stagewise.first_run import first_checkpoint

DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
DDP += ["trainer.sync_batchnorm=false", "~logger", "+trainer.enable_progress_bar=false"]
FAMILIES = {
    "geopak": ["experiment=geopak_phase0", *test_train.SMALL, "frozen_views=0"],
    "shards": ["experiment=geopak_phase0", *test_train.SMALL, "frozen_views=0", "datamodule.storage=litdata"],
    "landslide": test_landslide.SMALL[:-1],
    "drains": test_drains.SMALL[:-1],
    "fusion": test_fusion.SMALL[:-1],
}


class Watch(Callback):
    """Keeps what the validation of the best checkpoint logged."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            Path(self.path).write_text(json.dumps(values))


def configured(folder, family, *overrides):
    paths = [f"paths.checkpoints={folder}/runs", f"paths.data={folder}/data", f"paths.cache={folder}/cache"]
    if family == "shards":
        paths.append(f"datamodule.root=local:{folder}/store")
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return compose("train", [*FAMILIES[family], *paths, *overrides])


def convert(folder):
    """The pictures of the family ``geopak`` as a store of small shards."""
    pictures = instantiate(configured(folder, "geopak").datamodule)
    pictures.prepare_data()
    pictures.convert(f"{folder}/store", shard_mb=0.02)


def fit(rank, world, folder, family):
    torch.set_num_threads(1)
    watch = f"+callbacks.watch={{_target_: __main__.Watch, path: {folder}/two.json}}"
    try:
        train.run(configured(folder, family, *DDP, watch))
    except BaseException:
        (Path(folder) / f"error_{rank}.txt").write_text(traceback.format_exc())
        raise


def validate(rank, world, folder, family):
    cfg = configured(folder, family, "trainer=cpu", "~logger")
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[Watch(f"{folder}/one.json")])
    best = Path(cfg.run_dir) / f"{cfg.name}_best.ckpt"
    if cfg.first:
        cfg.start_from = first_checkpoint(cfg, train.run)
    module = instantiate(cfg.lightning_module)
    trainer.validate(module, datamodule=instantiate(cfg.datamodule), ckpt_path=str(best), weights_only=True)


if __name__ == "__main__":
    folder, family = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    if family == "shards":
        convert(folder)
    codes = processes.wait(processes.start(2, fit, folder, family))
    if set(codes) == {0}:
        codes += processes.wait(processes.start(1, validate, folder, family))
    print("RESULT " + json.dumps(codes))
