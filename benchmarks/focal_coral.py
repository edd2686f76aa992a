"""Is focal + CORAL in one pass at least 4 times faster than kornia's focal loss and coral-pytorch's loss?

    python benchmarks/focal_coral.py            # --threads N, --pairs N, --quick

Logits (4, 3, 512, 512), a third of the pixels without a label, the recipe's weights, forward and backward to the
logits. The peers get the same logits: kornia's ``focal_loss`` with class weights and ignored pixels, coral-pytorch's
``coral_loss`` on the labelled pixels, flattened, with log odds from the softmax and levels built by one comparison.
``peers, levels given`` is their lower bound: log odds and levels lie ready, as with a CORAL head. ``coral-pytorch's
levels`` is the time of its own ``levels_from_labelbatch`` alone, on a share of the labels. Ours comes as it is used
(``ours``), under torch.compile (``ours, compiled``), and as the plain sum of the two pure functions under autograd. All
must give the same loss and the same gradient.
"""

import time

import torch
from coral_pytorch.dataset import levels_from_labelbatch
from coral_pytorch.losses import coral_loss as their_coral
from kornia.losses import focal_loss as their_focal
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor

from stagewise.lightning_modules.landslide.fused import focal_coral, with_gradient
from stagewise.lightning_modules.landslide.losses import focal_loss
from stagewise.lightning_modules.landslide.ordinal import coral_loss, cumulative_log_odds

WEIGHTS, GAMMA, CORAL = [0.4, 2.5, 2.0], 2.5, 0.3
BAR = 4.0
Result = tuple[Tensor, Tensor]


class Case:
    """One batch; each method is a contestant that returns its loss and its gradient."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        classes = shape[1]
        self.logits = torch.randn(shape, generator=generator).requires_grad_()
        self.mask = torch.randint(classes, (shape[0], *shape[2:]), generator=generator)
        self.mask[torch.rand(self.mask.shape, generator=generator) < 1 / 3] = -1
        self.keep = self.mask.flatten() >= 0
        self.weights, self.level = torch.tensor(WEIGHTS), torch.arange(classes - 1)
        self.given = self.odds().detach().requires_grad_()
        self.levels = self.targets()
        self.compiled_form = torch.compile(with_gradient)

    def ours(self) -> Result:
        """One pass, the gradient by hand."""
        loss = focal_coral(self.logits, self.mask, WEIGHTS, GAMMA, CORAL)[0]
        return loss, torch.autograd.grad(loss, self.logits)[0]

    def compiled(self) -> Result:
        """The same under torch.compile."""
        focal, coral, gradient = self.compiled_form(self.logits.detach(), self.mask, WEIGHTS, GAMMA, CORAL, None)
        return focal + CORAL * coral, gradient

    def plain(self) -> Result:
        """The two pure functions under autograd."""
        odds = cumulative_log_odds(self.logits)
        loss = focal_loss(self.logits, self.mask, WEIGHTS, GAMMA) + CORAL * coral_loss(odds, self.mask)
        return loss, torch.autograd.grad(loss, self.logits)[0]

    def odds(self) -> Tensor:
        """Log odds of the labelled pixels, (N, K - 1), as coral-pytorch wants them."""
        return cumulative_log_odds(self.logits).movedim(1, -1).flatten(0, 2)[self.keep]

    def targets(self) -> Tensor:
        """Levels of the labelled pixels, (N, K - 1)."""
        return (self.mask.flatten()[self.keep, None] > self.level).float()

    def _focal(self) -> Tensor:
        total = their_focal(self.logits, self.mask, None, GAMMA, "sum", self.weights, -1)
        return total / (self.mask >= 0).sum()

    def peers(self) -> Result:
        """Kornia and coral-pytorch on the same logits."""
        loss = self._focal() + CORAL * their_coral(self.odds(), self.targets())
        return loss, torch.autograd.grad(loss, self.logits)[0]

    def peers_given(self) -> Result:
        """Kornia, and coral-pytorch on log odds and levels that lie ready."""
        loss = self._focal() + CORAL * their_coral(self.given, self.levels)
        return loss, torch.autograd.grad(loss, (self.logits, self.given))[0]

    def check(self) -> dict[str, float]:
        """Largest difference of the others' losses and gradients from ours."""
        loss, gradient = (x.detach() for x in self.ours())
        scale, differences = float(gradient.abs().max()), {}
        for name in ("compiled", "plain", "peers"):
            other_loss, other = (x.detach() for x in getattr(self, name)())
            differences[f"{name}_loss"] = agree(f"loss of {name}", float((loss - other_loss).abs()), 1e-5)
            relative = float((gradient - other).abs().max()) / scale
            differences[f"{name}_gradient"] = agree(f"gradient of {name}, relative", relative, 1e-4)
        return differences

    def seconds_of_their_levels(self, share: float) -> float:
        """Of ``levels_from_labelbatch`` for all labelled pixels, from a share of them."""
        labels = self.mask[self.mask >= 0]
        labels = labels[: max(1, int(share * len(labels)))]
        start = time.perf_counter()
        levels_from_labelbatch(labels, len(WEIGHTS))
        return (time.perf_counter() - start) / share


def main() -> None:
    options = parse(parser_of(__doc__, pairs=9))
    case = Case((2, 3, 64, 64) if options.quick else (4, 3, 512, 512))
    start = time.perf_counter()
    case.compiled()
    compile_s = time.perf_counter() - start
    parity = case.check()
    contestants = {
        "ours": case.ours,
        "ours, compiled": case.compiled,
        "ours, plain autograd": case.plain,
        "peers": case.peers,
        "peers, levels given": case.peers_given,
    }
    seconds = in_turn(contestants, options.pairs, block_s=0.05 if options.quick else 0.5)
    to_ours = {name: ratio(values, seconds["ours"]) for name, values in seconds.items()}
    to_compiled = {name: ratio(values, seconds["ours, compiled"]) for name, values in seconds.items()}
    rows = [
        {
            "focal + CORAL": name,
            "ms": show(spread(values), scale=1e3),
            "times ours": show(to_ours[name]),
            "times ours, compiled": show(to_compiled[name]),
        }
        for name, values in seconds.items()
    ]
    levels_s = case.seconds_of_their_levels(0.02)
    figures = {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": to_ours,
        "ratio_compiled": to_compiled,
        "compile_s": compile_s,
        "coral_pytorch_levels_s": levels_s,
        "parity": parity,
    }
    write("focal_coral", options, figures, rows)
    print(f"compiling took {compile_s:.3g} s; coral-pytorch's own levels take {levels_s:.3g} s more, counted nowhere")
    for name in ("peers", "peers, levels given"):
        print(verdict(f"{name} / ours", to_ours[name]["median"], BAR, at_most=False))
        print(verdict(f"{name} / ours, compiled", to_compiled[name]["median"], BAR, at_most=False))


if __name__ == "__main__":
    main()
