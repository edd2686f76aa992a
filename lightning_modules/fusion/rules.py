"""How two probabilities of the same row become one.

Probabilities go through no BatchNorm: it would make each row's answer depend on the rows beside it.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...datamodules.errors import StagewiseError

RULES = ("average", "tuned", "stacking", "concat")
_SMALLEST = 1e-3  # a forest says 0 for what no tree saw; its logarithm must not outweigh everything else
_GRID = np.linspace(0, 1, 21)


class AverageRule(nn.Module):
    """``w_metadata * p_metadata + w_picture * p_picture``; nothing is learned.

    Args:
        weights: of metadata and picture, sum 1.

    Raises:
        StagewiseError: a negative weight, or a sum that is not 1.

    >>> AverageRule([0.75, 0.25])(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([[0.7500, 0.2500]])
    """

    weight: Tensor
    fitted = False  # whether `fit` learns something of rows that neither branch has seen
    reads_features = False  # then it answers pictures, not rows

    def __init__(self, weights: Sequence[float] = (0.7, 0.3)) -> None:
        super().__init__()
        if len(weights) != 2 or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise StagewiseError(f"rule.weights must be two shares that sum to 1, got {list(weights)}.")
        self.register_buffer("weight", torch.tensor(list(weights), dtype=torch.float32))

    def forward(self, metadata: Tensor, picture: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, K), (B, K) -> (B, K)."""
        return self.weight[0] * metadata + self.weight[1] * picture


class TunedRule(AverageRule):
    """The average, its weight chosen from a grid by the log loss, each class counting the same."""

    fitted = True

    def fit(self, metadata: NDArray[Any], picture: NDArray[Any], label: NDArray[np.int64]) -> None:
        """Learns from (N, K), (N, K), (N,) of rows that neither branch was trained on."""
        counts = np.bincount(label, minlength=metadata.shape[1])
        true = np.stack([np.take_along_axis(p, label[:, None], 1)[:, 0] for p in (metadata, picture)])
        mixed = np.maximum(np.outer(_GRID, true[0]) + np.outer(1 - _GRID, true[1]), 1e-7)  # (21, N)
        best = float(_GRID[np.average(-np.log(mixed), axis=1, weights=1 / counts[label]).argmin()])
        self.weight.copy_(torch.tensor([best, 1 - best]))


class StackingRule(nn.Module):
    """Multinomial logistic regression on the logarithms of both probabilities; until it is fitted, their weighted sum.

    Args:
        classes: K.
        weights: of metadata and picture before it is fitted.
        strength: of the regularisation, scikit-learn's ``C``: less is nearer to no opinion.
    """

    coefficients: Tensor
    bias: Tensor
    fitted = True
    reads_features = False

    def __init__(self, classes: int, weights: Sequence[float] = (0.7, 0.3), strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        start = torch.cat([float(weight) * torch.eye(classes) for weight in weights], 1)
        self.register_buffer("coefficients", start)  # (K, 2 K)
        self.register_buffer("bias", torch.zeros(classes))

    def forward(self, metadata: Tensor, picture: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, K), (B, K) -> (B, K)."""
        seen = torch.cat([log_of(metadata), log_of(picture)], 1)
        return torch.softmax(seen @ self.coefficients.T + self.bias, -1)

    def fit(self, metadata: NDArray[Any], picture: NDArray[Any], label: NDArray[np.int64]) -> None:
        """Learns from (N, K), (N, K), (N,) of rows that neither branch was trained on."""
        from sklearn.linear_model import LogisticRegression

        both = [log_of(torch.as_tensor(p, dtype=torch.float64)) for p in (metadata, picture)]
        model = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=2000)
        model.fit(torch.cat(both, 1).numpy(), label)
        slope, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn holds one row for two classes
            slope, bias = np.concatenate([-slope, slope]) / 2, np.concatenate([-bias, bias]) / 2
        self.coefficients.zero_()
        self.bias.fill_(-30.0)  # a class that these rows have not
        self.coefficients[model.classes_] = torch.from_numpy(slope).to(self.coefficients)
        self.bias[model.classes_] = torch.from_numpy(bias).to(self.bias)


class ConcatRule(nn.Module):
    """A linear head on ``[log p_metadata, features of the picture]``, trained with the network.

    It starts as the metadata alone.

    Args:
        classes: K.
        width: D of the features.
    """

    fitted = False
    reads_features = True

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(classes + width, classes)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[:, :classes].copy_(torch.eye(classes))
            self.linear.bias.zero_()

    def forward(self, metadata: Tensor, picture: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, K), (B, K) unused, (B, D) -> (B, K)."""
        assert features is not None
        found: Tensor = self.linear(torch.cat([log_of(metadata), features], 1)).softmax(-1)
        return found


def log_of(probability: Tensor) -> Tensor:
    """Logarithm, of 0 that of 0.001."""
    return probability.clamp(min=_SMALLEST).log()


def make_rule(
    classes: int, width: int, kind: str = "average", weights: Sequence[float] = (0.7, 0.3), strength: float = 1.0
) -> Any:
    """The rule of that kind.

    Args:
        classes: K.
        width: D of the picture's features.
        kind: one of ``RULES``.
        weights: of metadata and picture; where they are learned, of the start. Concatenation has none.
        strength: of :class:`StackingRule`.

    Raises:
        StagewiseError: an unknown kind.
    """
    if kind == "average":
        return AverageRule(weights)
    if kind == "tuned":
        return TunedRule(weights)
    if kind == "stacking":
        return StackingRule(classes, weights, strength)
    if kind == "concat":
        return ConcatRule(classes, width)
    raise StagewiseError(f"rule.kind must be one of {', '.join(RULES)}, got '{kind}'.")


Rows = Mapping[str, NDArray[Any]]


def have_both(rows: Rows) -> NDArray[np.bool_]:
    """(N,) which rows have an answer of the metadata and one of the picture."""
    either_missing: NDArray[np.bool_] = np.isnan(rows["metadata"] + rows["picture"])
    return ~np.logical_or.reduce(either_missing, axis=1)


def fit_rule(rule: Any, rows: Rows) -> None:
    """Fits a rule on rows that have both answers; with fewer than two classes among them it stays as it is.

    Args:
        rule: with ``fit``.
        rows: ``metadata`` and ``picture`` (N, K), NaN where there is none, and ``label`` (N,).
    """
    both = have_both(rows)
    if len(np.unique(rows["label"][both])) > 1:
        rule.fit(rows["metadata"][both], rows["picture"][both], rows["label"][both])


def cross_fitted(rule: Any, rows: Rows, folds: int = 5) -> NDArray[np.float32]:
    """What a fitted rule answers rows of patients that it was not fitted on: honest where it learns from those rows.

    Args:
        rule: with ``fit``; it stays as it is.
        rows: of :func:`fit_rule`, and ``group`` (N,).
        folds: at most; with fewer than two patients the rule answers as it is.

    Returns:
        (N, K), NaN where a row has not both answers.
    """
    from sklearn.model_selection import GroupKFold

    found = np.full(rows["metadata"].shape, np.nan, np.float32)
    parts = min(folds, len(np.unique(rows["group"])))
    if parts < 2:
        return apply_rule(rule, rows)
    for others, own in GroupKFold(parts, shuffle=True, random_state=0).split(found, groups=rows["group"]):
        one = copy.deepcopy(rule)
        fit_rule(one, {name: value[others] for name, value in rows.items()})
        found[own] = apply_rule(one, {name: value[own] for name, value in rows.items()})
    return found


@torch.no_grad()
def apply_rule(rule: Any, rows: Rows) -> NDArray[np.float32]:
    """(N, K) of a rule that needs the probabilities alone."""
    device = next(iter(rule.buffers())).device
    given = (torch.as_tensor(rows[name], dtype=torch.float32, device=device) for name in ("metadata", "picture"))
    found: NDArray[np.float32] = rule(*given).cpu().numpy()
    return found


def with_prior(probability: Tensor, prior: Tensor) -> Tensor:
    """(N, K) with the classes' shares where a row has no answer.

    >>> with_prior(torch.tensor([[torch.nan, torch.nan], [1.0, 0.0]]), torch.tensor([0.5, 0.5])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    return torch.where(probability.isnan().any(1, keepdim=True), prior.to(probability), probability)
