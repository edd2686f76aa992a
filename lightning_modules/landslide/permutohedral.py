"""Gaussian filtering of values at scattered points in a few dimensions, in linear time: the permutohedral lattice."""

import math

import torch
from torch import Tensor

from ...datamodules.errors import StagewiseError
from .pieces import pieces, side_by_side

MULTIPLIER = -7046029254386353131  # odd, 2^64 / golden ratio: multiplicative hashing
EMPTY = -(1 << 63)


class PermutohedralLattice:
    """The matrix ``D^-1/2 S' B S D^-1/2``, which stands for a Gaussian of unit deviation between points.

    A point's value is spread over the d + 1 corners of the simplex that holds it (S, barycentric weights), blurred
    along the d + 1 axes of the lattice with the weights 1/2, 1, 1/2 (B, only between corners that a point touches),
    and read off (S'). D are the row sums without normalisation, so that weights are symmetric and near 1 in sum
    (Adams et al. 2010, "Fast high-dimensional filtering using the permutohedral lattice",
    https://graphics.stanford.edu/papers/permutohedral/; the normalisation of Krähenbühl and Koltun 2011,
    https://arxiv.org/abs/1210.5644). It keeps 8 (d + 1) bytes a point.

    Args:
        features: (d, N) float, in units of the Gaussian's deviation.
        scale: what the matrix is multiplied by.
        threads: that share the points, on a CPU.

    Raises:
        StagewiseError: features that span more lattice cells than 64 bits can number.

    >>> lattice = PermutohedralLattice(torch.tensor([[0.0, 0.0, 9.0]]))
    >>> lattice.filter(torch.tensor([[3.0, 1.0, 5.0]])).round(decimals=4)  # two points in one place, one far away
    tensor([[2., 2., 5.]])
    """

    def __init__(self, features: Tensor, scale: float = 1.0, threads: int = 1) -> None:
        self._threads = threads
        d, n = features.shape
        self._corner = torch.empty(d + 1, n, dtype=torch.int32, device=features.device)
        self._weight = torch.empty(d + 1, n, dtype=torch.float32, device=features.device)
        radix = _radix(features)
        keys = self._number(features, radix)
        self._n_corners = len(keys)
        self._neighbours = [_neighbours(keys, axis, radix) for axis in range(d + 1)]
        self._weight *= self.filter(features.new_ones(1, n)).clamp_min_(1e-20).rsqrt_().mul_(math.sqrt(scale))

    def filter(self, values: Tensor) -> Tensor:
        """Applies the matrix: (C, N) -> (C, N)."""
        parts = pieces(values.shape[1], values.device)
        out = torch.zeros_like(values)

        def spread(share: list[slice]) -> Tensor:
            lattice = self.empty(len(values))
            for part in share:
                self.spread(values[:, part], part, lattice)
            return lattice

        def read(share: list[slice]) -> None:
            for part in share:
                self.read(part, lattice, out[:, part])

        lattice = self.blur(torch.stack(side_by_side(spread, parts, self._threads)).sum(0))
        side_by_side(read, parts, self._threads)
        return out

    def empty(self, channels: int) -> Tensor:
        """(C, M + 1) zeros: C values at each corner, and at last those of a corner that is not there."""
        return torch.zeros(channels, self._n_corners + 1, device=self._weight.device)

    def spread(self, values: Tensor, part: slice, lattice: Tensor) -> None:
        """Adds the values (C, n) of a part of the points to a lattice of :meth:`empty`, in place."""
        for corner, weight in zip(self._corner[:, part], self._weight[:, part]):
            index = corner.long()
            for row, channel in zip(lattice, values):
                row.scatter_add_(0, index, channel * weight)

    def blur(self, lattice: Tensor) -> Tensor:
        """A lattice that holds the values of all points -> one to read from."""
        for before, after in self._neighbours:
            sums = [row.index_select(0, before).add_(row.index_select(0, after)) for row in lattice]
            lattice = lattice.add(torch.stack(sums), alpha=0.5)
        return lattice

    def read(self, part: slice, lattice: Tensor, out: Tensor) -> None:
        """Adds to ``out`` (C, n) the filtered values of a part of the points, in place."""
        for corner, weight in zip(self._corner[:, part], self._weight[:, part]):
            for row, channel in zip(out, lattice):  # a gather from one row runs at memory speed, from several does not
                row.addcmul_(channel.index_select(0, corner), weight)

    def _number(self, features: Tensor, radix: Tensor) -> Tensor:
        """Fills in corners and weights; returns the corners' keys in ascending order, which numbers them."""
        parts = pieces(features.shape[1], features.device)

        def embed(share: list[slice]) -> list[Tensor]:
            return [self._embed(features[:, part], radix, part) for part in share]

        found = [keys for share in side_by_side(embed, parts, self._threads) for keys in share]
        keys, numbers = torch.unique(torch.cat(found), return_inverse=True)
        for part, of_part in zip(parts, numbers.int().split([len(keys_of_part) for keys_of_part in found])):
            corner = self._corner[:, part]
            corner.copy_(of_part.index_select(0, corner.flatten()).view_as(corner))
        return keys

    def _embed(self, features: Tensor, radix: Tensor, part: slice) -> Tensor:
        """Fills in a part, its corners numbered on their own; returns their keys in the order of these numbers."""
        key, self._weight[:, part] = _simplex(features, radix)
        distinct, number = _distinct(key.flatten())
        self._corner[:, part] = number.view_as(key)
        return distinct


def _neighbours(keys: Tensor, axis: int, radix: Tensor) -> tuple[Tensor, Tensor]:
    """For each corner, and for none at all, the number of the one before and after; M where that is not there.

    A step along an axis takes 1 from all coordinates of a corner but gives d to one of them. A coordinate is
    (d + 1) q + colour, and so a step lowers the colour, and only at colour 0 the q.
    """
    m, d = len(keys), len(radix) - 1
    borrowed = torch.where(keys % (d + 1) == 0, d + 1 - radix.sum(), 0)
    wanted = keys + (radix[axis] - 1) + borrowed
    at = torch.searchsorted(keys, wanted).clamp_max_(m - 1)
    here = (keys.index_select(0, at) == wanted).nonzero()[:, 0]
    there = at.index_select(0, here)
    before = torch.full((m + 1,), m, dtype=torch.int32, device=keys.device)
    after = before.clone()
    before[here], after[there] = there.int(), here.int()
    return before, after


def _elevated(features: Tensor) -> Tensor:
    """(d, n) features -> (d + 1, n) coordinates in the plane of sum 0, in units of d + 1 lattice steps."""
    d = len(features)
    rows, total = [], torch.zeros_like(features[0])
    for j in range(d, 0, -1):
        scaled = features[j - 1] * (math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1)))
        rows.append(total - j * scaled)
        total = total + scaled
    return torch.stack([total, *reversed(rows)]) * (1 / (d + 1))


def _radix(features: Tensor) -> Tensor:
    """(d + 1) multipliers that pack d coordinates of any corner, or of a neighbour of one, and its colour."""
    d = len(features)
    low, high = features.aminmax(dim=1)
    extent = _elevated(torch.diag(high - low)).abs().sum(1).tolist()
    sizes = [math.ceil(x) + 8 for x in extent]
    if (d + 1) * math.prod(sizes[:d]) >= 1 << 60:
        raise StagewiseError(
            f"features span {[round(x) for x in (high - low).tolist()]} deviations, too many to number; "
            "use fewer guide channels, wider deviations or smaller tiles."
        )
    return torch.tensor([(d + 1) * math.prod(sizes[i + 1 : d]) for i in range(d)] + [0], device=features.device)


def _simplex(features: Tensor, radix: Tensor) -> tuple[Tensor, Tensor]:
    """The simplex that holds each point: packed keys and weights, both (d + 1, n), of its corners by colour."""
    elevated = _elevated(features)
    d = len(features)
    nearest = elevated.round()
    rest = elevated - nearest
    rank = _ranks(rest) - nearest.sum(0).to(torch.int8)
    turn = (rank > d).to(torch.int8) - (rank < 0).to(torch.int8)  # back into the plane of sum 0
    rank = (rank - turn * (d + 1)).long()
    nearest += turn
    rest -= turn
    ordered = torch.empty_like(rest).scatter_(0, rank, rest)
    weight = ordered - ordered.roll(1, 0)
    weight[0] += 1
    step = torch.empty_like(rank).scatter_(0, rank, (1 - radix)[:, None].expand_as(rank).contiguous())
    key = torch.empty_like(step)
    key[0] = (nearest.long() * radix[:, None]).sum(0)
    for colour in range(d):
        torch.add(key[colour], step[colour], out=key[colour + 1])
    return key, weight


def _ranks(rest: Tensor) -> Tensor:
    """(d + 1, n) -> int8 position of each in ascending order of its column."""
    rank = torch.zeros_like(rest, dtype=torch.int8)
    for i in range(len(rest)):
        for j in range(i + 1, len(rest)):
            less = rest[i] < rest[j]
            rank[j] += less
            rank[i] += ~less
    return rank


def _distinct(key: Tensor) -> tuple[Tensor, Tensor]:
    """What ``torch.unique(key, return_inverse=True)`` gives but for the order, mostly without sorting.

    Equal keys fall into one slot of a table. Where different keys want the same slot one wins, whichever; the others,
    few because most keys are equal to some others, are sorted.
    """
    bits = max(4, len(key).bit_length())
    slot = (key * MULTIPLIER).bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)
    table = key.new_full((1 << bits,), EMPTY).scatter_(0, slot, key)
    taken = table != EMPTY
    number = (taken.cumsum(0) - 1).index_select(0, slot)
    lost = (table.index_select(0, slot) != key).nonzero()[:, 0]
    winners = table[taken]
    losers, number_lost = torch.unique(key[lost], return_inverse=True)
    number[lost] = number_lost + len(winners)
    return torch.cat([winners, losers]), number
