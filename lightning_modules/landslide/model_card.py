"""The card that goes with a model: what it is, what it was measured to do, and where it must not be used."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..text_tables import number, with_interval
from .baselines import TITLES
from .evaluation_report import main_figures
from .scores import PER_CLASS

LIMITS = (
    "It ranks ground by susceptibility; it does not say when a slope fails, and is no substitute for a survey.",
    "It was measured in the areas and at the pixel size named here; elsewhere nothing is known about its errors.",
    "It needs all its channels, made with the same settings, from rasters of the same pixel size.",
    "Pixels marked as unlike the training data, or without data, carry no statement.",
    "The labels are taken as true: ground that nobody mapped is unlabelled, not safe.",
)
Facts = Mapping[str, Any]


def model_card(
    schema: Facts, metrics: Mapping[str, float], split: str = "test", facts: Facts | None = None
) -> tuple[str, dict[str, Any]]:
    """The card, from given values only: what was not given or not measured is said to be so.

    Args:
        schema: of the model: ``classes``, ``channels``, ``pixel_size_m``, ``tile_px``, ``class_count``, ``splits``.
        metrics: of ``evaluate_maps`` for the split (names with the split in front), or empty.
        split: that was scored.
        facts: more, by name, as plain values: ``crs``, ``training_areas``, ``calibration`` (state), ``seed``, ….

    Returns:
        Markdown, and the same content as plain values.

    >>> text, card = model_card({"classes": ["low", "high"], "channels": ["slope"], "pixel_size_m": 10.0}, {})
    >>> "10.0 m" in text, "not evaluated" in text, card["classes"]
    (True, True, ['low', 'high'])
    """
    given, classes = dict(facts or {}), list(schema["classes"])
    here = {name.removeprefix(f"{split}/"): v for name, v in metrics.items() if name.startswith(f"{split}/")}
    plain = {"classes": classes, "channels": list(schema["channels"]), "pixel_size_m": schema["pixel_size_m"]}
    plain |= {"tile_px": schema.get("tile_px"), "train_pixels": schema.get("class_count")}
    plain |= {"split": _split(schema), "calibration": _calibration(given.pop("calibration", None))}
    plain |= {"crs": given.pop("crs", None), "training_areas": given.pop("training_areas", None), **given}
    card = {**plain, "limits": list(LIMITS), "scored_split": split, "figures": _json_numbers(here)}
    lines = ["# Landslide susceptibility model", "", *_facts(plain)]
    lines += ["", f"## Figures on the split `{split}`", "", *_figures(here, classes)]
    lines += ["", "## Limits: where it must not be used", "", *(f"- {text}" for text in LIMITS), *_warnings(plain)]
    return "\n".join(lines) + "\n", card


def write_model_card(folder: str | Path, text: str, card: Facts) -> Path:
    """Writes ``model_card.md`` and ``model_card.json``, each whole or not at all; returns the first's path."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    content = {"model_card.json": json.dumps(card, indent=1, ensure_ascii=False), "model_card.md": text}
    for name, body in content.items():
        part = target / f"{name}.part"
        part.write_text(body, encoding="utf-8")
        os.replace(part, target / name)
    return target / "model_card.md"


def _split(schema: Facts) -> dict[str, Any] | None:
    plain = schema.get("splits")
    if not plain:
        return None
    settings = dict(plain.get("settings", {}))
    settings["leaky"] = settings.get("method") == "random"
    return settings | {"labelled_pixels": plain.get("counts"), "share_lost_to_the_buffer": plain.get("lost")}


def _calibration(state: Facts | None) -> dict[str, Any] | None:
    kept = (
        "kind",
        "temperature",
        "bias",
        "pixels",
        "nll_before",
        "nll_after",
        "ece_before",
        "ece_after",
        "decision",
        "crf",
    )
    return {name: state[name] for name in kept if name in state} if state else None


def _json_numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """NaN is no JSON; null says undefined."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _facts(plain: Facts) -> list[str]:
    units = {"pixel_size_m": " m", "tile_px": " px"}
    rows = [
        (name, f"{_said(value)}{units.get(name, '') if value is not None else ''}") for name, value in plain.items()
    ]
    return _table(["", ""], [[name.replace("_", " "), text] for name, text in rows])


def _said(value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_said(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_said(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else str(value)


def _figures(here: Mapping[str, float], classes: list[str]) -> list[str]:
    if "pixels" not in here:
        return ["not evaluated: no figure is known."]
    head = (
        f"{here['pixels']:,.0f} labelled pixels in {here['blocks']:,.0f} spatial blocks; in brackets 95 % over blocks."
    )
    rows = [[name, *(with_interval(here, f"{figure}/{name}") for figure in PER_CLASS)] for name in classes]
    names = main_figures(classes)
    models = [model for model in TITLES if f"baseline/{model}/kappa" in here]
    table = [["this model", *(with_interval(here, name) for name in names)]]
    table += [[TITLES[m], *(number(here.get(f"baseline/{m}/{name}", math.nan)) for name in names)] for m in models]
    baselines = [] if models else ["", "No baselines were measured."]
    return [head, "", *_table(["class", *PER_CLASS], rows), "", *_table(["", *names], table), *baselines]


def _warnings(plain: Facts) -> list[str]:
    if plain["split"] and plain["split"]["leaky"]:
        return [
            "- **The split was leaky on purpose: the figures above are too good and say nothing about new ground.**"
        ]
    return []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
