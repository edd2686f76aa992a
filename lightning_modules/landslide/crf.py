"""Dense conditional random field: class probabilities made to agree with what the picture shows."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.prepared import Window
from .mean_field import mean_field
from .permutohedral import PermutohedralLattice
from .pieces import own_threads

HALO_DEVIATIONS = 4.0
Read = Callable[[Window], tuple[Tensor, Tensor, Tensor | None]]


class DenseCRF:
    """Mean-field inference in a fully connected CRF with Potts compatibility and two Gaussian kernels.

    The energy and its lattice approximation are those of Krähenbühl and Koltun 2011
    (https://arxiv.org/abs/1210.5644) as in ``pydensecrf``: ``addPairwiseGaussian(spatial_weight, compat_spatial)`` and
    ``addPairwiseBilateral(bilateral_xy, bilateral_value, compat_bilateral)``, symmetrically normalised.
    Memory: about 140 bytes a pixel of a window with its halo, at 3 classes and 3 guide channels, whatever the raster's
    size: 11 GB for the recipe's tile of 8192, 3 GB for 4096, 1 GB for 2048.

    A halo of four deviations left 0 to 0.2 % of a window's classes unlike those of the whole raster's refinement (eight
    generated scenes), one of two deviations up to 7 %.

    Args:
        iterations: of the mean field; 0 changes nothing.
        spatial_weight: deviation of the kernel of position alone, pixels.
        compat_spatial: its weight.
        compat_bilateral: weight of the kernel of position and guide.
        bilateral_xy: its deviation, pixels.
        bilateral_value: its deviation in units of the guide.
        tile: side of the windows that are refined one at a time, pixels.
        halo: what is seen around a window, pixels; None is four times the wider deviation.

    Raises:
        StagewiseError: a deviation or ``tile`` that is not positive, a negative weight, count or halo.

    >>> probability = torch.full((2, 8, 8), 0.45)
    >>> probability[0] = 0.55
    >>> probability[:, 3, 3] = torch.tensor([0.4, 0.6])  # a lone pixel on an even picture gives in to its neighbours
    >>> DenseCRF().refine(probability, torch.zeros(1, 8, 8)).argmax(0).unique()
    tensor([0])
    """

    def __init__(
        self,
        iterations: int = 8,
        spatial_weight: float = 5.0,
        compat_spatial: float = 5.0,
        compat_bilateral: float = 15.0,
        bilateral_xy: float = 80.0,
        bilateral_value: float = 13.0,
        tile: int = 8192,
        halo: int | None = None,
    ) -> None:
        positive = {
            "spatial_weight": spatial_weight,
            "bilateral_xy": bilateral_xy,
            "bilateral_value": bilateral_value,
            "tile": tile,
        }
        at_least_0 = {"iterations": iterations, "compat_spatial": compat_spatial, "compat_bilateral": compat_bilateral}
        if halo is not None:
            at_least_0["halo"] = halo
        for name, value in {**positive, **at_least_0}.items():
            if not value >= 0 or (name in positive and value == 0):
                raise StagewiseError(f"`{name}` must be {'above' if name in positive else 'at least'} 0, got {value}.")
        self.iterations = iterations
        self.spatial_weight, self.compat_spatial = spatial_weight, compat_spatial
        self.bilateral_xy, self.bilateral_value, self.compat_bilateral = bilateral_xy, bilateral_value, compat_bilateral
        self.tile = tile
        self.halo = math.ceil(HALO_DEVIATIONS * max(bilateral_xy, spatial_weight)) if halo is None else halo

    @torch.no_grad()
    def refine(
        self, probability: Tensor, guide: Tensor, valid: Tensor | None = None, origin: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Refines a picture as a whole.

        Args:
            probability: (K, H, W), K of at least 2.
            guide: (D, H, W) in about 0 to 255.
            valid: (H, W) bool; pixels that are not, or where a value is not finite, influence no other.
            origin: row and column of the first pixel in the raster that this is a window of: the approximation depends
                on where a pixel lies in the lattice, and so two windows agree where they overlap.

        Returns:
            (K, H, W) float32, sums to 1; NaN where not valid.

        Raises:
            StagewiseError: shapes that do not fit.
        """
        _check(probability, guide, valid)
        seen = probability.isfinite().all(0) & guide.isfinite().all(0)
        if valid is not None:
            seen &= valid.to(seen.device)
        if self.iterations == 0 or not seen.any():
            return torch.where(seen, probability.float(), torch.nan)
        whole = bool(seen.all())
        pixels = slice(None) if whole else seen.flatten().nonzero()[:, 0]
        with own_threads(probability.device) as threads:
            kernels = self._kernels(guide.flatten(1)[:, pixels].float(), _position(seen)[:, pixels], origin, threads)
            marginal = mean_field(probability.flatten(1)[:, pixels].float(), kernels, self.iterations, threads)
        if whole:
            return marginal.view_as(probability)
        refined = torch.full_like(probability, torch.nan, dtype=torch.float32)
        refined.flatten(1)[:, pixels] = marginal
        return refined

    def _kernels(
        self, guide: Tensor, position: Tensor, origin: tuple[int, int], threads: int
    ) -> list[PermutohedralLattice]:
        kernels = []
        if self.compat_bilateral:  # first: it needs most memory to make
            features = torch.cat([_in_deviations(position, origin, self.bilateral_xy), guide / self.bilateral_value])
            kernels.append(PermutohedralLattice(features, self.compat_bilateral, threads))
        if self.compat_spatial:
            features = _in_deviations(position, origin, self.spatial_weight)
            kernels.append(PermutohedralLattice(features, self.compat_spatial, threads))
        return kernels

    def windows(self, height: int, width: int) -> Iterator[Window]:
        """The windows of a raster, without halo, row by row.

        >>> list(DenseCRF(tile=100).windows(100, 150))
        [(0, 0, 100, 100), (0, 100, 100, 50)]
        """
        for row in range(0, height, self.tile):
            for column in range(0, width, self.tile):
                yield row, column, min(self.tile, height - row), min(self.tile, width - column)

    def refine_window(self, read: Read, window: Window, height: int, width: int) -> Tensor:
        """Refines one window of a raster, with what lies around it.

        Args:
            read: window -> probability, guide and valid (or None) of it, as :meth:`refine` takes them; it is asked for
                the window with its halo, which never leaves the raster.
            window: of :meth:`windows`.
            height: of the raster.
            width: of the raster.

        Returns:
            (K, rows, columns) of the window.
        """
        row, column, rows, columns = window
        top, left = max(0, row - self.halo), max(0, column - self.halo)
        bottom, right = min(height, row + rows + self.halo), min(width, column + columns + self.halo)
        refined = self.refine(*read((top, left, bottom - top, right - left)), origin=(top, left))
        return refined[:, row - top : row - top + rows, column - left : column - left + columns]

    def refine_tiled(self, read: Read, write: Callable[[Window, Tensor], None], height: int, width: int) -> None:
        """Refines a raster of any size window by window; see :meth:`refine_window`.

        Args:
            read: window -> probability, guide, valid.
            write: takes a window and its (K, rows, columns).
            height: of the raster.
            width: of the raster.
        """
        for window in self.windows(height, width):
            write(window, self.refine_window(read, window, height, width))


def _position(seen: Tensor) -> Tensor:
    """(2, H W) float column and row."""
    rows, columns = (torch.arange(n, dtype=torch.float32, device=seen.device) for n in seen.shape)
    return torch.stack([columns.repeat(len(rows)), rows.repeat_interleave(len(columns))])


def _in_deviations(position: Tensor, origin: tuple[int, int], deviation: float) -> Tensor:
    """(2, N) column and row in pixels -> in deviations.

    The lattice repeats itself after 3 deviations along the second feature and sqrt(3) along the first: that much of
    the origin is left away, so that float32 places pixels of a large raster as finely as those of a small one.
    """
    left, top = math.fmod(origin[1] / deviation, math.sqrt(3)), math.fmod(origin[0] / deviation, 3)
    return position / deviation + position.new_tensor([[left], [top]])


def _check(probability: Tensor, guide: Tensor, valid: Tensor | None) -> None:
    shapes = [tuple(probability.shape), tuple(guide.shape), None if valid is None else tuple(valid.shape)]
    right = probability.ndim == guide.ndim == 3 and len(probability) >= 2 and len(guide) >= 1
    right = right and probability.shape[1:] == guide.shape[1:]
    if not right or (valid is not None and (valid.shape != probability.shape[1:] or valid.dtype != torch.bool)):
        raise StagewiseError(
            "the CRF takes probability (K >= 2, H, W), guide (D, H, W) and valid (H, W) bool or None; "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
