import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from stagewise.lightning_modules.landslide.decision import EXPONENTS, choose, class_weights

CLASSES = 3


@pytest.fixture
def pixels():
    """Calibrated probabilities of a rare middle class, and labels drawn with exactly these."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet([6.0, 0.4, 1.2], 4000)
    label = (p.cumsum(1) < rng.random((4000, 1))).sum(1)
    return p, label, np.bincount(label, minlength=CLASSES) / len(label)


def kappa(p, label, weights):
    return cohen_kappa_score(label, (p * weights).argmax(1), weights="quadratic")


def test_the_exponent_is_the_one_with_the_best_quadratic_kappa(pixels):
    p, label, frequency = pixels
    found = choose(p, label, frequency)
    kappas = [kappa(p, label, frequency**-exponent) for exponent in EXPONENTS]
    assert found["exponent"] == EXPONENTS[int(np.argmax(kappas))]
    assert found["quadratic_kappa"] == pytest.approx(max(kappas))
    assert found["weights"] == pytest.approx(frequency ** -found["exponent"])
    assert max(kappas) > kappas[EXPONENTS.index(0.0)] + 0.02  # it mattered


def test_a_pixel_may_stand_for_many(pixels):
    p, label, frequency = pixels
    weight = np.random.default_rng(0).integers(1, 4, len(label))
    repeated = choose(np.repeat(p, weight, 0), np.repeat(label, weight), frequency)
    found = choose(p, label, frequency, weight.astype(float))
    assert found["exponent"] == repeated["exponent"]
    assert found["quadratic_kappa"] == pytest.approx(repeated["quadratic_kappa"])
    assert found["quadratic_kappa"] != pytest.approx(choose(p, label, frequency)["quadratic_kappa"])


def test_labels_of_one_class_favour_nobody(pixels):
    p, _, frequency = pixels
    assert choose(p, np.zeros(len(p), int), frequency)["exponent"] == 0.0


def test_a_class_that_train_lacks_gets_a_finite_weight():
    assert np.isfinite(class_weights(np.array([1.0, 0.0]), 1.0)).all()
