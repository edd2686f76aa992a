"""What the branches and the rule say of every row: the pictures of a row are averaged, so that each row weighs once."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...datamodules.fusion.table import FusionTable
from .network import FusionNetwork
from .rules import cross_fitted, have_both

if TYPE_CHECKING:
    from .module import FusionModule

Rows = dict[str, NDArray[Any]]


def rows_of(network: FusionNetwork, items: Mapping[str, Tensor], metadata: Tensor, table: FusionTable) -> Rows:
    """Items -> rows.

    Args:
        network: whose rule joins the rows' probabilities, unless it reads the pictures' features.
        items: ``row`` (M,), and (M, K) ``picture``, ``probability``, and any others to be averaged.
        metadata: (N, K) of all rows of the split.
        table: of the split.

    Returns:
        Of the R rows that the items have: ``ids``, ``group``, ``label`` (R,); ``metadata`` (R, K), and the averages.
    """
    row, place = items["row"].cpu().unique(return_inverse=True)
    known = [name for name, value in items.items() if value.ndim == 2]
    found = {name: _means(items[name].cpu().float(), place, len(row)) for name in known}
    own = metadata[row].cpu()
    if network.rule is not None and not network.rule.reads_features:
        device = network.prior.device
        found["probability"] = network.fuse(own.to(device), found["picture"].to(device)).detach().cpu()
    chosen = {name: getattr(table, name)[row.numpy()] for name in ("ids", "group", "label")}
    return {**chosen, "metadata": own.numpy(), **{name: value.numpy() for name, value in found.items()}}


def _means(values: Tensor, place: Tensor, rows: int) -> Tensor:
    count = torch.zeros(rows).index_add_(0, place, torch.ones(len(place)))
    return torch.zeros(rows, values.shape[1]).index_add_(0, place, values) / count[:, None]


def cross_fitted_rows(network: FusionNetwork, rows: Rows) -> Rows:
    """The same rows, each answered by the rule as the other patients fit it; see :func:`~.rules.cross_fitted`."""
    honest = np.nan_to_num(cross_fitted(network.rule, rows))
    return {**rows, "probability": np.where(have_both(rows)[:, None], honest, rows["probability"])}


@torch.inference_mode()
def answer(module: "FusionModule", datamodule: Any, split: str) -> Rows:
    """All rows of a split.

    Args:
        module: on its device.
        datamodule: set up.
        split: its name; of ``val``, whose rows a fitted rule has learned from, each is answered as the others fit it.

    Returns:
        ``ids``, ``group``, ``label`` (N,); ``metadata``, ``picture``, ``alone`` (the picture branch before the fusion
        moved it) and ``probability`` (N, K), in the order of the split; NaN where there is none.
    """
    table = datamodule.table(split)
    metadata = module.metadata_of(split, table)
    items = answer_items(module, _batches(module, datamodule, split), metadata)
    rows = rows_of(module.network, items, metadata, table)
    rule = module.network.rule
    return cross_fitted_rows(module.network, rows) if split == "val" and rule is not None and rule.fitted else rows


def _batches(module: "FusionModule", datamodule: Any, split: str) -> Iterator[dict[str, Tensor]]:
    for batch in datamodule.split_dataloader(split):
        on_device = {name: value.to(module.device) for name, value in batch.items()}
        yield datamodule.on_after_batch_transfer(on_device, 0)


@torch.inference_mode()
def answer_items(module: "FusionModule", batches: Iterator[dict[str, Tensor]], metadata: Tensor) -> dict[str, Tensor]:
    """What the network says of every picture, in eval mode.

    Args:
        module: on its device.
        batches: ``image``, ``has_image`` and ``row``.
        metadata: (N, K) of the rows.

    Returns:
        ``row`` (M,), ``picture``, ``alone``, ``probability`` (M, K).
    """
    training, parts, before = module.training, [], _before(module)
    module.eval()
    for batch in batches:
        out = module.network(batch, metadata.to(module.device)[batch["row"]])
        alone, seen = out["picture"], batch["has_image"].bool()
        if before is not None and seen.any():
            given = (batch["image"][seen],)
            said = torch.func.functional_call(module.network.picture, before, given)["probability"]  # type: ignore[arg-type]
            alone = alone.index_put((seen,), said.to(alone))
        parts.append({"row": batch["row"], "alone": alone, **{n: out[n] for n in ("picture", "probability")}})
    module.train(training)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _before(module: "FusionModule") -> dict[str, Tensor] | None:
    """The tensors that the picture branch had before the fusion, None where it has them still."""
    if module.alone is None or module.network.picture is None:
        return None
    own = module.network.picture.state_dict()
    if all(torch.equal(value.cpu(), module.alone[name]) for name, value in own.items()):
        return None
    return {name: value.to(module.device) for name, value in module.alone.items()}
