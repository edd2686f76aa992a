"""A folder of pictures as shards: ``python convert.py datamodule.root=FOLDER output=STORE``."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from stagewise.command_line import offering_names, one_line_errors
from stagewise.train import given


def run(cfg: DictConfig) -> str:
    """Writes the shards and returns what they hold, as text."""
    datamodule = instantiate(cfg.datamodule)
    if not callable(convert := getattr(datamodule, "convert", None)):
        raise ValueError(f"there are no shards for a {type(datamodule).__name__} yet; pass datamodule=geopak.")
    datamodule.prepare_data()
    text: str = convert(cfg.output, **given(cfg.options))
    print(text)
    return text


@offering_names("convert")
@hydra.main(version_base="1.3", config_path="conf", config_name="convert")
def main(cfg: DictConfig) -> None:
    """Adds Hydra to :func:`run`."""
    with one_line_errors():
        run(cfg)


if __name__ == "__main__":
    main()
