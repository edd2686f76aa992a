"""Success- and prediction-rate curves and reliability, as numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .tally import COUNT, PROBABILITY, RIGHT


@dataclass(frozen=True)
class RateCurve:
    """Share of the landslides in the most susceptible share of the ground.

    Attributes:
        area: (P,) share of the ground, from 0 to 1, most susceptible first.
        found: (P,) share of the landslide pixels in it.
        under: area under the curve; 0.5 is chance.
    """

    area: NDArray[np.float64]
    found: NDArray[np.float64]
    under: float


def rate_curve(ground: NDArray[np.integer], landslide: NDArray[np.integer]) -> RateCurve:
    """Success-rate curve (of train landslides) or prediction-rate curve (of test landslides), Chung & Fabbri 2003.

    https://doi.org/10.1023/B:NHAZ.0000007172.62651.2b

    Args:
        ground: (bins,) pixels of the ground in ascending bins of the score, labelled or not.
        landslide: (bins,) pixels of the highest class.

    Returns:
        The curve; without landslides its shares and area are NaN.

    >>> curve = rate_curve(np.array([50, 30, 20]), np.array([0, 0, 4]))
    >>> curve.area.tolist(), curve.found.tolist(), curve.under
    ([0.0, 0.2, 0.5, 1.0], [0.0, 1.0, 1.0, 1.0], 0.9)
    """
    from sklearn.metrics import auc

    used = (ground > 0) | (landslide > 0)
    ground, landslide = ground[used][::-1], landslide[used][::-1]
    if not ground.any() or not landslide.any():
        return RateCurve(np.array([0.0, 1.0]), np.full(2, np.nan), float("nan"))
    area, found = (np.concatenate([[0.0], np.cumsum(n) / n.sum()]) for n in (ground, landslide))
    return RateCurve(area, found, float(auc(area, found)))


def reliability_curve(
    reliability: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean stated probability, observed share and number of pixels of each bin that has pixels.

    Args:
        reliability: (bins, 3) of :class:`~.tally.Tally`.

    >>> reliability_curve(np.array([[0.0, 0.0, 0.0], [4.0, 3.0, 1.0]]))
    (array([0.75]), array([0.25]), array([4]))
    """
    used = reliability[reliability[:, COUNT] > 0]
    count = used[:, COUNT]
    return used[:, PROBABILITY] / count, used[:, RIGHT] / count, count.astype(np.int64)
