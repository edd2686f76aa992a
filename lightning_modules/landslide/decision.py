"""The rule that turns class probabilities into one class: how far a rare class is favoured is chosen on validation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import quadratic_kappa

EXPONENTS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
Decision = dict[str, Any]
"""``exponent``, ``weights`` (K) and the ``quadratic_kappa`` that chose them."""


def class_weights(frequency: NDArray[np.floating], exponent: float) -> NDArray[np.float64]:
    """``frequency ** -exponent``: 0 favours nobody, 1 asks how much likelier than usual a class is.

    >>> class_weights(np.array([0.8, 0.2]), 1.0).tolist()
    [1.25, 5.0]
    """
    return np.asarray(np.maximum(frequency, 1e-9) ** -exponent, np.float64)


def choose(
    probability: NDArray[np.floating],
    label: NDArray[np.integer],
    frequency: NDArray[np.floating],
    weight: NDArray[np.floating] | None = None,
) -> Decision:
    """The exponent of ``argmax p * frequency ** -exponent`` with the best quadratic kappa; of equals the one nearest 0.

    With the true frequencies the most probable class is hardly ever a rare one; below 0 the rare ones are asked for
    more. Choose on pixels that are neither test
    nor those that the probabilities were fitted to.

    Args:
        probability: (N, K), calibrated.
        label: (N,) class.
        frequency: (K,) of the classes in train.
        weight: (N,) pixels that each of these stands for.

    >>> p = np.array([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3]])
    >>> choose(p, np.array([0, 0, 1]), np.array([0.8, 0.2]))["exponent"]
    0.75
    """
    count, mass = probability.shape[1], np.ones(len(label)) if weight is None else weight
    kappas = []
    for exponent in EXPONENTS:
        answer = (probability * class_weights(frequency, exponent)).argmax(1)
        kappas.append(float(quadratic_kappa(_confusion(label, answer, mass, count))))
    found = np.nan_to_num(kappas, nan=-2.0)
    best = min(np.flatnonzero(found == found.max()).tolist(), key=lambda i: abs(EXPONENTS[i]))
    weights = class_weights(frequency, EXPONENTS[best]).tolist()
    return {"exponent": EXPONENTS[best], "weights": weights, "quadratic_kappa": kappas[best]}


def _confusion(
    truth: NDArray[np.integer], answer: NDArray[np.integer], weight: NDArray[np.floating], count: int
) -> NDArray[np.float64]:
    """(K, K), truth x answer."""
    return np.bincount(truth * count + answer, weight, count * count).reshape(count, count).astype(np.float64)
