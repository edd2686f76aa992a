import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn import metrics as peer

from stagewise.lightning_modules.fusion.comparison import best_single, compare_modalities
from stagewise.lightning_modules.fusion.scores import (
    corrected_p,
    draws_of,
    figures,
    interval,
    kappa_of,
    swapped_p,
    tally,
)


def drawn(rows=90, seed=0, telling=1.0):
    rng = np.random.default_rng(seed)
    label = np.random.default_rng(99).integers(0, 3, rows)
    p = np.exp(telling * np.eye(3)[label] + rng.normal(size=(rows, 3)))
    return p / p.sum(1, keepdims=True), label, np.array([f"p{i % 30}" for i in range(rows)])


def test_the_figures_are_scikit_learns():
    p, label, group = drawn()
    answer, found = p.argmax(1), {k: float(v[0]) for k, v in figures(tally(p, label, group)).items()}
    assert found["kappa"] == pytest.approx(peer.cohen_kappa_score(label, answer))
    assert found["kappa_quadratic"] == pytest.approx(peer.cohen_kappa_score(label, answer, weights="quadratic"))
    assert found["accuracy"] == pytest.approx(peer.accuracy_score(label, answer))
    assert found["macro_f1"] == pytest.approx(peer.f1_score(label, answer, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(peer.balanced_accuracy_score(label, answer))
    assert found["log_loss"] == pytest.approx(peer.log_loss(label, p))


def test_the_calibration_error_is_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, label, group = drawn()
    expected = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(label), 3, n_bins=10)
    assert float(figures(tally(p, label, group))["ece"][0]) == pytest.approx(float(expected), abs=1e-6)


def test_a_draw_is_the_figure_of_the_rows_of_the_drawn_patients():
    p, label, group = drawn()
    taken = draws_of(30, draws=1, seed=3)
    rows = np.concatenate([np.tile(np.flatnonzero(group == one), k) for one, k in zip(np.unique(group), taken[0])])
    again = figures(tally(p[rows], label[rows], group[rows]))
    for name, value in figures(tally(p, label, group), taken).items():
        assert value[0] == pytest.approx(again[name][0]), name


def test_intervals_are_wider_when_a_patients_rows_are_alike():
    p, label, _ = drawn(60)
    twice = np.repeat(np.arange(60), 2)
    alone, alike = np.arange(120).astype(str), twice.astype(str)
    width = []
    for group in (alone, alike):
        counted = tally(p[twice], label[twice], group)
        low, high = interval(figures(counted, draws_of(len(counted.loss)))["kappa"])
        width.append(high - low)
    assert width[1] > 1.2 * width[0]


def test_rows_without_an_answer_and_single_classes():
    p, label, _ = drawn()
    p[:10] = np.nan
    assert kappa_of(p, label) == pytest.approx(peer.cohen_kappa_score(label[10:], p[10:].argmax(1)))
    assert np.isnan(kappa_of(p, np.zeros(90, int)))


def test_a_permutation_finds_a_difference_that_is_there_and_none_between_equals():
    (good, label, group), (bad, _, _) = drawn(telling=2.5), drawn(seed=1, telling=0.0)
    ours, theirs, like = (
        tally(good, label, group),
        tally(bad, label, group),
        tally(drawn(seed=2, telling=2.5)[0], label, group),
    )
    assert swapped_p(ours, theirs) < 0.01
    assert swapped_p(ours, like) > 0.05 and swapped_p(ours, ours) == 1.0


def test_the_corrected_test_is_the_paired_t_test_but_for_its_variance():
    d = np.array([0.05, 0.02, 0.04, 0.01, 0.06])
    assert corrected_p(d, 0.0) == pytest.approx(ttest_rel(d, np.zeros(5)).pvalue)
    assert corrected_p(d, 0.25) > corrected_p(d, 0.0)
    assert np.isnan(corrected_p(d[:1], 0.25))


def test_the_comparison_is_on_the_same_rows_and_draws():
    answers = {name: drawn(seed=k, telling=t)[0] for k, (name, t) in enumerate([("metadata", 1.0), ("image", 0.3)])}
    _, label, group = drawn()
    answers["fusion"] = answers["metadata"]  # no better: the lead is exactly 0 on every draw
    found = compare_modalities(answers, label, group, draws=100)
    assert found["lead/best_single/kappa"] == found["lead/best_single/kappa/ci_high"] == 0.0
    assert found["lead/best_single/kappa/se"] == 0.0 < found["lead/image/kappa/se"]
    assert found["lead/best_single/kappa/p"] == 1.0 and found["lead/image/kappa"] > 0
    assert found["kappa"] == found["fusion/kappa"] and found["rows"] == 90 and found["patients"] == 30
    assert found["kappa/ci_low"] < found["kappa"] < found["kappa/ci_high"]


def test_the_interval_of_the_calibration_error_holds_the_error():
    p, label = np.tile([0.6, 0.4], (50, 1)), (np.arange(50) >= 30).astype(int)  # 30 of 50 are right, as they say
    group = np.arange(50).astype(str)
    drawn = figures(tally(p, label, group), draws_of(50))["ece"]
    found = compare_modalities({"image": p}, label, group)
    assert drawn.mean() > 0.03  # all of it by chance
    assert found["image/ece/ci_low"] == pytest.approx(0) == found["image/ece"]
    assert 0 < found["image/ece/ci_high"] < interval(drawn)[1] - 0.03


def test_one_modality_alone_leads_nobody():
    p, label, group = drawn()
    found = compare_modalities({"image": p}, label, group, draws=50)
    assert "image/kappa" in found and not any(name.startswith("lead") for name in found)
    assert best_single({"metadata": float("nan"), "image": 0.1}) == "image"
