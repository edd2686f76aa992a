"""The figures of a map against scikit-learn, scipy and torchmetrics; what is undefined stays undefined."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from stagewise.lightning_modules.landslide.scores import notes, pixel_scores, scores
from stagewise.lightning_modules.landslide.tally import join, merge, rank_bin, susceptibility, tally_of

CLASSES = ["low", "medium", "high"]


def pixels(count=4000, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, count, p=[0.8, 0.05, 0.15] if classes == 3 else None)
    z = rng.normal(size=(count, classes)) * 1.5
    z[np.arange(count), y] += 1.2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return y, p.astype(np.float32)


def test_figures_of_the_confusion_matrix_are_scikit_learns():
    y, p = pixels()
    found, answer = pixel_scores(y, p, CLASSES), p.argmax(1)
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(y, answer))
    assert found["quadratic_kappa"] == pytest.approx(sk.cohen_kappa_score(y, answer, weights="quadratic"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, answer))
    for name, metric in (("precision", sk.precision_score), ("recall", sk.recall_score), ("iou", sk.jaccard_score)):
        assert [found[f"{name}/{c}"] for c in CLASSES] == pytest.approx(metric(y, answer, average=None))
    for k, name in enumerate(CLASSES):
        assert found[f"prevalence/{name}"] == pytest.approx((y == k).mean())
        assert found[f"lift/{name}"] == pytest.approx(found[f"precision/{name}"] / (y == k).mean())


@pytest.mark.parametrize(("scale", "within"), [(1.0, 1e-3), (0.01, 8e-3)], ids=["spread out", "crowded"])
def test_ranking_figures_are_those_of_the_pixels(scale, within):
    y, p = pixels(20_000)
    p = np.stack([1 - scale * (p[:, 1] + p[:, 2]), scale * p[:, 1], scale * p[:, 2]], axis=1)
    found = pixel_scores(y, p, CLASSES)
    above = p[:, 1] + p[:, 2]
    expected = {
        "auroc/high": sk.roc_auc_score(y == 2, p[:, 2]),
        "auroc/medium_or_high": sk.roc_auc_score(y >= 1, above),
        "average_precision/high": sk.average_precision_score(y == 2, p[:, 2]),
        "average_precision/medium_or_high": sk.average_precision_score(y >= 1, above),
        "average_precision/medium": sk.average_precision_score(y == 1, p[:, 1]),
        "spearman": spearmanr(susceptibility(p), y).statistic,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=within), name


def test_calibration_error_is_torchmetrics():
    y, p = pixels()
    expected = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), num_classes=3, n_bins=15)
    assert pixel_scores(y, p, CLASSES)["ece"] == pytest.approx(expected.item(), abs=1e-6)


def test_unlabelled_pixels_change_nothing():
    y, p = pixels()
    rng = np.random.default_rng(1)
    more = rng.dirichlet([0.2, 0.2, 3.0], 50_000).astype(np.float32)  # a map that cries high where nobody looked
    with_them = pixel_scores(np.concatenate([y, np.full(50_000, -1)]), np.concatenate([p, more]), CLASSES)
    assert with_them == pixel_scores(y, p, CLASSES)


def test_prevalence_stands_beside_every_precision():
    found = pixel_scores(*pixels(), CLASSES)
    for name in found:
        kind, _, of = name.partition("/")
        if kind in ("precision", "average_precision"):
            assert f"prevalence/{of}" in found


def test_a_class_that_does_not_occur_is_nan_and_said():
    y, p = pixels()
    y = np.where(y == 1, 0, y)
    tally = tally_of(y, p, np.zeros(len(y)), CLASSES)
    found = scores(tally)
    for name in ("precision/medium", "recall/medium", "f1/medium", "iou/medium", "lift/medium"):
        assert np.isnan(found[name]), name
    assert np.isnan(found["average_precision/medium"])
    assert found["macro_f1"] == pytest.approx(np.mean([found["f1/low"], found["f1/high"]]))
    assert notes(tally) == ["class 'medium' has no labelled pixel here: its figures are undefined (NaN)"]


def test_a_class_that_is_never_answered_has_no_precision_but_a_recall_of_0():
    y, p = pixels()
    p[:, 1] = 0
    tally = tally_of(y, p, np.zeros(len(y)), CLASSES)
    found = scores(tally)
    assert np.isnan(found["precision/medium"]) and np.isnan(found["lift/medium"])
    assert found["recall/medium"] == found["f1/medium"] == found["iou/medium"] == 0
    assert "never answered" in notes(tally)[0]


def test_one_class_alone_has_no_kappa_and_no_auroc():
    found = pixel_scores([0, 0], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], CLASSES)
    assert all(np.isnan(found[k]) for k in ("kappa", "quadratic_kappa", "auroc/high", "spearman"))
    assert found["accuracy"] == 0.5


def test_two_classes_have_the_figures_of_the_higher_one():
    y, p = pixels(classes=2)
    found = pixel_scores(y, p, ["no_landslide", "landslide"])
    assert found["auroc/landslide"] == pytest.approx(sk.roc_auc_score(y, p[:, 1]), abs=1e-3)
    assert not [name for name in found if "_or_" in name]


def test_counts_taken_in_pieces_are_those_of_the_whole():
    y, p = pixels()
    block = np.arange(len(y)) // 500
    whole = tally_of(y, p, block, CLASSES)
    half = 1750  # in the middle of a block
    pieces = merge([tally_of(y[s], p[s], block[s], CLASSES) for s in (slice(half), slice(half, None))])
    for name in ("block", "confusion", "ranked", "reliability"):
        assert np.allclose(getattr(pieces, name), getattr(whole, name)), name
    assert join([whole, whole]).blocks == 2 * whole.blocks == 16


def test_a_higher_score_never_ranks_lower():
    score = np.concatenate([[0.0], np.logspace(-8, -0.001, 5000), 1 - np.logspace(-1, -8, 500), [1.0]])
    bins = rank_bin(np.sort(score))
    assert (np.diff(bins) >= 0).all() and bins[0] == 0 and bins[-1] == 4095
    assert len(np.unique(rank_bin(np.linspace(0.001, 0.01, 100)))) == 100  # a rare class is told apart
