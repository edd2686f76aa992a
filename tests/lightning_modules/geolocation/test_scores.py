import numpy as np
import pytest
import torch

from stagewise.datamodules.geolocation.geodesy import haversine_km
from stagewise.lightning_modules.geolocation.scores import (
    LADDER,
    NO_CALIBRATION,
    WITHIN_KM,
    calibrate,
    calibration_scores,
    end_to_end_scores,
    error_scores,
    fit_temperature,
    radius_km,
    region_scores,
    slug,
)
from stagewise.lightning_modules.metrics import PredictionTable

NAMES = ["Sindh", "Khyber Pakhtunkhwa", "Gilgit-Baltistan", "Never Seen"]


def make_rows(n=200, k=4, seed=0, spread_deg=0.5):
    """An evaluation of ``n`` pictures: hypotheses scattered around the truth."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, 2, generator=g) * 10 + torch.tensor([24.0, 62.0])
    label = torch.randint(0, 3, (n,), generator=g)
    scale = spread_deg * (0.2 + torch.rand(n, 1, 1, generator=g) * 2)  # some pictures are harder
    rows = {
        "truth_deg": truth,
        "label": label,
        "region_logits": torch.randn(n, 4, generator=g) + 2 * torch.nn.functional.one_hot(label, 4),
        "log_p": torch.randn(n, k, generator=g).log_softmax(-1),
        "place_deg": truth.unsqueeze(1) + scale * torch.randn(n, k, 2, generator=g),
        "hypothesis_region": torch.randint(0, 3, (n, k), generator=g),
        "cell_rank": torch.randint(0, 12, (n,), generator=g),
    }
    return rows | {rung: truth + 0.3 * torch.randn(n, 2, generator=g) for rung in LADDER}


# --- the table ---


def test_the_table_counts_a_padded_row_once_and_sorts():
    table = PredictionTable(("error_km", "place_deg"))
    table.update(torch.tensor([4, 0, 2]), {"error_km": torch.tensor([4.0, 0.0, 2.0]), "place_deg": torch.eye(3)})
    table.update(torch.tensor([1, 0]), {"error_km": torch.tensor([1.0, 9.0]), "place_deg": torch.zeros(2, 3)})
    rows = table.compute()
    assert rows["sample_id"].tolist() == [0, 1, 2, 4] and rows["error_km"].tolist() == [0.0, 1.0, 2.0, 4.0]
    assert torch.equal(rows["place_deg"][0], torch.tensor([0.0, 1.0, 0.0]))


def test_the_table_forgets_on_reset_and_keeps_no_graph():
    table = PredictionTable()
    value = torch.ones(2, requires_grad=True) * 2
    table.update(torch.tensor([0, 1]), {"error_km": value})
    assert not table.compute()["error_km"].requires_grad
    table.reset()
    table.update(torch.tensor([7, 5]), {"error_km": torch.tensor([5.0, 6.0])})
    assert table.compute()["sample_id"].tolist() == [5, 7]


# --- figures ---


def test_error_scores_equal_numpy():
    km = np.random.default_rng(0).exponential(100, 101).astype(np.float32)
    scores = error_scores(torch.from_numpy(km))
    assert scores["median_km"] == pytest.approx(np.median(km), rel=1e-6)
    assert scores["mean_km"] == pytest.approx(km.mean(dtype=np.float64), rel=1e-6)
    assert scores["p90_km"] == pytest.approx(np.percentile(km.astype(np.float64), 90), rel=1e-6)


def test_macro_accuracy_gives_every_region_one_vote_and_skips_those_without_rows():
    truth = torch.tensor([0] * 8 + [1, 1])
    predicted = torch.tensor([0] * 8 + [0, 1])
    scores = region_scores(predicted, truth, NAMES)
    assert scores["province_accuracy"] == pytest.approx(0.9)
    assert scores["province_macro_accuracy"] == pytest.approx(0.75)
    assert scores["accuracy/sindh"] == 1.0 and scores["accuracy/khyber_pakhtunkhwa"] == 0.5
    assert not any("gilgit" in key or "never" in key for key in scores)


def test_names_of_regions_are_fit_for_metrics():
    assert [slug(name) for name in NAMES] == ["sindh", "khyber_pakhtunkhwa", "gilgit_baltistan", "never_seen"]


@pytest.mark.parametrize("rule", ["best", "mean"])
def test_end_to_end_scores_equal_numpy(rule):
    rows = make_rows()
    scores = end_to_end_scores(rows, NAMES, NO_CALIBRATION | {"rule": rule})
    n, log_p = 200, rows["log_p"].numpy()
    place, truth = rows["place_deg"].double().numpy(), rows["truth_deg"].double().numpy()
    if rule == "best":
        region = rows["hypothesis_region"].numpy()
        mass = np.stack([np.where(region == r, np.exp(log_p), 0).sum(1) for r in range(3)], 1)
        answer = place[np.arange(n), np.where(region == mass.argmax(1)[:, None], log_p, -np.inf).argmax(1)]
    else:
        weight = np.exp(log_p)[..., None]
        lat, lon = np.radians(place[..., :1]), np.radians(place[..., 1:])
        v = (weight * np.concatenate([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)).sum(1)
        answer = np.degrees(
            np.stack([np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])), np.arctan2(v[:, 1], v[:, 0])], 1)
        )

    def km(a, b):
        a, b = np.radians(a), np.radians(b)
        h = np.sin((b - a)[:, 0] / 2) ** 2 + np.cos(a[:, 0]) * np.cos(b[:, 0]) * np.sin((b - a)[:, 1] / 2) ** 2
        return 2 * 6371.0088 * np.arcsin(np.sqrt(h))

    error = km(answer, truth)
    assert scores["median_km"] == pytest.approx(np.median(error), rel=1e-3)
    assert scores["mean_km"] == pytest.approx(error.mean(), rel=1e-3)
    assert scores["p90_km"] == pytest.approx(np.percentile(error, 90), rel=1e-3)
    assert scores[f"{rule}_median_km"] == pytest.approx(scores["median_km"])
    for limit in WITHIN_KM:
        assert scores[f"within_{limit}_km"] == pytest.approx((error <= limit).mean(), abs=0.006)
    shares = [scores[f"within_{limit}_km"] for limit in WITHIN_KM]
    assert WITHIN_KM == (1, 5, 25, 50, 100, 200, 750) and shares == sorted(shares) and shares[-1] == 1.0
    for rung in LADDER:
        assert scores[f"{rung}_median_km"] == pytest.approx(np.median(km(rows[rung].double().numpy(), truth)), rel=1e-3)
        assert scores[f"{rung}_mean_km"] == pytest.approx(km(rows[rung].double().numpy(), truth).mean(), rel=1e-3)
    label, head = rows["label"].numpy(), rows["region_logits"].numpy().argmax(1)
    region = rows["hypothesis_region"].numpy()
    mass = np.stack([np.where(region == r, np.exp(log_p), 0).sum(1) for r in range(3)], 1)
    predicted = mass.argmax(1)
    assert scores["head_province_accuracy"] == pytest.approx((label == head).mean())
    assert scores["province_accuracy"] == pytest.approx((label == predicted).mean())
    assert scores["province_macro_accuracy"] == pytest.approx(
        np.mean([(predicted[label == r] == r).mean() for r in range(3)])
    )
    rank = rows["cell_rank"].numpy()
    assert scores["cell_top1_accuracy"] == pytest.approx((rank == 0).mean())
    assert scores["cell_top5_accuracy"] == pytest.approx((rank < 5).mean())
    assert scores["median_km/sindh"] == pytest.approx(np.median(error[label == 0]), rel=1e-3)
    assert scores["rows"] == 200 and "median_km/never_seen" not in scores
    assert all(type(value) is float for value in scores.values())


# --- calibration ---


def overconfident(n, factor, seed):
    """Logits ``factor`` times too large for labels that are drawn from the true probabilities."""
    g = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, 4, generator=g)
    label = torch.multinomial(logits.softmax(-1), 1, generator=g).squeeze(1)
    return factor * logits, label


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_and_lowers_the_likelihoods_loss(factor):
    logits, label = overconfident(6000, factor, 0)
    temperature = fit_temperature(logits, label)
    assert temperature == pytest.approx(factor, rel=0.1)
    loss = torch.nn.functional.cross_entropy
    assert loss(logits / temperature, label) <= loss(logits, label) + 1e-6
    for other in (0.8, 1.25):
        assert loss(logits / temperature, label) < loss(logits / (other * temperature), label)


def test_the_temperature_of_val_calibrates_other_rows():
    val, test = make_rows(2000, seed=1), make_rows(2000, seed=2)
    for rows, seed in ((val, 1), (test, 2)):
        rows["region_logits"], rows["label"] = overconfident(2000, 3.0, seed)
    calibration = calibrate(val, "best")
    place = test["place_deg"][:, 0]
    scores = calibration_scores(test, place, haversine_km(place, test["truth_deg"]), calibration)
    assert scores["ece_raw"] > 0.1 and scores["ece"] < 0.3 * scores["ece_raw"]


@pytest.mark.parametrize("rule", ["auto", "mean"])
def test_the_radius_holds_the_truth_of_new_pictures_nine_times_in_ten(rule):
    coverage = []
    for seed in range(5):
        calibration = calibrate(make_rows(800, seed=10 + seed), rule)
        coverage.append(end_to_end_scores(make_rows(800, seed=30 + seed), NAMES, calibration)["radius_90_coverage"])
    assert np.mean(coverage) == pytest.approx(0.9, abs=0.02)


def test_the_radius_is_wider_where_hypotheses_disagree():
    rows = make_rows(400)
    calibration = calibrate(rows, "best")
    place = rows["place_deg"][torch.arange(400), rows["log_p"].argmax(-1)]
    radius = radius_km(rows, place, calibration)
    spread = (haversine_km(rows["place_deg"], place.unsqueeze(1)) * rows["log_p"].exp()).sum(-1)
    order = spread.argsort()
    assert (radius > 0).all() and (radius[order].diff() >= -1e-3).all() and radius[order[-1]] > 2 * radius[order[0]]


def test_auto_takes_the_rule_with_the_lowest_median_and_a_word_is_kept():
    rows = make_rows(400)
    best = calibrate(rows, "auto")
    scores = end_to_end_scores(rows, NAMES, best)
    medians = {rule: scores[f"{rule}_median_km"] for rule in ("best", "mean", "geometric_median")}
    assert medians[best["rule"]] == min(medians.values()) == pytest.approx(scores["median_km"])
    assert calibrate(rows, "best")["rule"] == "best"
    sure = rows | {"place_deg": rows["place_deg"].clone()}
    sure["place_deg"][torch.arange(400), rows["log_p"].argmax(-1)] = rows["truth_deg"]
    assert calibrate(sure, "auto")["rule"] == "best"


def test_calibration_is_plain_and_survives_a_perfect_or_tiny_val():
    perfect = make_rows(3)
    perfect["place_deg"] = perfect["truth_deg"].unsqueeze(1).expand(-1, 4, -1)
    for rows in (perfect, make_rows(2), make_rows(1)):
        calibration = calibrate(rows, "auto")
        assert {type(v) for v in calibration.values()} == {str, float}
        assert set(calibration) == set(NO_CALIBRATION)
        scores = end_to_end_scores(rows, NAMES, calibration)
        assert all(np.isfinite(v) for v in scores.values())
