"""The names of what corrects the imbalance of the classes: data and losses read the same setting."""

from ..errors import StagewiseError

CORRECTIONS = ("none", "oversample", "inverse_frequency", "effective_number", "focal", "logit_adjustment")


def corrections_of(name: str) -> tuple[str, ...]:
    """The corrections that a setting asks for: one, or two that it names with a plus between them.

    Raises:
        StagewiseError: an unknown name, one that stands twice, or ``none`` beside another.

    >>> corrections_of("focal"), corrections_of("oversample+focal"), corrections_of("none")
    (('focal',), ('oversample', 'focal'), ())
    """
    parts = tuple(part.strip() for part in str(name).split("+"))
    unknown = [part for part in parts if part not in CORRECTIONS]
    if unknown or len(set(parts)) < len(parts) or ("none" in parts and len(parts) > 1):
        raise StagewiseError(
            f"the correction of the imbalance is '{name}'; give one of {', '.join(CORRECTIONS)}, or two of them as "
            "'oversample+focal': each corrects the whole imbalance by itself."
        )
    return tuple(part for part in parts if part != "none")
