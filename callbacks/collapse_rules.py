"""What a confusion matrix says about single classes, as pure functions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Counts = Sequence[Sequence[float]]
RULES = {"recall": "floor", "share": "max"}


def supports(counts: Counts) -> list[float]:
    """(K,) samples of each true class, from (K, K) counts with the truth in rows.

    >>> supports([[8, 2], [1, 4]])
    [10, 5]
    """
    return [sum(row) for row in counts]


def recalls(counts: Counts, min_support: int = 1) -> list[float | None]:
    """(K,) recall of each class; ``None`` with fewer than ``min_support`` samples, which is no evidence.

    >>> recalls([[8, 2], [1, 4], ], min_support=6)
    [0.8, None]
    """
    return [
        row[index] / total if total >= max(min_support, 1) else None
        for index, (row, total) in enumerate(zip(counts, supports(counts), strict=True))
    ]


def predicted_shares(counts: Counts, min_support: int = 1) -> list[float | None]:
    """(K,) share of all samples that each class is given.

    >>> predicted_shares([[8, 2], [2, 8]])
    [0.5, 0.5]
    """
    total = sum(supports(counts))
    if total < max(min_support, 1):
        return [None] * len(counts)
    return [sum(row[index] for row in counts) / total for index in range(len(counts))]


def majority_accuracy(counts: Counts) -> float:
    """Accuracy of always answering the most frequent class.

    >>> majority_accuracy([[6, 4], [5, 5], [0, 0]])
    0.5
    """
    total = sum(supports(counts))
    return max(supports(counts)) / total if total else 0.0


def baseline_from_file(path: str) -> dict[str, float]:
    """Recalls by class name from a JSON file.

    Raises:
        ValueError: the file is not there or holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"`baseline` must be majority, previous_stage or a JSON file of recalls; no file {path!r}.")
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(value, int | float) for value in content.values()):
        raise ValueError(f"`baseline` file {path!r} must be an object of class name: recall.")
    return {str(name): float(value) for name, value in content.items()}


def check_rules(rules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reads ``{"recall": {"floor", "patience"}, "share": {"max", "patience"}}``; patience is 1 unless given."""
    if not rules or set(rules) - set(RULES):
        raise ValueError(f"`rules` must have recall, share or both, got {sorted(rules)}.")
    return {name: check_limit(f"rules.{name}", rule, RULES[name]) for name, rule in rules.items()}


def check_limit(where: str, rule: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One limit and its patience.

    Raises:
        ValueError: the limit is not a share, or the patience is below 1.
    """
    if set(rule) - {key, "patience"} or key not in rule:
        raise ValueError(f"`{where}` needs {key} and may have patience, got {dict(rule)}.")
    if not 0 <= rule[key] <= 1:
        raise ValueError(f"`{where}.{key}` must be a share between 0 and 1, got {rule[key]}; 30 % is 0.30.")
    if rule.get("patience", 1) < 1:
        raise ValueError(f"`{where}.patience` must be at least 1, got {rule['patience']}.")
    return {"patience": 1, **rule}
