"""The report of an evaluation as a person reads it."""

from collections.abc import Mapping, Sequence

from ..text_tables import number, table, with_interval
from .comparison import LEADS, SINGLES
from .scores import FIGURES

Metrics = Mapping[str, float]
_SHORT = ("kappa", "kappa_quadratic", "log_loss")


def as_text(metrics: Metrics, title: str, modalities: Sequence[str]) -> str:
    """The report.

    Args:
        metrics: of :func:`~.evaluation.evaluate`, without the split's name.
        title: what was scored.
        modalities: in their order.
    """
    lines = [
        f"{title}: {metrics['rows']:.0f} rows of {metrics['patients']:.0f} patients; intervals of 95 % over patients "
        "in brackets",
        "",
        *modality_table(metrics, modalities),
        *lead_lines(metrics),
        *rule_lines(metrics),
    ]
    if "gap/kappa" in metrics:
        train, val, gap = (number(metrics[f"gap/{key}"]) for key in ("train_kappa", "val_kappa", "kappa"))
        lines += ["", f"  kappa on train {train}, on val {val}: gap {gap}"]
    return "\n".join(lines)


def modality_table(metrics: Metrics, modalities: Sequence[str]) -> list[str]:
    """A line for each modality, and one for the commonest class."""
    rows = [
        [name.replace("_", " "), *(with_interval(metrics, f"{name}/{key}") for key in FIGURES)] for name in modalities
    ]
    if "baseline/majority/kappa" in metrics:
        rows.append(["majority", *(number(metrics[f"baseline/majority/{key}"]) for key in FIGURES)])
    return table(["", *(key.replace("_", " ") for key in FIGURES)], rows)


def lead_lines(metrics: Metrics) -> list[str]:
    """How far the fusion is ahead of each modality."""
    if "lead/best_single/kappa" not in metrics:
        return []
    rows = [
        [
            name.replace("_", " "),
            *(with_interval(metrics, f"lead/{name}/{key}") for key in LEADS),
            number(metrics[f"lead/{name}/kappa/p"]),
        ]
        for name in (*SINGLES, "best_single")
    ]
    return ["", "  fusion minus", *table(["", *(key.replace("_", " ") for key in LEADS), "p of kappa"], rows)]


def rule_lines(metrics: Metrics) -> list[str]:
    """What each rule makes of the same probabilities, and how far it is ahead in kappa."""
    kinds = sorted({name.split("/")[1] for name in metrics if name.startswith("rule/")})
    if not kinds:
        return []
    names = [*_SHORT, *(f"lead/{one}/kappa" for one in ("metadata", "best_single"))]
    rows = [[kind, *(with_interval(metrics, f"rule/{kind}/{name}") for name in names)] for kind in kinds]
    header = ["", *(key.replace("_", " ") for key in _SHORT), "kappa minus metadata's", "minus the best single's"]
    return ["", "  the same probabilities under each rule", *table(header, rows)]
