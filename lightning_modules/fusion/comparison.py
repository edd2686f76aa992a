"""Metadata, picture and both together on the same rows: figures, intervals over patients, and who is ahead."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .scores import DRAWS, FIGURES, Figures, Tally, draws_of, figures, interval, standard_error, swapped_p, tally

SINGLES = ("metadata", "image")
LEADS = ("kappa", "kappa_quadratic", "accuracy", "macro_f1", "log_loss")
Answers = Mapping[str, NDArray[np.floating]]  # modality -> (N, K), no NaN


def compare_modalities(
    answers: Answers, label: NDArray[np.int64], group: NDArray[np.str_], draws: int = DRAWS
) -> dict[str, float]:
    """Every figure of every modality.

    Args:
        answers: the last one is the model itself; where it is ``fusion``, its leads over ``metadata`` and ``image`` are
            given, each on the same draws of the same patients.
        label: (N,).
        group: (N,) patient.
        draws: of patients.

    Returns:
        ``name`` of the model, ``modality/name``, ``lead/modality/name``, each with ``/ci_low`` and ``/ci_high``;
        of a lead also ``/se``, its standard deviation over the draws; ``lead/modality/kappa/p`` of a paired permutation
        over patients; ``lead/best_single/…`` is the lead over the modality with the higher kappa on these rows. The
        bounds of ``ece`` are those of the draws less what these exceed it by on average.
    """
    counted = {name: tally(p, label, group) for name, p in answers.items()}
    taken = draws_of(len(np.unique(group)), draws)
    own = {name: figures(one) for name, one in counted.items()}
    drawn = {name: _centred(figures(one, taken), own[name]) for name, one in counted.items()}
    main, metrics = list(answers)[-1], {"rows": float(len(label)), "patients": float(taken.shape[1])}
    for prefix, name in (("", main), *((f"{name}/", name) for name in answers)):
        for figure, value in own[name].items():
            metrics |= with_bounds(f"{prefix}{figure}", float(value[0]), drawn[name][figure])
    if main == "fusion" and set(SINGLES) <= set(answers):
        metrics |= _leads(counted, own, drawn)
    return metrics


def _centred(drawn: Figures, own: Figures) -> Figures:
    """Draws whose calibration error is that of the rows on average.

    Chance alone moves a bin of few rows off its stated probability, and a draw of the rows once more: all draws may lie
    above the error of the rows themselves, which for the same reason is above that of endless rows.
    """
    return {**drawn, "ece": np.maximum(drawn["ece"] - drawn["ece"].mean() + own["ece"], 0)}


def compare_rules(
    rules: Answers, answers: Answers, label: NDArray[np.int64], group: NDArray[np.str_], draws: int = DRAWS
) -> dict[str, float]:
    """What :func:`compare_modalities` says of each rule, were it the model.

    Args:
        rules: kind -> (N, K), what the rule makes of the same rows' probabilities.
        answers: of :func:`compare_modalities`.
        label: (N,).
        group: (N,) patient.
        draws: of patients.

    Returns:
        ``rule/KIND/name`` and ``rule/KIND/lead/modality/name``.
    """
    singles = {name: answers[name] for name in SINGLES if name in answers}
    metrics: dict[str, float] = {}
    for kind, p in rules.items():
        found = compare_modalities({**singles, "fusion": p}, label, group, draws)
        own = {name: value for name, value in found.items() if name.split("/")[0] in (*FIGURES, "lead")}
        metrics |= {f"rule/{kind}/{name}": value for name, value in own.items()}
    return metrics


def with_bounds(name: str, value: float, drawn: NDArray[np.float64]) -> dict[str, float]:
    """A figure and its interval."""
    low, high = interval(drawn)
    return {name: value, f"{name}/ci_low": low, f"{name}/ci_high": high}


def _leads(counted: Mapping[str, Tally], own: Mapping[str, Figures], drawn: Mapping[str, Figures]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    best = best_single({name: float(own[name]["kappa"][0]) for name in SINGLES})
    for title, name in (*((one, one) for one in SINGLES), ("best_single", best)):
        for figure in LEADS:
            ahead = float((own["fusion"][figure] - own[name][figure])[0])
            difference = drawn["fusion"][figure] - drawn[name][figure]
            metrics |= with_bounds(f"lead/{title}/{figure}", ahead, difference)
            metrics[f"lead/{title}/{figure}/se"] = standard_error(difference)
        metrics[f"lead/{title}/kappa/p"] = swapped_p(counted["fusion"], counted[name])
    return metrics


def best_single(kappa: Mapping[str, float]) -> str:
    """The modality with the higher kappa; the harder one to beat.

    >>> best_single({"metadata": 0.3, "image": 0.2})
    'metadata'
    """
    return max(kappa, key=lambda name: -np.inf if np.isnan(kappa[name]) else kappa[name])
