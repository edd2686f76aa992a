"""The card says what was given and measured, and nothing else."""

import json
import math
import re

import pytest

from stagewise.lightning_modules.landslide.model_card import model_card, write_model_card
from stagewise.lightning_modules.landslide.scores import pixel_scores

SETTINGS = {"method": "blocks", "buffer_px": 64, "fold": None, "folds": 5, "tile_px": 64}
SCHEMA = {
    "classes": ["low", "medium", "high"],
    "channels": ["slope", "twi"],
    "pixel_size_m": 12.5,
    "tile_px": 64,
    "class_count": [900, 30, 70],
    "splits": {
        "settings": SETTINGS,
        "counts": {"train": [900, 30, 70]},
        "lost": 0.25,
        "areas": {"wet": "not for people"},
    },
}
FACTS = {
    "crs": "EPSG:32717",
    "training_areas": ["wet", "dry"],
    "calibration": {"kind": "isotonic", "steps": [{"x": [0.123456] * 999}], "nll_before": 0.7, "nll_after": 0.5},
}


def measured():
    found = pixel_scores(
        [0, 1, 2, 0], [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]], SCHEMA["classes"]
    )
    found |= {"precision/medium/ci_low": 0.31, "precision/medium/ci_high": 0.72}
    found |= {f"baseline/random_forest/{name}": 0.123 for name in list(found)}
    return {f"test/{name}": value for name, value in found.items()}


def test_the_card_says_what_the_model_is_and_how_it_was_split():
    text, card = model_card(SCHEMA, measured(), "test", FACTS)
    for said in (
        "slope, twi",
        "12.5 m",
        "EPSG:32717",
        "wet, dry",
        "method blocks",
        "buffer px 64",
        "leaky False",
        "isotonic",
    ):
        assert said in text.replace("_", " "), said
    assert card["split"]["share_lost_to_the_buffer"] == 0.25
    assert "not for people" not in text and "0.123456" not in text  # codes and tables are for machines


def test_figures_stand_with_interval_and_prevalence_beside_the_baselines():
    text, card = model_card(SCHEMA, measured(), "test", FACTS)
    assert "0.500 [0.310, 0.720]" in text and "| prevalence | precision |" in text
    assert "random forest" in text and "0.123" in text
    assert "Limits: where it must not be used" in text
    assert card["figures"]["precision/medium"] == 0.5


def test_no_figure_appears_that_was_not_given():
    text, card = model_card(SCHEMA, {}, "test")
    assert "not evaluated" in text and card["figures"] == {}
    figures = text.split("## Figures")[1].split("## Limits")[0]
    assert not re.search(r"\d", figures)
    assert "| crs | not stated |" in text and "| calibration | not stated |" in text


def test_a_leaky_split_is_shouted():
    splits = {**SCHEMA["splits"], "settings": {**SETTINGS, "method": "random"}}
    assert "leaky on purpose" in model_card({**SCHEMA, "splits": splits}, measured())[0]
    assert "leaky on purpose" not in model_card(SCHEMA, measured())[0]


def test_both_files_are_written_whole(tmp_path):
    found = measured() | {"test/kappa": math.nan}
    path = write_model_card(tmp_path / "run", *model_card(SCHEMA, found, "test", FACTS))
    assert sorted(p.name for p in path.parent.iterdir()) == ["model_card.json", "model_card.md"]
    card = json.loads((path.parent / "model_card.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert card["figures"]["kappa"] is None and path.read_text().startswith("# ")
