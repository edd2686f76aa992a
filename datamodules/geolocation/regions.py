"""What is known of each region: its quota in a batch and the settings that its losses use."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import QuotaError, StagewiseError

SETTINGS = ("quota", "tau_km", "offset_scale", "max_radius_km")


def check_settings(regions: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Refuses a key that no code reads.

    Raises:
        StagewiseError: names the region, the key and the known ones.
    """
    for name, settings in (regions or {}).items():
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise StagewiseError(f"regions.{name} has unknown key(s) {unknown}; known: {', '.join(SETTINGS)}.")


def quotas(
    names: list[str], counts: NDArray[np.int64], settings: Mapping[str, Mapping[str, Any]], batch_size: int
) -> dict[int, int]:
    """Samples of each region in a batch.

    Without a table every region present gets the same share, the largest two, and the remainder goes to the largest:
    for seven regions and 64 that is the recipe's 16 and six times 8.

    Raises:
        QuotaError: the quotas do not add up to the batch size, or a region with a quota has no row.

    >>> quotas(["a", "b", "c"], np.array([5, 90, 5]), {}, 8)
    {0: 2, 1: 4, 2: 2}
    """
    given = {i: settings.get(name, {}).get("quota") for i, name in enumerate(names)}
    table = {i: int(quota) for i, quota in given.items() if quota is not None}
    forgotten = [names[i] for i in given if table and i not in table and counts[i]]
    if forgotten:
        raise QuotaError(f"{', '.join(forgotten)} has rows but no quota while others have one; give it one.")
    if not table:
        present = np.flatnonzero(counts)
        largest, share = int(counts.argmax()), batch_size // (len(present) + 1)
        if share < 1:
            raise QuotaError(
                f"loader.batch_size={batch_size} is too small for {len(present)} regions; "
                f"take at least {len(present) + 1}."
            )
        table = {int(i): share for i in present}
        table[largest] = batch_size - share * (len(present) - 1)
    if sum(table.values()) != batch_size:
        listed = ", ".join(f"{names[i]} {q}" for i, q in table.items())
        raise QuotaError(
            f"the quotas add up to {sum(table.values())}, not to loader.batch_size={batch_size}: {listed}."
        )
    empty = [names[i] for i in table if not counts[i]]
    if empty:
        raise QuotaError(
            f"the quota of {', '.join(empty)} cannot be met: train.csv has no row there; remove the quota."
        )
    return table
