"""Retrieval inside the chosen cells: the nearest train pictures say where in them a picture was taken."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...datamodules.geolocation.geodesy import haversine_km, spherical_mean

SHORTLIST = 64  # train pictures that the refinement looks at
OUTSIDE = -2.0  # below any cosine: not in a chosen cell


@dataclass
class ReferenceBank:
    """Embeddings of the train pictures, for retrieval inside the chosen cells.

    The same idea as PIGEON's refinement (Haas et al., CVPR 2024): the cells say where to look, the nearest
    train pictures there say where it is.

    Args:
        embedding: (N, D) half precision, centred and of unit length.
        centre: (D,) mean that was subtracted.
        lat_lon_deg: (N, 2).
        cell: (N,) positions in the cell table.
    """

    embedding: Tensor
    centre: Tensor
    lat_lon_deg: Tensor
    cell: Tensor

    @classmethod
    def of(cls, embedding: Tensor, lat_lon_deg: Tensor, cell: Tensor) -> "ReferenceBank":
        """Builds the bank from raw embeddings (N, D)."""
        centre = embedding.mean(0)
        return cls(F.normalize(embedding - centre, dim=-1).half(), centre, lat_lon_deg, cell)

    def follow(self, device: torch.device) -> None:
        """Moves the bank to where the network is; a checkpoint brings it on the CPU."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))

    def refine(
        self,
        embedding: Tensor,
        found: dict[str, Tensor],
        radius_km: Tensor,
        neighbours: int = 24,
        ridge: float = 0.03,
        reach: float = 0.6,
        sharpness: float = 100.0,
    ) -> dict[str, Tensor]:
        """Moves each hypothesis to the place that the train pictures around it say.

        The picture's embedding is written as a weighted sum of its neighbours' embeddings; the same weights
        applied to their places give its place (locally linear embedding, Roweis and Saul, Science 2000). A weighted
        mean alone would pull every answer to the middle of the neighbours.

        Args:
            embedding: (B, D) raw.
            found: of :func:`hypotheses`.
            radius_km: (B, K) of the cells.
            neighbours: pictures that a place is made of.
            ridge: regularises the weights; large values give the plain mean.
            reach: pictures further than ``reach * radius_km`` from the cell's most similar one do not count.
            sharpness: of the softmax over cosine similarities, between cells.

        Returns:
            The same keys; ``log_p`` gains the evidence ``sharpness * similarity`` of each cell's nearest picture.
            A cell with no train picture among the ``SHORTLIST`` most similar of all chosen cells keeps its place.
        """
        self.follow(embedding.device)
        value, row, gram = self._shortlist(embedding, found["cell"])
        place, owner = self.lat_lon_deg[row], self.cell[row]  # (B, M, 2), (B, M)
        inside = owner.unsqueeze(1) == found["cell"].unsqueeze(2)  # (B, K, M)
        nearest, anchor = value.unsqueeze(1).masked_fill(~inside, -torch.inf).max(-1)
        anchor_deg = place.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 2))
        near = haversine_km(place.unsqueeze(1), anchor_deg.unsqueeze(2)) <= reach * radius_km.unsqueeze(-1)
        near &= value.unsqueeze(1) > OUTSIDE
        near &= near.cumsum(-1) <= neighbours  # the shortlist is sorted by similarity
        weight = reconstruction_weights(gram, near, ridge)
        moved = spherical_mean(place.unsqueeze(1), weight)
        empty = ~inside.any(-1)
        floor = value[:, -1:].expand_as(nearest)  # what is not on the list is at most as similar as its last entry
        log_p = found["log_p"] + sharpness * torch.where(empty, floor, nearest)
        moved = torch.where(empty.unsqueeze(-1), found["place_deg"], moved)
        return {"cell": found["cell"], "log_p": log_p.log_softmax(-1), "place_deg": moved}

    def _shortlist(self, embedding: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The most similar train pictures inside the chosen cells.

        Returns:
            Similarity and row, (B, M) each, most similar first, and the products (B, M, M) of their differences from
            the picture.
        """
        query = F.normalize(embedding.float() - self.centre, dim=-1)
        similarity = query @ self.embedding.float().T
        size = int(max(self.cell.max(), cells.max())) + 1
        chosen = torch.zeros(len(cells), size, dtype=torch.bool, device=cells.device).scatter_(1, cells, True)
        similarity = similarity.masked_fill(~chosen[:, self.cell], OUTSIDE)
        value, row = similarity.topk(min(SHORTLIST, similarity.shape[1]), -1)
        difference = self.embedding[row].float() - query.unsqueeze(1)
        return value, row, difference @ difference.transpose(1, 2)


def reconstruction_weights(gram: Tensor, allowed: Tensor, ridge: float) -> Tensor:
    """Weights that rebuild a point from its neighbours with the least error; they sum to 1 and may be negative.

    Args:
        gram: (B, M, M) products of the neighbours' differences from the point.
        allowed: (B, K, M) which neighbours each of K answers may use.
        ridge: added to the diagonal, in units of its mean over the allowed.

    Returns:
        (B, K, M), 0 where not allowed; all 0 where none is.

    >>> difference = torch.tensor([[[-1.0], [3.0]]])  # the point lies a quarter of the way
    >>> both = torch.ones(1, 1, 2, dtype=torch.bool)
    >>> reconstruction_weights(difference @ difference.mT, both, 1e-6).round(decimals=3)
    tensor([[[0.7500, 0.2500]]])
    """
    use = allowed.float()
    diagonal = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    scale = (diagonal * use).sum(-1, keepdim=True) / use.sum(-1, keepdim=True).clamp(min=1)
    # Rows of what is not allowed become rows of the identity with 0 on the right: their weight is exactly 0.
    masked = gram.unsqueeze(1) * use.unsqueeze(-1) * use.unsqueeze(-2)
    masked = masked + torch.diag_embed(torch.where(allowed, ridge * scale.clamp(min=1e-8), 1.0))
    weight = torch.linalg.solve(masked, use.unsqueeze(-1)).squeeze(-1)
    return weight / weight.sum(-1, keepdim=True).masked_fill(~allowed.any(-1, keepdim=True), 1.0)
