"""The heads: regions, cells, offset, auxiliary coordinates. All batched, no loop over samples."""

import torch
from torch import Tensor, nn

from ...datamodules.geolocation.geodesy import KM_PER_DEGREE

OUTPUT_STD = 0.01
_NARROW, _WIDE, _FEW_CELLS = 256, 512, 30
NO_CELL_LOGIT = -1e4  # finite, so that 0 * log p is 0 where a soft label has no mass


def small_output(layer: nn.Linear) -> nn.Linear:
    """Starts an output layer at N(0, 0.01) and zero bias."""
    nn.init.normal_(layer.weight, std=OUTPUT_STD)
    nn.init.zeros_(layer.bias)
    return layer


def projection(n_in: int, width: int) -> nn.Sequential:
    """Linear -> LayerNorm -> GELU."""
    return nn.Sequential(nn.Linear(n_in, width), nn.LayerNorm(width), nn.GELU())


class RegionCellHeads(nn.Module):
    """One two-layer head a region, computed as two batched products.

    Heads of unequal size are padded: a padded hidden unit has zero weights, gives GELU(0) = 0 and gets no gradient.

    Args:
        cells_per_region: number of cells of each region.
        width: of the input.
    """

    padding: Tensor

    def __init__(self, cells_per_region: list[int], width: int = 512) -> None:
        super().__init__()
        n_regions, most = len(cells_per_region), max(cells_per_region)
        hidden = [_NARROW if n < _FEW_CELLS else _WIDE for n in cells_per_region]
        self.weight_in = nn.Parameter(torch.zeros(n_regions, width, max(hidden)))
        self.bias_in = nn.Parameter(torch.zeros(n_regions, max(hidden)))
        self.weight_out = nn.Parameter(torch.zeros(n_regions, max(hidden), most))
        self.bias_out = nn.Parameter(torch.zeros(n_regions, most))
        with torch.no_grad():
            for r, (h, n) in enumerate(zip(hidden, cells_per_region)):
                nn.init.kaiming_uniform_(self.weight_in[r, :, :h].T, a=5**0.5)
                nn.init.normal_(self.weight_out[r, :h, :n], std=OUTPUT_STD)
        padding = torch.arange(most).expand(n_regions, most) >= torch.tensor(cells_per_region).unsqueeze(1)
        self.register_buffer("padding", padding, persistent=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, width) -> (B, regions, most cells) logits; ``NO_CELL_LOGIT`` where a region has no such cell."""
        hidden = nn.functional.gelu(torch.einsum("bd,rdh->brh", embedding, self.weight_in) + self.bias_in)
        logits = torch.einsum("brh,rhc->brc", hidden, self.weight_out) + self.bias_out
        return logits.masked_fill(self.padding, NO_CELL_LOGIT)


class OffsetHead(nn.Module):
    """Where in the cell: degrees from its centre, never further than the cell allows.

    Args:
        widths: of the picture's, the cell's and the region's embedding.
    """

    def __init__(self, widths: tuple[int, int, int] = (512, 96, 32)) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.entry = nn.Sequential(nn.Linear(sum(widths), 256), nn.GELU())
        self.residual = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256))
        self.exit = nn.Sequential(nn.Linear(256, 128), nn.GELU(), small_output(nn.Linear(128, 2)))

    def forward(self, embedding: Tensor, cell: Tensor, region: Tensor) -> Tensor:
        """(..., 512), (..., 96), (..., 32) -> (..., 2) raw degrees of latitude, longitude."""
        parts = [norm(x) for norm, x in zip(self.norms, (embedding, cell, region))]
        hidden = self.entry(torch.cat(parts, -1))
        return self.exit(hidden + self.residual(hidden))


def clamp_offset(raw_deg: Tensor, limit_deg: Tensor) -> Tensor:
    """Bounds an offset smoothly, so that one beyond the bound still has a gradient that leads back.

    Args:
        raw_deg: (..., 2).
        limit_deg: broadcastable to ``raw_deg``, positive.

    >>> clamp_offset(torch.tensor([9.0, -9.0]), torch.tensor([0.5, 0.2])).tolist()
    [0.5, -0.20000000298023224]
    """
    return limit_deg * torch.tanh(raw_deg / limit_deg)


def offset_limit_deg(centre_deg: Tensor, radius_km: Tensor, scale: Tensor) -> Tensor:
    """Half-width of the box that offsets stay in.

    Args:
        centre_deg: (C, 2) of the cells.
        radius_km: (C,).
        scale: (C,) of the cell's region.

    Returns:
        (C, 2): ``radius * scale / 111`` degrees of latitude, and that ``/ cos(latitude)`` of longitude.
    """
    lat = radius_km * scale / KM_PER_DEGREE
    cosine = torch.cos(torch.deg2rad(centre_deg[:, 0])).clamp(min=0.01)  # a cell at a pole has no longitude
    return torch.stack([lat, lat / cosine], -1)
