"""The objective of a phase: four losses over one forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...datamodules.errors import StagewiseError
from ...datamodules.geolocation.geocells import CellTable
from . import losses
from .network import GeolocationNetwork


class GeolocationObjective(nn.Module):
    """Holds the tables that the losses look up; none of them is saved, they follow from the geography.

    Args:
        geography: of the data module.
        tau_km: of :func:`losses.soft_label_table`.
        km: of :func:`losses.scaled_km`.
        beta: of :func:`losses.effective_number_weights`.
        balance: ``weights`` weighs the region and offset losses by effective numbers; ``sampler`` leaves the balance to
            the batches. Both at once would correct the same imbalance twice.
    """

    soft_labels: Tensor
    class_weights: Tensor

    def __init__(
        self,
        geography: dict[str, Any],
        tau_km: str | float = "auto",
        km: dict[str, Any] | None = None,
        beta: float = 0.9995,
        balance: str = "sampler",
    ) -> None:
        super().__init__()
        if balance not in ("sampler", "weights"):
            raise StagewiseError(f"loss.balance must be 'sampler' or 'weights', got '{balance}'.")
        self.km, self.balance = dict(km or {}), balance
        table = losses.soft_label_table(CellTable.from_dict(geography["cells"]), tau_km, geography["tau_km"])
        self.register_buffer("soft_labels", table, persistent=False)
        weights = torch.ones(len(geography["region_names"]))
        if balance == "weights":
            weights = losses.effective_number_weights(geography["count"], beta)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self,
        network: GeolocationNetwork,
        batch: Mapping[str, Tensor],
        out: Mapping[str, Tensor],
        weights: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """The losses and their weighted sum ``total``; a loss of weight 0 is computed for the record only.

        Args:
            network: that made ``out``.
            batch: ``label``, ``cell`` (B,), ``lat_lon_deg`` (B, 2).
            out: of the network's forward.
            weights: of ``province``, ``cell``, ``offset`` and ``aux``.
        """
        region, truth = batch["label"], batch["lat_lon_deg"]
        places = network.locate(out["embedding"], batch["cell"])
        parts = {
            "province": F.cross_entropy(out["region_logits"].float(), region, self.class_weights),
            "cell": losses.cell_loss(out["cell_logits"].float(), region, batch["cell"], self.soft_labels),
            "offset": losses.place_loss(places.float(), truth, self.class_weights[region], **self.km),
            "aux": losses.place_loss(out["aux_deg"].float(), truth, **self.km),
        }
        return {"total": torch.stack([weights[k] * v for k, v in parts.items() if weights[k]]).sum(), **parts}
