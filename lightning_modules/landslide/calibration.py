"""Calibration of class probabilities, fitted on a split of its own after everything that inference does."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from ...datamodules.errors import StagewiseError

KINDS = ("none", "temperature", "temperature_bias", "isotonic")
State = dict[str, Any]
Array = TypeVar("Array", NDArray[np.floating], Tensor)
_SMALLEST = 1e-7  # float32 probabilities of 0 have a finite logarithm
_SHARPEST = 20.0


def fit(probability: NDArray[np.floating], label: NDArray[np.integer], kind: str = "temperature") -> State:
    """Fits on labelled pixels.

    ``temperature`` divides log-probabilities by one number, over or under 1 (Guo et al., ICML 2017): it mends
    confidence and leaves every answer as it is. ``temperature_bias`` adds a number for each class (Alexandari et al.,
    ICML 2020): only this takes back the frequencies that oversampling and class weights taught, so the answers move.
    ``isotonic`` maps each P(class >= k) by a monotone function and keeps them in order; answers move too.

    Args:
        probability: (N, K), final: blended, averaged, refined.
        label: (N,) class from 0; -1 is left out.
        kind: one of ``KINDS``.

    Returns:
        Plain numbers for :func:`apply` and a checkpoint, with ``nll_before``, ``nll_after`` (for a temperature never
        above the one before), ``ece_before``, ``ece_after`` (most probable class, 15 bins) and ``pixels``.

    Raises:
        StagewiseError: an unknown kind, or too few classes for it.

    >>> p = np.array([[0.99, 0.01]] * 4)
    >>> state = fit(p, np.array([0, 0, 0, 1]))
    >>> round(state["temperature"], 2), apply(p.T, state)[0].round(2).tolist()
    (4.18, [0.75, 0.75, 0.75, 0.75])
    """
    if kind not in KINDS:
        raise StagewiseError(f"`calibration` must be one of {', '.join(KINDS)}, got '{kind}'.")
    if kind == "none":
        return {"kind": "none"}
    kept = np.asarray(label) >= 0
    y, p = np.asarray(label)[kept].astype(np.int64), np.asarray(probability)[kept].astype(np.float64)
    _require_classes(y, p.shape[1], kind)
    state = _isotonic(p, y) if kind == "isotonic" else _temperature(p, y, with_bias=kind == "temperature_bias")
    state = {"kind": kind, **state, "pixels": len(y)}
    for when, q in (("before", p), ("after", apply(p.T, state).T)):
        state |= {f"nll_{when}": nll(q, y), f"ece_{when}": _ece(q, y)}
    return state


def _ece(probability: NDArray[np.floating], label: NDArray[np.int64]) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    given = from_numpy(np.ascontiguousarray(probability)), from_numpy(label)
    return float(multiclass_calibration_error(*given, num_classes=probability.shape[1], n_bins=15))


def _require_classes(y: NDArray[np.int64], count: int, kind: str) -> None:
    there = np.unique(y)
    if len(there) < 2:
        raise StagewiseError(
            f"calibration needs labelled pixels of at least two classes, the calibration split has {there.tolist()}; "
            "give it a larger share, or set calibration=none."
        )
    if kind == "temperature_bias" and len(there) < count:
        missing = sorted(set(range(count)) - set(there.tolist()))
        raise StagewiseError(f"no pixel of class {missing} in the calibration split; set calibration=temperature.")


def nll(probability: NDArray[np.floating], label: NDArray[np.integer]) -> float:
    """Mean negative log-likelihood of (N, K) probabilities.

    >>> nll(np.array([[0.5, 0.5]]), np.array([0]))
    0.6931471805599453
    """
    right = np.take_along_axis(probability.astype(np.float64), np.asarray(label)[:, None], 1)
    return float(-np.log(np.maximum(right, _SMALLEST)).mean())


def _temperature(p: NDArray[np.float64], y: NDArray[np.int64], with_bias: bool) -> State:
    """Minimises the NLL, convex in 1 / temperature and the biases, from the uncalibrated probabilities."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    log_p, one_hot = np.log(np.maximum(p, _SMALLEST)), np.eye(p.shape[1])[y]
    width = p.shape[1] if with_bias else 0

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = theta[0] * log_p
        log_q = log_softmax(z + theta[1:] if with_bias else z, axis=1)
        gap = (np.exp(log_q) - one_hot) / len(y)
        slope = [(gap * log_p).sum(), *(gap.sum(0) if with_bias else ())]
        return float(-(one_hot * log_q).sum() / len(y)), np.array(slope)

    start = np.array([1.0, *[0.0] * width])
    bounds = [(1 / _SHARPEST, _SHARPEST), *[(None, None)] * width]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    theta = found.x if found.fun <= loss(start)[0] else start
    state = {"temperature": 1 / float(theta[0])}
    return state | ({"bias": (theta[1:] - theta[1:].mean()).tolist()} if with_bias else {})


def _isotonic(p: NDArray[np.float64], y: NDArray[np.int64]) -> State:
    from sklearn.isotonic import IsotonicRegression

    edge = 1 / (len(y) + 2)  # a share of exactly 0 or 1 would be refuted at infinite cost by one pixel
    steps = []
    for k in range(1, p.shape[1]):
        found = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(p[:, k:].sum(1), y >= k)
        steps.append({"x": found.X_thresholds_.tolist(), "y": found.y_thresholds_.tolist()})
    return {"steps": steps}


def apply(probability: Array, state: State) -> Array:
    """Calibrated probabilities.

    Args:
        probability: (K, ...), array or tensor; NaN stays NaN.
        state: of :func:`fit`.

    Returns:
        (K, ...) of the same kind, type and device; they add up to 1.
    """
    if state["kind"] == "none":
        return probability
    if isinstance(probability, Tensor):
        done = _apply(probability.detach().double().cpu().numpy(), state)
        return from_numpy(done).to(probability)
    return _apply(probability.astype(np.float64), state).astype(probability.dtype)


def _apply(p: NDArray[np.float64], state: State) -> NDArray[np.float64]:
    from scipy.special import softmax

    if state["kind"] != "isotonic":
        bias = np.array(state.get("bias", np.zeros(len(p)))).reshape(-1, *[1] * (p.ndim - 1))
        return softmax(np.log(np.maximum(p, _SMALLEST)) / state["temperature"] + bias, axis=0)
    above = [np.interp(p[k:].sum(0), step["x"], step["y"]) for k, step in enumerate(state["steps"], 1)]
    ordered = np.minimum.accumulate(np.stack([np.ones_like(p[0]), *above]), axis=0)  # P(>= k) never rises with k
    share = np.maximum(-np.diff(ordered, axis=0, append=0), _SMALLEST)
    return np.where(np.isnan(p).any(0), np.nan, share / share.sum(0))
