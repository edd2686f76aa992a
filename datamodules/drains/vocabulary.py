"""The types of object that a detector finds, their conditions, and the nine classes that both make."""

import re
from dataclasses import dataclass

import numpy as np

from ..errors import StagewiseError

TYPES = ("rock_toe", "slope_drain", "toe_drain", "vegetation")  # as the detector names them; the ids are 0..3
CONDITIONS = ("normal", "damaged", "blocked")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ObjectClass:
    """A type of object in a condition; vegetation has none.

    >>> ObjectClass("toe_drain", "blocked").name, ObjectClass("vegetation", None).name
    ('toe_drain blocked', 'vegetation')
    """

    type: str
    condition: str | None

    @property
    def name(self) -> str:
        """``{object_type} {condition}``."""
        return f"{self.type} {self.condition}" if self.condition else self.type


CLASSES = (
    ObjectClass("toe_drain", "normal"),
    ObjectClass("toe_drain", "blocked"),
    ObjectClass("toe_drain", "damaged"),
    ObjectClass("rock_toe", "normal"),
    ObjectClass("rock_toe", "damaged"),
    ObjectClass("slope_drain", "normal"),
    ObjectClass("slope_drain", "blocked"),
    ObjectClass("slope_drain", "damaged"),
    ObjectClass("vegetation", None),
)
CLASS_NAMES = tuple(one.name for one in CLASSES)
TYPE_OF_CLASS = np.array([TYPES.index(one.type) for one in CLASSES])  # (9,)


def class_of(type: str, condition: str | None) -> int:
    """The class of a type in a condition.

    Raises:
        StagewiseError: the pair does not exist, such as a blocked rock toe.

    >>> class_of("rock_toe", "damaged")
    4
    """
    try:
        return CLASSES.index(ObjectClass(type, condition))
    except ValueError:
        raise StagewiseError(f"'{type}' is never '{condition}'; possible: {', '.join(CLASS_NAMES)}.") from None


def parse_class(name: str) -> int:
    """The class that a ``data.yaml`` means: upper case, dashes and spaces do not count, no condition is normal.

    Raises:
        StagewiseError: none of the nine.

    >>> [parse_class(name) for name in ("Toe drain- Blocked", "rock toe", "slope drain damaged", "Vegetation")]
    [1, 3, 7, 8]
    """
    if (bare := _letters(name)) not in _CLASS_BY_LETTERS:
        raise StagewiseError(f"'{name}' is no class of drains; the classes are {', '.join(CLASS_NAMES)}.")
    return _CLASS_BY_LETTERS[bare]


def parse_type(name: str) -> str | None:
    """The type that a detector means, None for one that is not known.

    >>> parse_type("Rock-Toe"), parse_type("road")
    ('rock_toe', None)
    """
    return _TYPE_BY_LETTERS.get(_letters(name))


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", str(name)).lower()


_TYPE_BY_LETTERS = {_letters(type): type for type in TYPES}
_CLASS_BY_LETTERS = {_letters(name): i for i, name in enumerate(CLASS_NAMES)} | {
    _letters(one.type): i for i, one in enumerate(CLASSES) if one.condition in (None, "normal")
}
