"""The objective: focal + Dice + an ordinal loss over one forward pass."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...datamodules.errors import StagewiseError
from .fused import focal_coral
from .losses import dice_loss
from .ordinal import corn_loss, soft_label_table

FORMS = ("coral", "corn")


class LandslideObjective(nn.Module):
    """``focal + dice * Dice + weight * ordinal``; of ignored pixels nothing counts.

    Args:
        classes: K.
        focal: ``{gamma, class_weights}``: 2.5, and one number a class (None is 1 for all).
        dice: weight of the Dice part.
        ordinal: ``{weight, form}``: 0.3, and ``coral`` (from any head's class probabilities; for a CORAL head it is the
            loss of its levels) or ``corn`` (of a CORN head's conditional levels: from any other head's
            probabilities it would be a cross entropy, which knows no order).
        soft_labels: decay in classes of :func:`ordinal.soft_label_table`, for the focal and the CORAL part; None is
            hard labels.

    Raises:
        StagewiseError: an unknown key, class weights that do not fit, a negative number, or all parts 0.

    >>> import torch
    >>> objective = LandslideObjective(3, focal={"class_weights": [0.4, 2.5, 2.0]})
    >>> parts = objective({"logits": torch.zeros(1, 3, 2, 2)}, torch.full((1, 2, 2), -1))
    >>> {name: value.item() for name, value in parts.items()}
    {'total': 0.0, 'focal': 0.0, 'dice': 0.0, 'ordinal': 0.0}
    """

    def __init__(
        self,
        classes: int,
        focal: Mapping[str, Any] | None = None,
        dice: float = 1.0,
        ordinal: Mapping[str, Any] | None = None,
        soft_labels: float | None = None,
    ) -> None:
        super().__init__()
        focal = _with_defaults("focal", focal, {"gamma": 2.5, "class_weights": None})
        ordinal = _with_defaults("ordinal", ordinal, {"weight": 0.3, "form": "coral"})
        self.classes, self.gamma, self.form = classes, float(focal["gamma"]), str(ordinal["form"])
        weights = focal["class_weights"]
        self.class_weights = [1.0] * classes if weights is None else [float(weight) for weight in weights]
        self.dice_weight, self.ordinal_weight = float(dice), float(ordinal["weight"])
        self.soft_labels = None if soft_labels is None else soft_label_table(classes, soft_labels).tolist()
        self._check()

    def _check(self) -> None:
        if len(self.class_weights) != self.classes:
            raise StagewiseError(
                f"loss.focal.class_weights has {len(self.class_weights)} numbers, there are {self.classes} classes."
            )
        if self.form not in FORMS:
            raise StagewiseError(f"loss.ordinal.form must be one of {', '.join(FORMS)}, got '{self.form}'.")
        if self.form == "corn" and self.soft_labels is not None:
            raise StagewiseError("loss.soft_labels needs loss.ordinal.form=coral: CORN picks pixels by hard labels.")
        numbers = {"focal.gamma": self.gamma, "dice": self.dice_weight, "ordinal.weight": self.ordinal_weight}
        numbers |= {f"focal.class_weights[{k}]": weight for k, weight in enumerate(self.class_weights)}
        for name, value in numbers.items():
            if not 0 <= value < float("inf"):
                raise StagewiseError(f"loss.{name} must be a number of at least 0, got {value}.")
        if not any([*self.class_weights, self.dice_weight, self.ordinal_weight]):
            raise StagewiseError("all weights of the loss are 0, nothing would be trained; give one of them a weight.")

    def forward(self, out: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """The parts and their weighted sum ``total``, which alone has a gradient.

        Args:
            out: of :class:`LandslideNetwork`.
            mask: (B, H, W) class, negative is ignored.

        Raises:
            StagewiseError: ``corn`` without a CORN head, or a label that is no class (looked for on the CPU alone: a
                GPU would have to wait).
        """
        if mask.device.type == "cpu" and mask.numel() and int(mask.max()) >= self.classes:
            raise StagewiseError(f"the mask has the class {int(mask.max())}, there are {self.classes} from 0.")
        logits, corn = out["logits"].float(), self.form == "corn"
        weight = 0.0 if corn else self.ordinal_weight
        total, focal, ordinal = focal_coral(logits, mask, self.class_weights, self.gamma, weight, self.soft_labels)
        if corn:
            ordinal = self._corn(out, mask)
            total = total + self.ordinal_weight * ordinal
        dice = dice_loss(logits, mask)
        total = total + self.dice_weight * dice
        return {"total": total, "focal": focal, "dice": dice.detach(), "ordinal": ordinal.detach()}

    def total(self, focal: Tensor, dice: Tensor, ordinal: Tensor) -> Tensor:
        """The weighted sum of parts that were taken over more than one batch."""
        return focal + self.dice_weight * dice + self.ordinal_weight * ordinal

    def _corn(self, out: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        if "conditionals" not in out:
            raise StagewiseError("loss.ordinal.form=corn needs a CORN head; set network.head=corn, or form=coral.")
        return corn_loss(out["conditionals"], mask)


def _with_defaults(name: str, given: Mapping[str, Any] | None, defaults: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(given or {}) - set(defaults)):
        raise StagewiseError(f"loss.{name} has unknown key(s) {unknown}; known: {', '.join(defaults)}.")
    return defaults | dict(given or {})
