"""What does a balanced epoch cost at a million rows, and how far do its batches stray from the mix?

    python benchmarks/sampler.py            # --rows N, --threads N, --pairs N, --quick

An epoch of 1,300 batches of 64 over rows with the recipe's skew: GroupBalancedBatchSampler against
pytorch-metric-learning's MPerClassSampler (16 of each of 4 classes: it knows no quotas, 7 classes do not divide 64) and
torch's WeightedRandomSampler with weights that have the quotas as their expectation. The deviation is the largest
difference, over all batches and regions of an epoch, between the samples of a region and its quota.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import in_turn, parse, parser_of, ratio, show, spread, write
from torch.utils.data import BatchSampler, WeightedRandomSampler

from stagewise.datamodules import GroupBalancedBatchSampler

SHARE = (58697, 7611, 4810, 3971, 2141, 3265, 967)
QUOTAS = {0: 16, 1: 8, 2: 8, 3: 8, 4: 8, 5: 8, 6: 8}
BATCH, BATCHES, M_PER_CLASS = 64, 1300, 16


def makers(region: NDArray[np.int64], batches: int) -> dict[str, Callable[[], Any]]:
    """Name -> builds the sampler of batches."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    def weighted() -> BatchSampler:
        quota = np.array(list(QUOTAS.values()))
        weights = torch.from_numpy((quota / np.bincount(region))[region])
        return BatchSampler(WeightedRandomSampler(weights, BATCH * batches), BATCH, drop_last=True)

    def per_class() -> BatchSampler:
        return BatchSampler(MPerClassSampler(region, M_PER_CLASS, BATCH, BATCH * batches), BATCH, drop_last=True)

    return {
        "ours": lambda: GroupBalancedBatchSampler(region, QUOTAS, batches),
        "ours, with draw numbers": lambda: GroupBalancedBatchSampler(region, QUOTAS, batches, keyed=True),
        "WeightedRandomSampler": weighted,
        "MPerClassSampler": per_class,
    }


def one_epoch(sampler: Any) -> Callable[[], None]:
    """Goes through an epoch, each time the next one."""
    epochs = iter(range(1_000_000))

    def run() -> None:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(next(epochs))
        for _ in sampler:
            pass

    return run


def worst_deviation(sampler: Any, region: NDArray[np.int64]) -> int:
    """Samples of a region too many or too few, in the worst batch of an epoch."""
    quota = np.array(list(QUOTAS.values()))
    batches = np.array([[key[0] if isinstance(key, tuple) else key for key in batch] for batch in sampler])
    counts = np.stack([(region[batches] == group).sum(1) for group in QUOTAS], 1)
    return int(np.abs(counts - quota).max())


def seconds_to_build(make: Callable[[], Any]) -> tuple[Any, float]:
    """The sampler, and how long its constructor took."""
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def main() -> None:
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parse(parser)
    rows, batches = (20_000, 130) if options.quick else (options.rows, BATCHES)
    region = np.random.default_rng(0).choice(len(SHARE), rows, p=np.array(SHARE) / sum(SHARE))
    built = {name: seconds_to_build(make) for name, make in makers(region, batches).items()}
    samplers = {name: sampler for name, (sampler, _) in built.items()}
    deviation = {name: worst_deviation(sampler, region) for name, sampler in samplers.items()}
    seconds = in_turn({name: one_epoch(sampler) for name, sampler in samplers.items()}, options.pairs)
    rate = {name: spread([batches / s for s in values]) for name, values in seconds.items()}
    ratios = {name: ratio(values, seconds["ours"]) for name, values in seconds.items()}
    table = [
        {
            "sampler": name,
            "batches a second": show(rate[name], "{:,.0f}"),
            "ms an epoch": show(spread(seconds[name]), scale=1e3),
            "times ours": show(ratios[name]),
            "ms to build": f"{built[name][1] * 1e3:.0f}",
            "worst deviation": str(deviation[name]),
        }
        for name in samplers
    ]
    figures = {"batches_per_second": rate, "ratio": ratios, "worst_deviation": deviation, "rows": rows}
    write("sampler", options, figures | {"build_s": {name: s for name, (_, s) in built.items()}}, table)


if __name__ == "__main__":
    main()
