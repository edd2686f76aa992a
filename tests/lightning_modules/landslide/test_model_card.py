"""The card says what was given and measured, and nothing else; folds and ablations add up."""

import json
import math
import re
import statistics

import pytest

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide.model_card import model_card, write_model_card
from stagewise.lightning_modules.landslide.scores import pixel_scores
from stagewise.lightning_modules.landslide.summary import ablation_table, summarise_folds

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


def run_folder(folder, **metrics):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_folds_are_read_from_their_folders(tmp_path):
    values = [0.4, 0.5, 0.9]
    folds = [run_folder(tmp_path / str(i), **{"test/kappa": v, "test/ece": 0.1}) for i, v in enumerate(values)]
    found = summarise_folds([folds[0], folds[1] / "metrics.json", {"test/kappa": 0.9, "test/ece": 0.1}], ["test/kappa"])
    assert found.mean["test/kappa"] == pytest.approx(statistics.mean(values))
    assert found.sd["test/kappa"] == pytest.approx(statistics.stdev(values)) and found.sd["test/ece"] == 0
    assert [line.split()[0] for line in found.text.splitlines()] == ["test/kappa", "fold", "fold", "fold", "mean", "sd"]


def test_a_figure_undefined_in_a_fold_is_left_out_and_said():
    found = summarise_folds([{"k": 0.5}, {"k": math.nan}, {"k": 0.7}], ["k"])
    assert found.mean["k"] == pytest.approx(0.6)
    assert "k: 2 of 3 folds" in found.text


def test_the_ablation_table_starts_with_the_full_recipe_and_shows_differences(tmp_path):
    runs = {"no CORAL": {"test/kappa": 0.45}, "full": run_folder(tmp_path / "full", **{"test/kappa": 0.5})}
    lines = ablation_table(runs, ["test/kappa"]).splitlines()
    assert lines[2:] == ["| full | 0.500 |", "| no CORAL | 0.450 (-0.050) |"]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(StagewiseError, match="run 'fold 1' has no figure"):
        summarise_folds([{"k": 0.5}, {"other": 0.5}], ["k"])
    with pytest.raises(StagewiseError, match="no run 'full'"):
        ablation_table({"no CRF": {"k": 0.5}}, ["k"])
    with pytest.raises(StagewiseError, match="no folds"):
        summarise_folds([], ["k"])
