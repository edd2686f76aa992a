import json
import math

import pytest
import torch

from stagewise.datamodules.geolocation.geodesy import haversine_km
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.geolocation.evaluation import majority_baseline, nearest_baseline


@pytest.fixture(scope="module")
def report(fitted, tiny, country, tmp_path_factory):
    module, folder = load_module(str(fitted.path)), tmp_path_factory.mktemp("report")
    calibration = dict(module.calibration)
    metrics, text = module.evaluate(tiny.data(country), tiny.trainer(), "test", str(folder), histogram=True)
    return module, metrics, text, folder, calibration


def test_an_evaluation_gives_flat_names_and_finite_numbers(report):
    _, metrics, *_ = report
    expected = {
        "median_km",
        "mean_km",
        "p90_km",
        "oracle_cell_median_km",
        "oracle_province_median_km",
        "centre_only_median_km",
        "aux_median_km",
        "province_accuracy",
        "province_macro_accuracy",
        "cell_top1_accuracy",
        "cell_top5_accuracy",
        "within_25_km",
        "within_750_km",
        "accuracy/gilgit_baltistan",
        "median_km/coast",
        "ece",
        "ece_raw",
        "radius_90_coverage",
        "baseline_majority_median_km",
        "baseline_majority_province_accuracy",
        "baseline_nearest_median_km",
        "baseline_nearest_province_accuracy",
        "baseline_histogram_province_accuracy",
    }
    assert {f"test/{name}" for name in expected} <= set(metrics)
    assert all(k.startswith("test/") and type(v) is float and math.isfinite(v) for k, v in metrics.items())
    assert json.loads(json.dumps(metrics)) == metrics and metrics["test/rows"] == 18


def test_the_text_has_the_ladder_the_baselines_and_every_region(report):
    _, metrics, text, *_ = report
    for line in (
        "end to end",
        "ladder: oracle cell",
        "ladder: oracle province",
        "ladder: centre only",
        "ladder: aux",
        "baseline: majority centroid",
        "baseline: nearest features",
        "baseline: colour histogram forest",
        "calibration: ECE",
        "Gilgit-Baltistan",
    ):
        assert line in text
    assert f"{metrics['test/median_km']:.1f}" in text and f"{metrics['test/oracle_cell_median_km']:.1f}" in text
    assert text.startswith("test: 18 rows")


def test_the_map_is_drawn_and_the_calibration_stays_that_of_val(report):
    module, _, _, folder, calibration = report
    assert (folder / "map.png").stat().st_size > 10_000
    assert module.calibration == calibration


def test_pictures_whose_colour_tells_the_region_are_found_by_the_baselines(report):
    _, metrics, *_ = report
    assert metrics["test/baseline_histogram_province_accuracy"] > 0.9
    assert metrics["test/baseline_majority_province_accuracy"] == 0.5


def test_the_majority_baseline_answers_one_place(tiny):
    geography = tiny.geography()
    truth = torch.tensor([[25.6, 67.1], [35.7, 75.3], [25.6, 67.1]])
    found = majority_baseline(geography, {"truth_deg": truth, "label": torch.tensor([0, 2, 0])})
    far = haversine_km(truth[1], truth[0]).item()
    assert found["median_km"] == pytest.approx(0, abs=0.1) and found["mean_km"] == pytest.approx(far / 3, rel=1e-3)
    assert found["province_accuracy"] == pytest.approx(2 / 3)


def test_the_nearest_baseline_finds_each_train_picture_itself(fitted, tiny, country):
    data = tiny.data(country)
    data.setup("fit")
    found = nearest_baseline(load_module(str(fitted.path)), data, "train")
    assert found["median_km"] == pytest.approx(0, abs=0.01) and found["province_accuracy"] > 0.95


def test_another_split_is_evaluated_under_its_own_name(fitted, tiny, country, tmp_path):
    module = load_module(str(fitted.path))
    calibration = dict(module.calibration)
    metrics, text = module.evaluate(tiny.data(country), tiny.trainer(), "val", str(tmp_path))
    assert "val/median_km" in metrics and text.startswith("val: 18 rows")
    assert metrics["val/median_km"] == pytest.approx(fitted.metrics["val/median_km"], rel=1e-3)
    assert module.calibration == calibration
