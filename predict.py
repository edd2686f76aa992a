"""Answers for new pictures or rasters: ``python predict.py checkpoint=… input=FOLDER output=FOLDER``."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from stagewise.command_line import offering_names, one_line_errors
from stagewise.train import given


def run(cfg: DictConfig) -> int:
    """Writes the answers into ``output`` and returns how many there are."""
    module = instantiate(cfg.module)
    device = instantiate(cfg.trainer, logger=False, enable_checkpointing=False).strategy.root_device
    for member in getattr(module, "members", [module]):
        member.to(device)
    answers = module.predict_folder(cfg.input, cfg.output, **given(cfg.options, module.predict_folder))
    print(f"{len(answers)} answered; written to {cfg.output}")
    return len(answers)


@offering_names("predict")
@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Adds Hydra to :func:`run`."""
    with one_line_errors():
        run(cfg)


if __name__ == "__main__":
    main()
