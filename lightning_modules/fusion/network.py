"""Metadata's probabilities and a picture -> the probabilities of both together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...datamodules.errors import StagewiseError
from .branch import PictureBranch
from .rules import make_rule, with_prior

MODALITIES = ("fusion", "metadata", "image")


class FusionNetwork(nn.Module):
    """The picture branch and the rule; of metadata alone neither, and then there is no parameter.

    A row without picture is answered by its metadata, one without metadata by its picture, one without both by the
    classes' shares in train.

    Args:
        schema: of the data: ``classes``, ``class_count``, ``image``.
        modality: ``fusion``, ``metadata`` or ``image``.
        branch: of :class:`PictureBranch`.
        rule: of :func:`~.rules.make_rule`.
        load: pretrained weights; a checkpoint brings its own.

    Raises:
        StagewiseError: an unknown modality.
    """

    prior: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        modality: str = "fusion",
        branch: Mapping[str, Any] | None = None,
        rule: Mapping[str, Any] | None = None,
        load: bool = True,
    ) -> None:
        super().__init__()
        if modality not in MODALITIES:
            raise StagewiseError(f"modality must be one of {', '.join(MODALITIES)}, got '{modality}'.")
        self.modality, self.classes = modality, len(schema["classes"])
        count = torch.tensor(schema["class_count"], dtype=torch.float32)
        self.register_buffer("prior", count / count.sum())
        self.picture = PictureBranch(schema, load=load, **(branch or {})) if modality != "metadata" else None
        self.rule = None
        if modality == "fusion":
            assert self.picture is not None
            self.rule = make_rule(self.classes, self.picture.width, **(rule or {}))

    def forward(self, batch: Mapping[str, Tensor], metadata: Tensor) -> dict[str, Tensor]:
        """Answers a batch.

        Args:
            batch: ``image`` (B, C, S, S) in [0, 1], ``has_image`` (B,).
            metadata: (B, K) of the forest, NaN where a row has none.

        Returns:
            ``probability`` (B, K), rows sum to 1; ``picture`` (B, K) of the branch alone, NaN where a row has no
            picture; and where there is one, ``levels`` of a coral head that is trained alone.
        """
        seen = batch["has_image"].bool()
        picture = torch.full_like(metadata, torch.nan)
        if self.picture is None:
            return {"probability": with_prior(metadata, self.prior), "picture": picture}
        features, own = metadata.new_zeros(len(seen), self.picture.width), {}
        if seen.any():  # a picture that is not there must not enter the statistics of a BatchNorm
            own = self.picture(batch["image"][seen])
            picture = picture.index_put((seen,), own["probability"].to(picture))
            features = features.index_put((seen,), own["features"].to(features))
        if self.modality == "image":
            found = {"probability": with_prior(picture, self.prior), "picture": picture}
            return found | ({"levels": own["levels"]} if "levels" in own else {})
        return {"probability": self.fuse(metadata, picture, features), "picture": picture}

    def fuse(self, metadata: Tensor, picture: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, K) and (B, K), NaN where there is none, and (B, D) where the rule needs it -> (B, K)."""
        assert self.rule is not None
        no_metadata, no_picture = (one.isnan().any(1, keepdim=True) for one in (metadata, picture))
        fused = self.rule(metadata.nan_to_num(1 / self.classes), picture.nan_to_num(1 / self.classes), features)
        return with_prior(torch.where(no_metadata, picture, torch.where(no_picture, metadata, fused)), self.prior)
