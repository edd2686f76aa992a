"""Settings that mean nothing are refused when the module is made, before any data is read or another run trains."""

from collections.abc import Mapping
from typing import Any

from ...datamodules.errors import CheckpointError, StagewiseError
from ...datamodules.fusion.table import FusionTable
from .forest import MetadataForest
from .network import MODALITIES
from .objective import FusionObjective
from .rules import make_rule

_OUT_OF_FOLD = ("folds", "probabilities", "cache_dir")
KNOWN = {
    "forest": ("trees", "min_samples_leaf", "max_features", "weighting", "ordinal", "seed", *_OUT_OF_FOLD),
    "branch": ("name", "pretrained", "head", "model"),
    "rule": ("kind", "weights", "strength"),
    "loss": ("kind", "gamma", "weighting", "beta", "ordinal"),
    "evaluation": ("draws",),
}
_LEAST = (("forest", "folds", 2), ("evaluation", "draws", 1))


def check_settings(given: Mapping[str, Any]) -> None:
    """Makes of the settings what can be made without data.

    Args:
        given: ``modality`` and, each a mapping or None, what ``KNOWN`` has.

    Raises:
        StagewiseError: an unknown key, or a value that cannot work; names it.
    """
    if given["modality"] not in MODALITIES:
        raise StagewiseError(f"modality must be one of {', '.join(MODALITIES)}, got '{given['modality']}'.")
    own: dict[str, dict[str, Any]] = {name: dict(given[name] or {}) for name in KNOWN}
    for name, known in KNOWN.items():
        if unknown := sorted(set(own[name]) - set(known)):
            raise StagewiseError(f"`{name}` has unknown key(s) {unknown}; known: {', '.join(known)}.")
    for name, key, least in _LEAST:
        if own[name].get(key, least) < least:
            raise StagewiseError(f"{name}.{key} must be at least {least}, got {own[name][key]}.")
    MetadataForest(**{key: value for key, value in own["forest"].items() if key not in _OUT_OF_FOLD})
    make_rule(2, 1, **own["rule"])
    FusionObjective([1, 1], **own["loss"])


def check_pictures(modality: str, tables: Mapping[str, FusionTable]) -> None:
    """Refuses train or val rows none of which has a picture: there is nothing to learn a picture branch from.

    Args:
        modality: ``metadata`` needs none.
        tables: of the splits.

    Raises:
        StagewiseError: names the split and the remedy.
    """
    for name in ("train", "val") if modality != "metadata" else ():
        if not any(tables[name].pictures):
            raise StagewiseError(
                f"none of the {len(tables[name])} rows of {name} has a picture; name their column in "
                "datamodule.columns.image, or pass lightning_module.modality=metadata."
            )


def check_checkpoint(state: Mapping[str, Any], schema: Mapping[str, Any], forest: Mapping[str, Any] | None) -> None:
    """Refuses a checkpoint of other data, or of another forest than the one that this run has fitted.

    Args:
        state: what :class:`FusionModule` wrote.
        schema: of this run's data.
        forest: of this run; None where it has fitted none.

    Raises:
        CheckpointError: names what differs.
    """
    differs = [name for name in ("classes", "image", "splits", "key") if state["schema"][name] != schema[name]]
    if forest and forest["state"]["options"] != state["forest"]["state"]["options"]:
        differs.append("lightning_module.forest")
    if differs:
        raise CheckpointError(f"the checkpoint's {', '.join(differs)} are not those of this run; train anew.")
