"""Settings of data modules as plain dicts: what is given over what is usual."""

from collections.abc import Mapping
from typing import Any

from .errors import StagewiseError


def settings_of(name: str, given: Mapping[str, Any] | None, usual: Mapping[str, Any]) -> dict[str, Any]:
    """``usual`` with the values of ``given`` that are not None.

    Raises:
        StagewiseError: a key that ``usual`` has not.

    >>> settings_of("loader", {"batch_size": 8, "num_workers": None}, {"batch_size": 4, "num_workers": 2})
    {'batch_size': 8, 'num_workers': 2}
    """
    if unknown := sorted(set(given or {}) - set(usual)):
        raise StagewiseError(f"`{name}` has unknown key(s) {unknown}; known: {', '.join(usual)}.")
    return {**usual, **{key: value for key, value in (given or {}).items() if value is not None}}
