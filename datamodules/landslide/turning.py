"""The eight ways to lay a square on itself; the aspect turns with the picture."""

import torch
from torch import Tensor

ELEMENTS = tuple(range(8))
"""Number of each: 0 to 3 are quarter turns counter-clockwise, 4 to 7 the same after a flip of left and right."""
_FLIPPED = 4


def turn(x: Tensor, element: int, aspect: tuple[int, int] | None = None) -> Tensor:
    """Flips and turns pictures, masks or predictions.

    Aspect is the direction of a vector with the parts sine to the east and cosine to the north, so these channels are
    not only moved: a flip changes the sign of the sine, a quarter turn makes (-cos, sin) of (sin, cos). Slope,
    curvatures, distances and what flows together are the same whatever way they are looked at.

    Args:
        x: (..., H, W) of any type, row 0 in the north; with ``aspect`` (..., C, H, W).
        element: of ``ELEMENTS``.
        aspect: positions of sine and cosine in C, as of ``ChannelList.aspect``.

    Returns:
        The same shape; H and W swapped by the elements with an odd number of quarter turns.

    >>> turn(torch.tensor([[1, 2], [3, 4]]), 1).tolist(), turn(torch.tensor([[1, 2], [3, 4]]), 4).tolist()
    ([[2, 4], [1, 3]], [[2, 1], [4, 3]])
    >>> east = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    >>> turn(east, 1, aspect=(0, 1)).flatten().tolist()  # looks north now
    [-0.0, 1.0]
    """
    quarters = element % _FLIPPED
    turned = torch.rot90(x.flip(-1) if element >= _FLIPPED else x, quarters, (-2, -1))
    if aspect is None or element == 0:
        return turned
    turned = turned.clone()  # the channels below are written, and a turn may be a view
    sine, cosine = (turned.select(-3, position).clone() for position in aspect)
    sine = -sine if element >= _FLIPPED else sine
    for _ in range(quarters):
        sine, cosine = -cosine, sine
    turned.select(-3, aspect[0]).copy_(sine)
    turned.select(-3, aspect[1]).copy_(cosine)
    return turned


def inverse(element: int) -> int:
    """The element that undoes one.

    >>> [inverse(element) for element in ELEMENTS]
    [0, 3, 2, 1, 4, 5, 6, 7]
    """
    return element if element >= _FLIPPED else -element % _FLIPPED
