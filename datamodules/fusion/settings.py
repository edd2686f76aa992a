"""Settings of the data module of fusion, and which go together."""

from collections.abc import Mapping
from typing import Any

from ..errors import StagewiseError
from .pictures import colours_of

KNOWN: dict[str, dict[str, Any]] = {
    "files": {"table": "metadata.csv", "boxes": None},
    "columns": {"id": "id", "group": "patient_id", "label": "label", "image": "image", "drop": [], "categories": []},
    "splits": {"folds": 3, "seed": 0, "val_share": 0.2, "by": "group"},
    "image": {"px": 224, "channels": 3, "colormap": None, "margin": 0.1}
    | {"flip": 0.5, "shift": 0.04, "zoom": 0.1, "brightness": 0.0},
    "loader": {"batch_size": 16, "num_workers": 4},
    "datamodule": {"cache_dir": ".cache/stagewise", "seed": 0},
}
_SHARES = ("flip", "shift", "zoom", "brightness")


def check_image(image: Mapping[str, Any]) -> None:
    """Refuses settings of pictures that do not go together.

    Raises:
        StagewiseError: names the argument and the value.
    """
    if image["channels"] not in (1, 3) or image["px"] < 1 or image["margin"] < 0:
        raise StagewiseError(
            "`image` needs channels 1 or 3, px of at least 1 and a margin of at least 0; got "
            f"{image['channels']}, {image['px']} and {image['margin']}."
        )
    if image["colormap"]:
        colours_of(image["colormap"])
        if image["channels"] != 1:
            raise StagewiseError(
                f"image.colormap={image['colormap']} gives one channel, but image.channels is {image['channels']}; "
                "set image.channels=1."
            )
    if wrong := [name for name in _SHARES if not 0 <= image[name] < 1 + (name == "flip")]:
        raise StagewiseError(f"image.{wrong[0]} is a share from 0 to 1, got {image[wrong[0]]}.")


def check_loader(loader: Mapping[str, Any]) -> None:
    """Refuses numbers that make no loader.

    Raises:
        StagewiseError: names the argument and the value.
    """
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if not isinstance(loader[name], int) or loader[name] < least:
            raise StagewiseError(f"loader.{name} must be a whole number of at least {least}, got {loader[name]}.")


def check_columns(columns: Mapping[str, Any]) -> None:
    """Refuses a label that is also something else.

    Raises:
        StagewiseError: names the column.
    """
    if same := [role for role in ("id", "group", "image") if columns[role] == columns["label"]]:
        raise StagewiseError(f"`columns` has '{columns['label']}' as label and as {same[0]}; name two columns.")


def check_classes(classes: list[str]) -> None:
    """Refuses a list of classes that is none.

    Raises:
        StagewiseError: fewer than two, or one twice.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise StagewiseError(f"`classes` needs at least two different names in their order, got {classes}.")
