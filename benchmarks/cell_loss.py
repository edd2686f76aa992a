"""Is the table of soft labels with its batched cell loss faster than a loop over samples and than labels on the fly?

    python benchmarks/cell_loss.py            # --threads N, --pairs N, --quick

723 cells in seven regions, batch 64, soft labels + cell loss, forward and backward to the logits. Ours looks the labels
up in ``losses.soft_label_table`` and reads one region's row of the padded logits (B, R, C_max). The peers work them out
from distances at each step: for each sample in a loop (on the same padded logits, and on logits (B, C) without padding,
its best form), or for the batch against all cells, on (B, C). All must give the same loss and the same gradient.
"""

from collections.abc import Iterable

import numpy as np
import torch
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor
from torch.nn import functional as F

from stagewise.datamodules.geolocation.geocells import N_NEIGHBOURS, CellTable
from stagewise.datamodules.geolocation.geodesy import haversine_km
from stagewise.lightning_modules.geolocation.heads import NO_CELL_LOGIT
from stagewise.lightning_modules.geolocation.losses import cell_loss, soft_label_table

CELLS = (450, 85, 63, 42, 20, 50, 13)
BATCH, OVER_LOOP, OVER_VECTORISED = 64, 50.0, 1.0


class Case:
    """One batch on random cells; each method is a contestant that returns its loss and its gradient."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        region = np.repeat(np.arange(len(sizes)), sizes)
        centre = rng.uniform([24, 61], [36, 77], (len(region), 2))
        cells = CellTable(np.arange(len(region)), region, centre, np.ones(len(region)), [[]] * len(region))
        self.soft_labels = soft_label_table(cells, "auto", [None] * len(sizes))
        self.centre_deg, self.region_of = torch.from_numpy(centre).float(), torch.from_numpy(region)
        self.first = [0, *np.cumsum(sizes).tolist()]
        self.cell = torch.from_numpy(rng.integers(len(region), size=BATCH))
        self.region = self.region_of[self.cell]
        generator = torch.Generator().manual_seed(0)
        self.flat = torch.randn(BATCH, len(region), generator=generator).requires_grad_()
        self.padded = torch.full((BATCH, len(sizes), max(sizes)), NO_CELL_LOGIT)
        self.slot = torch.arange(len(region)) - torch.tensor(self.first)[self.region_of]
        self.padded[:, self.region_of, self.slot] = self.flat.detach()
        self.padded.requires_grad_()

    def ours(self) -> tuple[Tensor, Tensor]:
        """Gather and one KL divergence."""
        loss = cell_loss(self.padded, self.region, self.cell, self.soft_labels)
        (gradient,) = torch.autograd.grad(loss, self.padded)
        return loss, gradient

    def loop(self) -> tuple[Tensor, Tensor]:
        """The label of each sample from the distances in its region; the padded logits that ours gets, too."""
        rows = (self.padded[i, r, : CELLS[r]] for i, r in enumerate(self.region.tolist()))
        loss = self._loop(rows)
        return loss, torch.autograd.grad(loss, self.padded)[0]

    def loop_unpadded(self) -> tuple[Tensor, Tensor]:
        """The same loop in its best form: logits without padding, taken apart once."""
        logits = self.flat.unbind()
        rows = (row[self.first[r] : self.first[r + 1]] for row, r in zip(logits, self.region.tolist(), strict=True))
        loss = self._loop(rows)
        return loss, torch.autograd.grad(loss, self.flat)[0]

    def _loop(self, rows: Iterable[Tensor]) -> Tensor:
        total = torch.zeros(())
        for logits, cell, region in zip(rows, self.cell.tolist(), self.region.tolist(), strict=True):
            distance = haversine_km(self.centre_deg[self.first[region] : self.first[region + 1]], self.centre_deg[cell])
            near, order = distance.topk(min(N_NEIGHBOURS + 1, len(distance)), largest=False)
            label = torch.zeros_like(distance)
            label[order] = torch.softmax(-near / (0.5 * near[1]), 0)
            total = total + F.kl_div(logits.log_softmax(0), label, reduction="sum")
        return total / BATCH

    def vectorised(self) -> tuple[Tensor, Tensor]:
        """Distances of the batch to all cells, other regions masked."""
        foreign = self.region.unsqueeze(1) != self.region_of
        distance = haversine_km(self.centre_deg[self.cell].unsqueeze(1), self.centre_deg)
        near, order = distance.masked_fill(foreign, torch.inf).topk(N_NEIGHBOURS + 1, largest=False)
        mass = torch.softmax(-near / (0.5 * near[:, 1:2]), 1)
        label = torch.zeros_like(distance).scatter(1, order, mass)
        log_p = self.flat.masked_fill(foreign, NO_CELL_LOGIT).log_softmax(1)
        loss = F.kl_div(log_p, label, reduction="batchmean")
        return loss, torch.autograd.grad(loss, self.flat)[0]

    def check(self) -> dict[str, float]:
        """Largest difference of the peers' losses and gradients from ours."""
        loss, gradient = (x.detach() for x in self.ours())
        differences = {}
        for name in ("loop", "loop_unpadded", "vectorised"):
            other_loss, other = (x.detach() for x in getattr(self, name)())
            if other.ndim == 2:
                other = torch.zeros_like(gradient).index_put(
                    (torch.arange(BATCH)[:, None], self.region_of, self.slot), other
                )
            differences[f"{name}_loss"] = agree(f"loss of {name}", float((loss - other_loss).abs()), 1e-4)
            differences[f"{name}_gradient"] = agree(f"gradient of {name}", float((gradient - other).abs().max()), 1e-5)
        return differences


def main() -> None:
    options = parse(parser_of(__doc__, pairs=9))
    case = Case(CELLS)
    parity = case.check()
    names = ("ours", "vectorised", "loop", "loop_unpadded")
    contestants = {name: getattr(case, name) for name in names}
    seconds = in_turn(contestants, options.pairs, block_s=0.05 if options.quick else 0.5)
    ratios = {name: ratio(values, seconds["ours"]) for name, values in seconds.items()}
    rows = [
        {"soft labels + cell loss": name, "ms": show(spread(values), scale=1e3), "times ours": show(ratios[name])}
        for name, values in seconds.items()
    ]
    figures = {"seconds": {name: spread(values) for name, values in seconds.items()}, "ratio": ratios, "parity": parity}
    write("cell_loss", options, figures, rows)
    for name in ("loop", "loop_unpadded"):
        print(verdict(f"{name} / ours", ratios[name]["median"], OVER_LOOP, at_most=False))
    print(verdict("vectorised / ours", ratios["vectorised"]["median"], OVER_VECTORISED, at_most=False))


if __name__ == "__main__":
    main()
