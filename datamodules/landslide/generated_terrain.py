"""Generated relief: random fields, a drainage network and the valleys that it carves. Pure functions of arrays.

Distances are in pixels and heights in metres unless a name says otherwise; row 0 is north.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, minimum_filter, zoom
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

Field = NDArray[np.float32]

_CONCAVITY = 0.45  # of river profiles: slope falls with drained area to this power
_HILLSLOPE_PX = 40.0  # drained area at which a hillslope becomes a channel
_STEEPEST = 0.8  # slope of a hillslope, 39 degrees
_MARGIN = 24  # cells and, at twice the resolution, rows and columns cut off at the start
_STEP_PX = 2  # of the walk uphill


def random_field(
    rng: np.random.Generator, side: int, power: float, finest: float = 2.0, coarsest: float = 1e9
) -> Field:
    """Gaussian random field with a power-law spectrum, by spectral synthesis.

    Args:
        rng: source of the noise.
        side: rows and columns.
        power: the amplitude falls with spatial frequency to this power; 0 is white, 1.5 to 2 is like relief.
        finest: wavelength in pixels below which there is nothing.
        coarsest: wavelength in pixels above which the amplitude stays level.

    Returns:
        (side, side) of mean 0 and standard deviation 1.

    Source: Fournier, Fussell, Carpenter, "Computer rendering of stochastic models", 1982 (spectral form: Voss, 1985).

    >>> field = random_field(np.random.default_rng(0), 64, power=1.5)
    >>> field.shape, abs(float(field.mean())) < 1e-5, round(float(field.std()), 4)
    ((64, 64), True, 1.0)
    """
    whole = side + max(side // 4, 8)  # the spectrum is periodic: opposite edges of what is kept must not match
    noise = np.fft.rfft2(rng.standard_normal((whole, whole), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(whole)[:, None], np.fft.rfftfreq(whole)[None])
    gain = np.maximum(frequency, max(1 / whole, 1 / coarsest)) ** -power * np.exp(-((frequency * finest / 2) ** 2) * 4)
    gain[0, 0] = 0
    field = np.fft.irfft2(noise * gain, (whole, whole))[:side, :side]
    return ((field - field.mean()) / field.std()).astype(np.float32)


def drainage_tree(height: NDArray[np.floating]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Where each cell drains to; every path ends at the border, over the lowest spill out of a pit.

    It is the minimum spanning tree of the grid with the higher end of an edge as its weight: the path to the border
    with the lowest highest point, and inside a slope the lowest neighbour.

    Args:
        height: (H, W).

    Returns:
        The receiver of each cell as flat index, (H*W,), a border cell's is itself; and the cells by steps to the
        border, nearest first.

    >>> receiver, levels = drainage_tree(np.array([[9, 9, 9, 9], [9, 5, 4, 3], [9, 9, 9, 9]]))
    >>> int(receiver[5]), int(receiver[6]), len(levels)
    (6, 7, 3)
    """
    flat, cells = np.ravel(height).astype(np.float64), np.arange(height.size).reshape(height.shape)
    pairs = [(cells[:, :-1], cells[:, 1:]), (cells[:-1], cells[1:])]
    pairs += [(cells[:-1, :-1], cells[1:, 1:]), (cells[:-1, 1:], cells[1:, :-1])]
    start, end = (np.concatenate([np.ravel(pair[i]) for pair in pairs]) for i in (0, 1))
    flat = flat - flat.min() + 1.0  # a weight of 0 would be no edge
    weight = np.maximum(flat[start], flat[end]) + 1e-6 * np.minimum(flat[start], flat[end])
    border = np.unique(np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]]))
    sea = height.size
    start, end = np.append(start, border), np.append(end, np.full(border.size, sea))
    graph = coo_matrix((np.append(weight, np.full(border.size, 1e-9)), (start, end)), shape=(sea + 1, sea + 1))
    order, parent = breadth_first_order(minimum_spanning_tree(graph.tocsr()), sea, directed=False)
    receiver = np.where(parent[:sea] == sea, np.arange(sea), parent[:sea]).astype(np.int64)
    return receiver, _by_depth(order[1:], parent, sea)


def _by_depth(order: NDArray[np.integer], parent: NDArray[np.integer], root: int) -> list[NDArray[np.int64]]:
    """Splits a breadth-first order where the depth changes."""
    position = np.empty(root + 1, np.int64)
    position[root] = -1
    position[order] = np.arange(order.size)
    parents = position[parent[order]]  # ascending: a level ends before the first cell whose parent is in it
    levels, start = [], 0
    end = int(np.searchsorted(parents, 0))
    while start < order.size:
        levels.append(order[start:end].astype(np.int64))
        start, end = end, int(np.searchsorted(parents, end))
    return levels


def drained_area(receiver: NDArray[np.int64], levels: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Number of cells that drain through each cell, itself included; (H*W,).

    >>> receiver, levels = drainage_tree(np.array([[9, 9, 9, 9], [9, 5, 4, 3], [9, 9, 9, 9]]))
    >>> drained_area(receiver, levels)[4:8]
    array([1., 1., 2., 3.])
    """
    area = np.ones(receiver.size)
    for level in reversed(levels[1:]):
        np.add.at(area, receiver[level], area[level])
    return area


def carve(base: Field, steepness: Field, rough: Field, pixel_size_m: float, rounds: int = 3) -> Field:
    """Relief whose rivers are in balance: their slope falls with the drained area, hillslopes keep below 39 degrees.

    Heights are summed up along the drainage network of ``base`` from the border, then the network is drawn anew on
    the result.

    Args:
        base: (H, W) heights that say where the water goes first.
        steepness: (H, W) slope (metre a metre) where a hillslope becomes a channel.
        rough: (H, W) metres added in each round, so that no slope stays a plane.
        pixel_size_m: of the grid.
        rounds: how often.

    Returns:
        (H, W) heights above the border in metres.

    Source: Flint, "Stream gradient as a function of order, magnitude, and discharge", 1974 (slope and area).
    """
    height: NDArray[np.floating] = base
    for _ in range(rounds):
        receiver, levels = drainage_tree(height)
        area = drained_area(receiver, levels)
        slope = np.ravel(steepness) * np.maximum(area / _HILLSLOPE_PX, 1) ** -_CONCAVITY
        slope /= np.hypot(1, slope / _STEEPEST)
        rise = slope * pixel_size_m * _step_px(receiver, base.shape[1])
        total = np.zeros(base.size)
        for level in levels[1:]:
            total[level] = total[receiver[level]] + rise[level]
        height = collapse(total.reshape(base.shape), _STEEPEST * pixel_size_m) + rough
    return gaussian_filter(height, 0.7).astype(np.float32)


def collapse(height: NDArray[np.float64], rise_m: float, rounds: int = 24) -> NDArray[np.float64]:
    """Wears cliffs down to at most ``rise_m`` from cell to cell, as far as ``rounds`` cells from their foot.

    >>> collapse(np.array([[0.0, 0.0, 9.0, 9.0]]), 2.0).tolist()
    [[0.0, 0.0, 2.0, 4.0]]
    """
    rows, columns = height.shape
    for _ in range(rounds):
        around = np.pad(height, 1, mode="edge")
        for down in (0, 1, 2):
            for right in (0, 1, 2):
                limit = rise_m * float(np.hypot(down - 1, right - 1))
                height = np.minimum(height, around[down : down + rows, right : right + columns] + limit)
    return height


def fill_valleys(height: Field, depth_m: float) -> Field:
    """Gives the valleys a floor of sediment, about ``depth_m`` above the lowest ground nearby, and smooth feet."""
    lowest = gaussian_filter(minimum_filter(height, 7), 2.0) + depth_m
    softness = depth_m / 3
    return (lowest + softness * np.logaddexp(0, (height - lowest) / softness)).astype(np.float32)


def _step_px(receiver: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Distance of each cell to its receiver: 1, diagonally the root of 2."""
    cells = np.arange(receiver.size)
    return np.hypot(cells // width - receiver // width, cells % width - receiver % width)


def relief(rng: np.random.Generator, side: int, pixel_size_m: float, steepness: float) -> Field:
    """Heights of a generated landscape: fractal at large, carved by rivers, rounded and rough at small scale.

    Args:
        rng: source of the noise.
        side: rows and columns.
        pixel_size_m: of the grid.
        steepness: slope (metre a metre) at the channel heads, about 0.5.

    Returns:
        (side, side) heights in metres, the border near 0.
    """
    half = -(-side // 2) + _MARGIN  # carved at half the resolution, with a margin for the border's straight edges
    base = random_field(rng, half, power=1.9) * 0.2 * half * pixel_size_m
    uplift = np.exp(0.6 * random_field(rng, half, power=1.5, finest=30, coarsest=150))
    rough = 0.4 * pixel_size_m * random_field(rng, half, power=1.6, finest=3, coarsest=40)
    carved = carve(base, (steepness * uplift).astype(np.float32), rough, 2 * pixel_size_m)
    fine = zoom(fill_valleys(carved, 12.0), 2, order=3)[_MARGIN : _MARGIN + side, _MARGIN : _MARGIN + side]
    fine += 0.1 * pixel_size_m * random_field(rng, side, power=1.2, finest=3, coarsest=24)
    return fine.astype(np.float32)


def gradient(height: NDArray[np.floating], pixel_size_m: float) -> tuple[Field, Field]:
    """Rise to the north and to the east, metre a metre.

    >>> north, east = gradient(np.array([[0, 5], [0, 5]], np.float32), 10.0)
    >>> float(north[0, 0]), float(east[0, 0])
    (0.0, 0.5)
    """
    south, east = np.gradient(height.astype(np.float32), pixel_size_m)
    return np.subtract(0, south, dtype=np.float32), np.asarray(east, np.float32)


def convergence(height: Field, pixel_size_m: float, smooth_px: float) -> Field:
    """How much lines of flow run together, per metre: positive in hollows, negative on spurs."""
    north, east = gradient(gaussian_filter(height, smooth_px), pixel_size_m)
    length = np.hypot(north, east) + 1e-2  # on flat ground the direction means nothing
    _, east_by_east = gradient(east / length, pixel_size_m)
    north_by_north, _ = gradient(north / length, pixel_size_m)
    return (east_by_east + north_by_north).astype(np.float32)


def highest_upslope(value: Field, height: Field, reach_px: int) -> Field:
    """Largest value met on the way straight uphill.

    Args:
        value: (H, W), at least 0.
        height: (H, W) in metres; it is smoothed a little before the way is searched.
        reach_px: length of the way; the cell itself does not count.

    Returns:
        (H, W).

    >>> height = np.repeat(np.arange(12.0)[:, None], 8, axis=1)
    >>> source = np.zeros((12, 8))
    >>> source[10] = 1
    >>> highest_upslope(source, height, 4)[:, 4].round(1).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """
    down, right = np.gradient(gaussian_filter(height, 1.0))
    length = np.hypot(down, right) + 1e-9
    down, right = (_STEP_PX * part.ravel() / length.ravel() for part in (down, right))
    rows, columns = (part.ravel().astype(np.float32) for part in np.indices(value.shape, np.float32))
    best, cell = np.zeros(value.size, np.float32), np.arange(value.size)
    for _ in range(reach_px // _STEP_PX):
        rows = np.clip(rows + down[cell], 0, value.shape[0] - 1)
        columns = np.clip(columns + right[cell], 0, value.shape[1] - 1)
        cell = np.rint(rows).astype(np.int64) * value.shape[1] + np.rint(columns).astype(np.int64)
        np.maximum(best, value.ravel()[cell], out=best)
    return best.reshape(value.shape)
