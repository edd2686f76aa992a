"""Retrieval inside the chosen cells: the nearest train pictures say where in them a picture was taken."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...datamodules.geolocation.geodesy import haversine_km, spherical_mean

SHORTLIST = 64  # train pictures that the refinement looks at


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
        neighbours: int = 4,
        sharpness: float = 100.0,
        reach_km: float = 300.0,
    ) -> dict[str, Tensor]:
        """Moves each hypothesis to the similarity-weighted place of the train pictures it looks like.

        Args:
            embedding: (B, D) raw.
            found: of :func:`hypotheses`.
            neighbours: pictures that a place is averaged over.
            sharpness: of the softmax over cosine similarities.
            reach_km: pictures further than this from the cell's nearest one do not count.

        Returns:
            The same keys; ``log_p`` gains the evidence ``sharpness * similarity`` of each cell's nearest picture.
            A cell with no train picture among the ``SHORTLIST`` most similar of all chosen cells keeps its place.
        """
        self.follow(embedding.device)
        value, row = self._shortlist(embedding, found["cell"])
        place, owner = self.lat_lon_deg[row], self.cell[row]  # (B, M, 2), (B, M)
        inside = owner.unsqueeze(1) == found["cell"].unsqueeze(2)  # (B, K, M)
        similarity = value.unsqueeze(1).masked_fill(~inside, -torch.inf)
        nearest, anchor = similarity.max(-1)
        anchor_deg = place.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 2))
        near = haversine_km(place.unsqueeze(1), anchor_deg.unsqueeze(2)) <= reach_km
        logit = (sharpness * value.unsqueeze(1)).masked_fill(~near, -torch.inf)
        top, which = logit.topk(min(neighbours, logit.shape[-1]), -1)
        points = (
            place.unsqueeze(1).expand(-1, inside.shape[1], -1, -1).gather(2, which.unsqueeze(-1).expand(-1, -1, -1, 2))
        )
        empty = ~inside.any(-1)
        weight = top.masked_fill(empty.unsqueeze(-1), 0.0).softmax(-1)
        moved = torch.where(empty.unsqueeze(-1), found["place_deg"], spherical_mean(points, weight))
        floor = value[:, -1:].expand_as(nearest)  # what is not on the list is at most as similar as its last entry
        log_p = found["log_p"] + sharpness * torch.where(empty, floor, nearest)
        return {"cell": found["cell"], "log_p": log_p.log_softmax(-1), "place_deg": moved}

    def _shortlist(self, embedding: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar train pictures inside the chosen cells: similarity and row, (B, M) each."""
        query = F.normalize(embedding - self.centre, dim=-1)
        similarity = query @ self.embedding.to(query.dtype).T
        chosen = torch.zeros(
            len(cells), int(max(self.cell.max(), cells.max())) + 1, dtype=torch.bool, device=cells.device
        )
        chosen.scatter_(1, cells, True)
        return similarity.masked_fill(~chosen[:, self.cell], -1.0).topk(min(SHORTLIST, similarity.shape[1]), -1)
