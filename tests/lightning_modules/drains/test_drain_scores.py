import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from stagewise.lightning_modules.drains.scores import NOTHING, confusions, drawn, intervals, lead, scores


def answers(seed=0, size=300, classes=9, right=0.6):
    rng = np.random.default_rng(seed)
    label, picture = rng.integers(0, classes, size), rng.integers(0, 40, size)
    return label, np.where(rng.random(size) < right, label, rng.integers(0, 9, size)), picture


@pytest.mark.parametrize("classes", [9, 7])
def test_the_figures_are_those_of_scikit_learn(classes):
    label, predicted, picture = answers(classes=classes)
    found = scores(confusions(label, predicted, picture).sum(0))
    there = np.unique(label)
    assert found["accuracy"] == pytest.approx(accuracy_score(label, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(label, predicted, labels=there, average="macro"))
    assert found["weighted_f1"] == pytest.approx(f1_score(label, predicted, average="weighted", labels=there))
    assert found["balanced_accuracy"] == pytest.approx(np.mean([np.mean(predicted[label == k] == k) for k in there]))
    precision, recall, f1, _ = precision_recall_fscore_support(label, predicted, labels=range(9), zero_division=0)
    assert found["precision/toe_drain_blocked"] == pytest.approx(precision[1])
    assert found["recall/toe_drain_blocked"] == pytest.approx(recall[1]) and found[
        "f1/rock_toe_damaged"
    ] == pytest.approx(f1[4])
    blocked = np.isin(label, [1, 6])
    assert found["accuracy/blocked"] == pytest.approx(np.mean(predicted[blocked] == label[blocked]))
    if classes == 7:
        assert np.isnan(found["f1/vegetation"]) and np.isnan(found["accuracy/vegetation"])


def test_a_missed_object_is_wrong_and_a_made_up_one_costs_precision():
    label, predicted = np.array([0, 0, NOTHING]), np.array([0, NOTHING, 0])
    found = scores(confusions(label, predicted, np.zeros(3, int)).sum(0))
    assert (found["accuracy"], found["recall/toe_drain_normal"], found["precision/toe_drain_normal"]) == (0.5, 0.5, 0.5)
    assert found["f1/toe_drain_normal"] == 0.5


def test_intervals_are_over_pictures():
    label, predicted, picture = answers()
    matrix = confusions(label, predicted, picture)
    low, high = intervals(matrix)["accuracy"]
    point = scores(matrix.sum(0))["accuracy"]
    assert low < point < high and high - low < 0.2
    one_each = confusions(np.repeat(label, 5), np.repeat(predicted, 5), np.repeat(np.arange(300), 5))
    many = confusions(np.repeat(label, 5), np.repeat(predicted, 5), np.arange(1500))
    width = [np.diff(intervals(m)["accuracy"])[0] for m in (one_each, many)]
    assert width[0] > 1.8 * width[1]  # five copies of an object tell no more than one
    assert intervals(matrix) == intervals(matrix)


def test_a_lead_is_taken_on_the_same_draws():
    label, predicted, picture = answers()
    matrix = confusions(label, predicted, picture)
    assert lead(matrix, matrix, "accuracy") == (0.0, 0.0)
    worse = confusions(label, np.where(np.arange(300) % 10 == 0, (label + 1) % 9, predicted), picture)
    low, high = lead(matrix, worse, "accuracy")
    assert 0 < low < high < 0.15
    assert drawn(matrix, 0, 7).shape == (7, 10, 10) and (drawn(matrix, 0, 7).sum((1, 2)) > 0).all()
