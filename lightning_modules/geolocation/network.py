"""Picture -> region -> geocell -> offset."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ...datamodules.errors import CheckpointError
from ...datamodules.geolocation.geocells import CellTable
from ...datamodules.geolocation.geodesy import wrap_longitude
from ..clip import CLIP_MEAN, CLIP_STD, clip_image_tower
from ..half_precision import FrozenCopy
from . import encoders
from .heads import OffsetHead, RegionCellHeads, clamp_offset, offset_limit_deg, projection, small_output

WIDTH = 512
_GATE_BIAS = -0.4  # leans to CLIP


class GeolocationNetwork(nn.Module):
    """Two encoders, a gate, and four heads.

    Args:
        geography: of the data module: region names, cells, settings, centroid.
        clip: arguments of :func:`clip_image_tower`.
        scene: arguments of :func:`scene_encoder`.
        image_px: side of the input pictures.
        dropout: of the region head and before the cell heads.
        load: False leaves the encoders random, for weights that come from a checkpoint.
    """

    cell_centre_deg: Tensor
    cell_region: Tensor
    cell_radius_km: Tensor
    offset_limit_deg: Tensor
    cell_slot: Tensor
    cell_at: Tensor

    def __init__(
        self,
        geography: dict[str, Any],
        clip: dict[str, Any] | None = None,
        scene: dict[str, Any] | None = None,
        image_px: int = 224,
        dropout: float = 0.1,
        load: bool = True,
    ) -> None:
        super().__init__()
        self.image_px = image_px
        cells, n_regions = CellTable.from_dict(geography["cells"]), len(geography["region_names"])
        tower: Any = clip_image_tower(**(clip or {}), image_px=image_px, load=load)
        backbone: Any = encoders.scene_encoder(**(scene or {}), load=load)
        self.clip, self.scene = tower, backbone
        self.clip_projection = projection(int(tower.output_dim), WIDTH)
        self.scene_projection = projection(int(backbone.num_features), WIDTH)
        self.gate = nn.Linear(2 * WIDTH, 1)
        nn.init.zeros_(self.gate.weight)  # random weights could outweigh the bias
        nn.init.constant_(self.gate.bias, _GATE_BIAS)
        self.region_head = nn.Sequential(
            *projection(WIDTH, 256), nn.Dropout(dropout), small_output(nn.Linear(256, n_regions))
        )
        per_region = [int((cells.region == r).sum()) for r in range(n_regions)]
        self.cell_heads = nn.Sequential(nn.Dropout(dropout), RegionCellHeads(per_region, WIDTH))
        self.cell_embedding = nn.Embedding(len(cells), 96)
        self.region_embedding = nn.Embedding(n_regions, 32)
        self.offset_head = OffsetHead((WIDTH, 96, 32))
        place = small_output(nn.Linear(256, 2))
        with torch.no_grad():
            place.bias.copy_(torch.tensor(geography["centroid_deg"]))
        self.aux_head = nn.Sequential(*projection(WIDTH, 256), place)
        self._register_geography(cells, geography, max(per_region))
        self._register_normalisation()
        # Not modules: the half-precision copies must not reach the checkpoint or the optimizer.
        self._frozen = {name: FrozenCopy(getattr(self, name)) for name in ("clip", "scene")}

    def _register_geography(self, cells: CellTable, geography: dict[str, Any], most: int) -> None:
        region = torch.from_numpy(cells.region)
        centre = torch.from_numpy(cells.centre_deg).float()
        scale = torch.tensor(geography["offset_scale"])[region]
        first = torch.searchsorted(region, torch.arange(len(geography["region_names"])))  # rows are sorted by region
        slot = torch.arange(len(region)) - first[region]
        at = torch.full((len(first), most), -1)
        at[region, slot] = torch.arange(len(region))
        self.register_buffer("cell_centre_deg", centre)
        self.register_buffer("cell_region", region)
        radius_km = torch.from_numpy(cells.radius_km).float()
        self.register_buffer("cell_radius_km", radius_km)
        self.register_buffer("offset_limit_deg", offset_limit_deg(centre, radius_km, scale))
        self.register_buffer("cell_slot", slot)  # (C,) place among the cells of its region
        self.register_buffer("cell_at", at)  # (R, C_max) the inverse, -1 is padding

    def _register_normalisation(self) -> None:
        for name, mean, std in (
            ("clip", CLIP_MEAN, CLIP_STD),
            ("scene", encoders.IMAGENET_MEAN, encoders.IMAGENET_STD),
        ):
            self.register_buffer(f"{name}_mean", torch.tensor(mean).view(3, 1, 1))
            self.register_buffer(f"{name}_std", torch.tensor(std).view(3, 1, 1))

    def is_open(self, name: str) -> bool:
        """Whether any parameter of an encoder is trained."""
        return any(p.requires_grad for p in getattr(self, name).parameters())

    def encoder_key(self) -> str:
        """Hash of the encoders' weights."""
        digest = hashlib.blake2b(digest_size=12)
        for name in ("clip", "scene"):
            for key, value in getattr(self, name).state_dict().items():
                digest.update(key.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Runs the encoders, or passes cached features on.

        Whatever needs no gradient (a frozen encoder, an evaluation, a prediction) takes the same half-precision path,
        so that an evaluation repeats the figures of the validation that chose the checkpoint.

        Args:
            batch: ``image`` (B, 3, H, W) float in [0, 1], or ``clip_features`` and ``scene_features`` (B, D).

        Returns:
            ``clip_features`` and ``scene_features``, (B, D) float32.
        """
        features = {}
        for name in ("clip", "scene"):
            key = f"{name}_features"
            if key in batch:
                features[key] = batch[key]
                continue
            image = (batch["image"] - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")
            if torch.is_grad_enabled() and self.is_open(name):
                self._frozen[name].forget()
                features[key] = getattr(self, name)(image)
            else:
                features[key] = self._frozen[name](image)
        return features

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Fuses the encoders: (B, 512), ``alpha * scene + (1 - alpha) * clip`` with one scalar a picture."""
        clip, scene = self.clip_projection(features["clip_features"]), self.scene_projection(features["scene_features"])
        alpha = torch.sigmoid(self.gate(torch.cat([clip, scene], -1)))
        return alpha * scene + (1 - alpha) * clip

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """All but the offset, which depends on the cell.

        Returns:
            ``embedding`` (B, 512), ``region_logits`` (B, R), ``cell_logits`` (B, R, C_max), ``aux_deg`` (B, 2).
        """
        embedding = self.embed(self.encode(batch))
        return {
            "embedding": embedding,
            "region_logits": self.region_head(embedding),
            "cell_logits": self.cell_heads(embedding),
            "aux_deg": self.aux_head(embedding),
        }

    def locate(self, embedding: Tensor, cell: Tensor) -> Tensor:
        """The place of a picture, given its cell: centre + clamped offset.

        Args:
            embedding: (B, 512), or (B, K, 512) for K hypotheses.
            cell: (B) or (B, K) positions in the cell table.

        Returns:
            (B, 2) or (B, K, 2) degrees.
        """
        raw = self.offset_head(embedding, self.cell_embedding(cell), self.region_embedding(self.cell_region[cell]))
        return wrap_longitude(self.cell_centre_deg[cell] + clamp_offset(raw, self.offset_limit_deg[cell]))


def check_same_geography(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuses a checkpoint of another region list or cell table."""
    if theirs["region_names"] != ours["region_names"]:
        raise CheckpointError(
            f"the checkpoint is of the regions {theirs['region_names']}, the data of {ours['region_names']}; "
            "train from the first phase on this data, or pass the data of the checkpoint."
        )
    if theirs["cells"]["centre_deg"] != ours["cells"]["centre_deg"]:
        counts = f"{len(theirs['cells']['cell_id'])} and {len(ours['cells']['cell_id'])}"
        raise CheckpointError(
            f"the geocells of the checkpoint and of the data differ ({counts} cells); "
            "train.csv or the cell settings changed: run the earlier phases again."
        )
