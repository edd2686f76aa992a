"""The report of an evaluation as a person reads it."""

import math
from collections.abc import Mapping, Sequence

from ...datamodules.drains.vocabulary import CLASS_NAMES
from ..text_tables import number, table, with_interval
from .scores import GROUPS

Metrics = Mapping[str, float]
MAIN = ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy")
LEADS = ("accuracy", "macro_f1")


def as_text(metrics: Metrics, split: str, baselines: Sequence[str]) -> str:
    """The report.

    Args:
        metrics: name without the split -> number.
        split: that was scored.
        baselines: part of a metric's name.
    """
    lines = [
        f"{split}: {metrics['objects']:.0f} objects in {metrics['pictures']:.0f} pictures, boxes given; intervals of "
        "95 % over pictures in brackets",
        "",
        *table(["figure", ""], [[name, with_interval(metrics, name)] for name in MAIN]),
        f"  at best without seeing the box: accuracy {number(metrics['whole_picture_ceiling'])}, "
        f"where its type is known {number(metrics['whole_picture_ceiling/type_known'])}",
        "",
        *table(["class", *_PER_CLASS], [_of_class(metrics, name) for name in CLASS_NAMES]),
        "",
        *table(["accuracy", ""], [[name, with_interval(metrics, f"accuracy/{name}")] for name in GROUPS]),
        "",
        "  the same objects, baselines of train:",
        *_beside(metrics, baselines),
    ]
    prompts = sorted({name.split("/")[1] for name in metrics if name.startswith("prompt/")})
    rows = [[words, *(number(metrics[f"prompt/{words}/{name}"]) for name in LEADS)] for words in prompts]
    lines += ["", "  what the prompts say:", *table(["", *LEADS], rows)]
    return "\n".join(lines + _from_the_detector_on(metrics))


def _from_the_detector_on(metrics: Metrics) -> list[str]:
    if "end_to_end/found" not in metrics:
        return []
    found, false = (metrics[f"end_to_end/{name}"] for name in ("found", "false_a_picture"))
    return [
        "",
        f"  end to end: {found:.1%} of the objects were found, {false:.2f} detections a picture are of none; what was "
        "not found is wrong",
        *table(["figure", ""], [[name, with_interval(metrics, f"end_to_end/{name}")] for name in MAIN]),
        *table(["class", *_PER_CLASS], [_of_class(metrics, name, "end_to_end/") for name in CLASS_NAMES]),
    ]


_PER_CLASS = ("precision", "recall", "f1")


def _of_class(metrics: Metrics, name: str, prefix: str = "") -> list[str]:
    return [name, *(with_interval(metrics, f"{prefix}{figure}/{name.replace(' ', '_')}") for figure in _PER_CLASS)]


def _beside(metrics: Metrics, baselines: Sequence[str]) -> list[str]:
    rows = [["this network", *(number(metrics[name]) for name in MAIN), *("" for _ in LEADS)]]
    for model in baselines:
        prefix = f"baseline/{model}"
        figures = [number(metrics.get(f"{prefix}/{name}", math.nan)) for name in MAIN]
        rows.append([model.replace("_", " "), *figures, *(with_interval(metrics, f"{prefix}/lead/{n}") for n in LEADS)])
    return table(["", *MAIN, *(f"lead in {name}" for name in LEADS)], rows)
