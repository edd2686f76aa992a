"""A trained classifier as ONNX: ``python export.py checkpoint=BEST.ckpt output=model.onnx int8=true``."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from stagewise.command_line import offering_names, one_line_errors
from stagewise.evaluate import data_config


def run(cfg: DictConfig) -> str:
    """Writes the files and returns what they cost, as text."""
    module = instantiate(cfg.module)
    if not callable(export := getattr(module, "export", None)):
        raise ValueError(f"there is no export of a {type(module).__name__} yet; pass the checkpoint of a drains run.")
    datamodule = instantiate(data_config(module, cfg)) if cfg.split else None
    text: str = export(cfg.output, cfg.int8, datamodule, cfg.split)
    print(text)
    return text


@offering_names("export")
@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Adds Hydra to :func:`run`."""
    with one_line_errors():
        run(cfg)


if __name__ == "__main__":
    main()
