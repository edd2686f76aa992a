"""What the channels of train are like: mean and deviation, and how far a pixel lies from them all."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StagewiseError
from .channels import ChannelList
from .prepared import PreparedArea
from .spatial_splits import SpatialSplits, split_code

READ_PX = 512  # side of what is read at once, at most
MOST_PIXELS, MOST_TYPICAL = 4_000_000, 200_000
TYPICAL_SHARE = 0.99
CONSTANT = 1e-7  # of the mean's size: below that a deviation is the rounding of float32

log = logging.getLogger(__name__)

Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""(C,) number of values, mean, sum of squared deviations."""


def describe(
    areas: Mapping[str, PreparedArea], splits: SpatialSplits, max_pixels: int = MOST_PIXELS, seed: int = 0
) -> dict[str, Any]:
    """Statistics of the train pixels that have data, as plain values.

    Args:
        areas: name -> area, all with the same channels.
        splits: of the areas.
        max_pixels: more than that are represented by some of the cells.
        seed: chooses those cells.

    Returns:
        ``mean`` and ``std``: C floats, 0 and 1 for the one-hot channels, ``std`` 1 where a channel is constant.
        ``low`` and ``high``: the smallest and largest value.
        ``typical``: see :func:`typical_of`.

    Raises:
        StagewiseError: a channel that has no data in train.
    """
    channels = next(iter(areas.values())).channels
    moments = moments_of(np.empty((0, len(channels))))
    low, high = np.full(len(channels), np.inf), np.full(len(channels), -np.inf)
    for pixels in train_pixels(areas, splits, max_pixels, seed):
        moments = merge(moments, moments_of(pixels))
        low, high = np.fmin(low, np.fmin.reduce(pixels)), np.fmax(high, np.fmax.reduce(pixels))
    mean, std = _mean_std(moments, channels)
    sample = np.concatenate(list(train_pixels(areas, splits, min(max_pixels, MOST_TYPICAL), seed)))
    typical = typical_of(sample, mean, std, channels)
    log.info("Normalisation over %d train pixels, what is typical over %d.", moments[0].max(), len(sample))
    bounds = {"low": low.tolist(), "high": high.tolist()}
    return {"mean": mean.tolist(), "std": std.tolist(), **bounds, "typical": typical}


def train_pixels(
    areas: Mapping[str, PreparedArea], splits: SpatialSplits, max_pixels: int, seed: int = 0
) -> Iterator[NDArray[np.float32]]:
    """(n,C) pixels of the cells of train, each once, piece by piece; NaN where a channel has no data.

    Args:
        areas: name -> area.
        splits: of the areas.
        max_pixels: about as many at most: more are represented by cells drawn at random.
        seed: of that draw.
    """
    side = splits.cell_px
    for name, chosen in _chosen_cells(areas, splits, max_pixels, seed).items():
        step = max(1, READ_PX // side)
        for top in range(0, chosen.shape[0], step):
            for left in range(0, chosen.shape[1], step):
                row, col = np.nonzero(chosen[top : top + step, left : left + step])
                if len(row):
                    first, last = (top + row.min(), left + col.min()), (top + row.max() + 1, left + col.max() + 1)
                    cells = chosen[first[0] : last[0], first[1] : last[1]]
                    size = (cells.shape[0] * side, cells.shape[1] * side)
                    found = areas[name].read_channels((int(first[0]) * side, int(first[1]) * side, *size))
                    yield found[:, cells.repeat(side, axis=0).repeat(side, axis=1)].T


def _chosen_cells(
    areas: Mapping[str, PreparedArea], splits: SpatialSplits, max_pixels: int, seed: int
) -> dict[str, NDArray[np.bool_]]:
    train = {name: splits.codes[name] == split_code("train") for name in areas}
    count = sum(int(cells.sum()) for cells in train.values())
    most = max(1, max_pixels // splits.cell_px**2)
    if count <= most:
        return train
    keep = np.zeros(count, bool)
    keep[np.random.default_rng(seed).choice(count, most, replace=False)] = True
    start = 0
    for cells in train.values():
        here = int(cells.sum())
        cells[cells] = keep[start : start + here]
        start += here
    return train


def moments_of(pixels: NDArray[np.floating]) -> Moments:
    """Number, mean and sum of squared deviations of the finite values of (n,C) pixels, in float64.

    >>> [part.tolist() for part in moments_of(np.array([[1.0], [3.0], [np.nan]]))]
    [[2.0], [2.0], [2.0]]
    """
    there = np.isfinite(pixels)
    number = there.sum(axis=0).astype(np.float64)
    values = np.where(there, pixels, 0).astype(np.float64)
    mean = values.sum(axis=0) / np.maximum(number, 1)
    return number, mean, (np.where(there, values - mean, 0) ** 2).sum(axis=0)


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of both together (Chan, Golub and LeVeque 1983): nothing cancels, whatever the size of the mean.

    >>> together = merge(moments_of(np.array([[1.0]])), moments_of(np.array([[3.0], [5.0]])))
    >>> [part.tolist() for part in together]
    [[3.0], [3.0], [8.0]]
    """
    number = one[0] + other[0]
    share = other[0] / np.maximum(number, 1)
    step = other[1] - one[1]
    return number, one[1] + step * share, one[2] + other[2] + step**2 * one[0] * share


def _mean_std(moments: Moments, channels: ChannelList) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    number, mean, squares = moments
    empty = [name for name, n in zip(channels.names, number) if not n]
    if empty:
        raise StagewiseError(f"the channels {empty} have no data at any train pixel; leave them out of `channels`.")
    std = np.sqrt(squares / number)
    std[std <= CONSTANT * np.abs(mean)] = 1
    mean[channels.one_hot], std[channels.one_hot] = 0, 1
    return mean, std


def typical_of(
    pixels: NDArray[np.floating], mean: NDArray[np.float64], std: NDArray[np.float64], channels: ChannelList
) -> dict[str, Any]:
    """What a layer of pixels unlike the training's needs, as plain values.

    The covariance is that of Ledoit and Wolf 2004, over normalised channels, so that its shrinkage has no unit.

    Args:
        pixels: (n,C); those without data in a continuous channel are left out.
        mean: (C,) of the channels.
        std: (C,).
        channels: their names.

    Returns:
        ``positions`` of the M continuous channels, their ``mean`` (M) and ``precision`` (M x M) in physical units, and
        the ``threshold``: 99 % of the train pixels have a squared Mahalanobis distance below it. A constant channel
        has no part in the distance.

    Raises:
        StagewiseError: fewer pixels with data in all continuous channels than there are channels.
    """
    from sklearn.covariance import LedoitWolf

    continuous = [i for i in range(len(channels)) if i not in set(channels.one_hot)]
    scaled = (pixels[:, continuous].astype(np.float64) - mean[continuous]) / std[continuous]
    scaled = scaled[np.isfinite(scaled).all(axis=1)]
    if len(scaled) <= len(continuous):
        raise StagewiseError(
            f"{len(scaled)} train pixels have data in all of {[channels.names[i] for i in continuous]}, too few to say "
            "what is typical; look at the rasters' nodata, or leave the channel that lacks data out of `channels`."
        )
    fitted = LedoitWolf().fit(scaled)
    varies, scale = np.ptp(scaled, axis=0) > 0, 1 / std[continuous]
    precision = fitted.precision_ * np.outer(varies, varies)
    distance = _squared(scaled - fitted.location_, precision)
    return {
        "positions": continuous,
        "mean": (mean[continuous] + fitted.location_ * std[continuous]).tolist(),
        "precision": (precision * np.outer(scale, scale)).tolist(),
        "threshold": float(np.quantile(distance, TYPICAL_SHARE)),
    }


def mahalanobis(x: NDArray[np.floating], typical: Mapping[str, Any]) -> NDArray[np.float64]:
    """Squared Mahalanobis distance of pixels from those of train; above ``typical["threshold"]`` they are unlike.

    Args:
        x: (C,H,W) all channels in physical units.
        typical: of :func:`typical_of`.

    Returns:
        (H,W), NaN where a continuous channel has no data.

    >>> typical = {"positions": [0, 2], "mean": [1.0, 0.0], "precision": [[1.0, 0.0], [0.0, 4.0]]}
    >>> mahalanobis(np.array([1.0, 9.0, 2.0]).reshape(3, 1, 1), typical).tolist()
    [[16.0]]
    """
    away = x[typical["positions"]].astype(np.float64) - np.reshape(typical["mean"], (-1, 1, 1))
    return _squared(away.reshape(len(away), -1).T, np.array(typical["precision"])).reshape(x.shape[1:])


def _squared(away: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("nc,nc->n", away @ precision, away)
