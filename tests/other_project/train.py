"""Trains, and goes on bit for bit after any kill: ``python train.py run_dir=runs/first``."""

import hashlib
import json

import hydra
import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from stagewise.callbacks import ExactResume


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    L.seed_everything(cfg.seed)
    parts = (instantiate(cfg[key], _convert_="all") for key in ("callbacks", "classifier", "data"))
    callbacks, classifier, data = parts
    trainer = instantiate(cfg.trainer, callbacks=list(callbacks.values()))
    trainer.fit(classifier, data, ckpt_path=ExactResume.find(cfg.run_dir))

    weights = b"".join(tensor.numpy().tobytes() for tensor in classifier.state_dict().values())
    summary = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "stages": {stage["stage"]: stage["outcome"] for stage in callbacks["stages"].progress.records},
        "flags": callbacks["collapse"].flags,
        "batches": callbacks["count"].batches,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
