"""Metrics that torchmetrics does not have, exact over a whole data set on any number of processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Quantile(Metric):
    """Exact quantile over all samples of all processes, each sample counted once.

    A mean of batch medians is not the median, and ``DistributedSampler`` pads the last batch with samples that another
    process has as well. So every value is kept together with its sample id (12 bytes a sample), gathered, and counted
    once.

    Args:
        q: share between 0 and 1, 0.5 is the median. Between two samples it is interpolated linearly, like
            ``torch.quantile``, without its limit of 16 million values.
        **kwargs: passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``q`` is not a share, shapes differ, or (from ``compute``) a value is NaN.

    >>> median = Quantile(q=0.5)
    >>> median.update(torch.tensor([1.0, 9.0, 2.0]), sample_ids=torch.tensor([10, 11, 12]))
    >>> median.update(torch.tensor([1.0]), sample_ids=torch.tensor([10]))  # padding: sample 10 once more
    >>> median.compute()
    tensor(2.)
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]
    sample_ids: list[Tensor]

    def __init__(self, q: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= q <= 1:
            raise ValueError(f"`q` must be a share between 0 and 1, got {q}; the median is 0.5.")
        self.q = q
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("sample_ids", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor, sample_ids: Tensor) -> None:
        """Adds a batch.

        Args:
            values: (B,) one number a sample, for example an error in kilometres.
            sample_ids: (B,) whole numbers that name the samples; a sample seen twice counts once.
        """
        if values.shape != sample_ids.shape or values.ndim != 1:
            raise ValueError(
                f"`values` {tuple(values.shape)} and `sample_ids` {tuple(sample_ids.shape)} must both be (B,): "
                "one value and one id a sample."
            )
        if sample_ids.is_floating_point():
            raise ValueError(f"`sample_ids` must be whole numbers, got {sample_ids.dtype}; pass the data set's index.")
        self.values.append(values.detach().float())
        self.sample_ids.append(sample_ids.detach().long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all processes."""
        if not self.values:
            # a process without a batch would otherwise join the gather of the int64 ids with a float32 tensor
            self.values.append(torch.empty(0, device=self.device))
            self.sample_ids.append(torch.empty(0, dtype=torch.long, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """The quantile as a float32 scalar; NaN when there is no sample."""
        if len(self.values) == 0:  # a list, or one tensor once it is gathered
            return torch.tensor(torch.nan, device=self.device)
        values, sample_ids = dim_zero_cat(self.values).cpu(), dim_zero_cat(self.sample_ids).cpu()  # MPS has no float64
        if values.isnan().any():
            first = sample_ids[values.isnan()][:5].tolist()
            raise ValueError(f"`values` holds NaN, first for the samples {first}; drop or repair them before `update`.")
        return quantile_of_unique(values, sample_ids, self.q).to(self.device)


class PredictionTable(Metric):
    """Collects rows of an evaluation over all ranks; a row that padding repeated counts once.

    >>> table = PredictionTable()
    >>> table.update(torch.tensor([0, 1, 0]), {"error_km": torch.tensor([5.0, 7.0, 5.0])})
    >>> table.compute()["error_km"].tolist()
    [5.0, 7.0]
    """

    full_state_update = False

    def __init__(self, fields: tuple[str, ...] = ("error_km",)) -> None:
        super().__init__()
        self.fields = ("sample_id", *fields)
        for name in self.fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, sample_id: Tensor, values: dict[str, Tensor]) -> None:
        """Adds a batch: ``sample_id`` (B,), each value (B, ...)."""
        for name, value in {"sample_id": sample_id, **values}.items():
            getattr(self, name).append(value.detach())

    def compute(self) -> dict[str, Tensor]:
        """All rows, sorted by ``sample_id``, on the CPU."""
        rows = {name: dim_zero_cat(getattr(self, name)).cpu() for name in self.fields}
        order = torch.argsort(rows["sample_id"], stable=True)
        ids = rows["sample_id"][order]
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        return {name: value[order[first]] for name, value in rows.items()}


def quantile_of_unique(values: Tensor, sample_ids: Tensor, q: float) -> Tensor:
    """Quantile over samples, the first value of each id taken.

    Args:
        values: (N,) without NaN.
        sample_ids: (N,) int64.
        q: share between 0 and 1.

    Returns:
        () float32, NaN for N = 0.

    >>> quantile_of_unique(torch.tensor([4.0, 1.0, 2.0, 4.0]), torch.tensor([3, 1, 2, 3]), q=1.0)
    tensor(4.)
    """
    if values.numel() == 0:
        return torch.tensor(torch.nan, device=values.device)
    order = torch.argsort(sample_ids, stable=True)
    ids = sample_ids[order]
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    ranked = values[order][first].double().sort().values
    position = q * (ranked.numel() - 1)
    below, share = int(position), position - int(position)
    low, high = ranked[below], ranked[min(below + 1, ranked.numel() - 1)]
    # infinite neighbours: inf - inf and 0 * inf would be NaN
    between = low if share == 0 or bool(low == high) else low + (high - low) * share
    return between.float()
