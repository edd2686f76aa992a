"""Mean probabilities and their uncertainty over an ensemble, Monte-Carlo dropout and the eight turns of a picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...datamodules.errors import StagewiseError
from ...datamodules.landslide.turning import ELEMENTS, inverse, turn

Member = Callable[[Tensor], Tensor]
MUTUAL, PREDICTIVE = "mutual information", "predictive entropy"


@dataclass(frozen=True)
class Passes:
    """A network for :func:`predict_tiled`: class probabilities and, as the last channel, their uncertainty in nats.

    The turns are part of a member: their mean is one opinion. Where there are several opinions, of members or of
    dropout masks, uncertainty is their mutual information (entropy of the mean less mean entropy; Houlsby et al. 2011,
    https://arxiv.org/abs/1112.5745), else the entropy of the only one. Dropout draws the same masks for every batch, so
    that a resumed run repeats them and neighbouring windows see the same thinned network.

    Attributes:
        members: images (B, C, H, W), NaN is nodata -> probabilities (B, K, H, W).
        classes: K.
        turns: whether each opinion is the mean over the eight turns.
        mc_passes: calls of each member; over 1 its dropout must be switched on.
        aspect: positions of sine and cosine of the aspect among the channels.
        seed: of the dropout.

    >>> sure, unsure = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    >>> members = [lambda x, p=p: p.view(1, 2, 1, 1).expand(len(x), 2, 4, 4) for p in (sure, unsure)]
    >>> Passes(members, classes=2, turns=False)(torch.zeros(1, 3, 4, 4))[0, :, 0, 0]
    tensor([0.7500, 0.2500, 0.2158])
    """

    members: Sequence[Member]
    classes: int
    turns: bool = True
    mc_passes: int = 1
    aspect: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.members or self.mc_passes < 1:
            raise StagewiseError(f"{len(self.members)} members and {self.mc_passes} passes: at least 1 of each.")

    @property
    def kind(self) -> str:
        """What the uncertainty is."""
        return MUTUAL if len(self.members) * self.mc_passes > 1 else PREDICTIVE

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K + 1, H, W); what has no data at all is not shown to the network."""
        blank = torch.full((self.classes + 1,), 1 / self.classes, device=images.device)
        blank[-1] = 0
        found = blank.view(1, -1, 1, 1).repeat(len(images), 1, *images.shape[-2:])
        seen = images.isfinite().all(1).flatten(1).any(1)
        if seen.any():
            found[seen] = self._mean_and_uncertainty(images[seen])
        return found

    def _mean_and_uncertainty(self, images: Tensor) -> Tensor:
        total, entropies, count = torch.zeros(()), torch.zeros(()), 0
        for opinion in self._opinions(images):
            total, count = total + opinion, count + 1
            entropies = entropies + entropy(opinion)
        mean = total / count
        uncertainty = (entropy(mean) - entropies / count).clamp_min(0) if count > 1 else entropies
        return torch.cat([mean, uncertainty[:, None]], 1)

    def _opinions(self, images: Tensor) -> Iterator[Tensor]:
        for member in self.members:
            first = None
            for i in range(self.mc_passes):
                devices = [images.device] if images.is_cuda else []
                with torch.random.fork_rng(devices):
                    torch.manual_seed(self.seed + i)
                    opinion = self._over_turns(member, images)
                if first is not None and torch.equal(first, opinion):
                    raise StagewiseError(
                        "Monte-Carlo passes are all alike: the member's dropout is off or has no part in what it "
                        "answers; switch it on, or set mc_passes=1."
                    )
                first = opinion if first is None else first
                yield opinion

    def _over_turns(self, member: Member, images: Tensor) -> Tensor:
        if not self.turns:
            return self._checked(member(images))
        turned = (turn(self._checked(member(turn(images, e, self.aspect))), inverse(e)) for e in ELEMENTS)
        total = next(turned)
        for one in turned:
            total = total + one
        return total / len(ELEMENTS)

    def _checked(self, probability: Tensor) -> Tensor:
        if probability.shape[1] != self.classes:
            raise StagewiseError(f"a member answers with {probability.shape[1]} classes instead of {self.classes}.")
        return probability.float()


def entropy(probability: Tensor) -> Tensor:
    """(B, K, H, W) -> (B, H, W) in nats.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0]).view(1, 3, 1, 1)).item()
    0.6931471824645996
    """
    return torch.special.entr(probability).sum(1)
