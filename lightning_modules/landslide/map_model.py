"""What a map is made of: a model, the settings, and what is read off the channels beside the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.channels import ORTHO, ChannelList
from .calibration import State
from .passes import Member
from .sliding_window import TILING, Tiling

GUIDES = (ORTHO, ("slope", "elevation", "tpi"))
GUIDE_SPAN = 5.0  # train mean ± 2.5 standard deviations are 0 to 255


@dataclass(frozen=True)
class MapModel:
    """What the chain must know of a model, or of an ensemble.

    Attributes:
        members: images (B, C, H, W) on the device of the settings, physical units, NaN is nodata -> probabilities.
        classes: names, low to high.
        channels: that the members see.
        mean: (C) of the train pixels.
        std: (C) of the train pixels.
        key: names the weights; another key, another map.
        typical: ``positions, mean, precision, threshold`` of the squared Mahalanobis distance, or None.
        calibration: of :func:`calibration.fit`, with the ``decision`` of :func:`decision.choose`; or None.
    """

    members: Sequence[Member]
    classes: Sequence[str]
    channels: ChannelList
    mean: Sequence[float]
    std: Sequence[float]
    key: str
    typical: Mapping[str, Any] | None = None
    calibration: State | None = None


@dataclass(frozen=True)
class MapSettings:
    """How a map is made.

    Attributes:
        tiling: windows, overlap, batch.
        turns: test-time augmentation over the eight turns.
        mc_passes: Monte-Carlo passes of each member.
        crf: arguments of :class:`DenseCRF`; None leaves it out.
        device: of the members, and of the CRF.
        seed: of the dropout.
    """

    tiling: Tiling = TILING
    turns: bool = True
    mc_passes: int = 1
    crf: Mapping[str, Any] | None = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0


def guide_positions(channels: ChannelList) -> list[int]:
    """Channels that guide the CRF: of the orthophoto, else of the relief, else the first three that are no class.

    Raises:
        StagewiseError: there is none.

    >>> guide_positions(ChannelList(["elevation", "my_index", "slope"]))
    [2, 0]
    """
    found = [channels.positions(*names) for names in GUIDES]
    rest = [i for i in range(len(channels)) if i not in set(channels.one_hot)]
    chosen = next((positions for positions in found if positions), rest[:3])
    if not chosen:
        raise StagewiseError(f"nothing in {list(channels.names)} can guide the CRF; set crf=null, or add a channel.")
    return chosen


def guide_of(
    channels: NDArray[np.float32], positions: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """The channels that guide the CRF, in its unit.

    Args:
        channels: (C, H, W) in physical units.
        positions: of those that guide.
        mean: (C) of the train pixels.
        std: (C).

    Returns:
        (len(positions), H, W) from 0 to 255.

    >>> guide_of(np.array([7, 20], np.float32).reshape(2, 1, 1), [1], [0, 10], [1, 4]).tolist()
    [[[255.0]]]
    """
    centre, scale = (np.array(x, np.float32)[list(positions), None, None] for x in (mean, std))
    guide: NDArray[np.float32] = ((channels[list(positions)] - centre) / (scale * GUIDE_SPAN) + 0.5).clip(0, 1) * 255
    return guide


def novelty_of(channels: NDArray[np.float32], typical: Mapping[str, Any] | None) -> NDArray[np.float32]:
    """Mahalanobis distance of pixels from those of train, in units of its threshold.

    Args:
        channels: (C, H, W).
        typical: of the schema; its threshold is that of the squared distance.

    Returns:
        (H, W), above 1 is unlike; NaN without ``typical``.

    >>> typical = {"positions": [1], "mean": [1.0], "precision": [[1.0]], "threshold": 4.0}
    >>> novelty_of(np.array([9, 4], np.float32).reshape(2, 1, 1), typical).tolist()
    [[1.5]]
    """
    if typical is None:
        return np.full(channels.shape[1:], np.nan, np.float32)
    away = channels[typical["positions"]].reshape(len(typical["positions"]), -1).T - np.array(typical["mean"])
    squared = np.einsum("nc,nc->n", away @ np.array(typical["precision"]), away) / typical["threshold"]
    return np.sqrt(np.maximum(squared, 0)).reshape(channels.shape[1:]).astype(np.float32)
