import math

import pytest
import torch
from torch import multiprocessing

from stagewise.lightning_modules.metrics import Quantile


def quantile(values, ids=None, q=0.5):
    metric = Quantile(q=q)
    metric.update(torch.as_tensor(values), torch.arange(len(values)) if ids is None else torch.tensor(ids))
    return metric.compute()


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("samples", [1, 2, 7, 100])
def test_it_agrees_with_torch(q, samples):
    values = torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    assert quantile(values, q=q).item() == pytest.approx(torch.quantile(values, q).item(), rel=1e-6, abs=1e-6)


def test_it_is_the_quantile_of_all_samples_not_of_batches():
    metric = Quantile()
    for start, batch in ((0, [1.0, 1.0, 1.0]), (3, [9.0]), (4, [9.0])):
        metric.update(torch.tensor(batch), torch.arange(start, start + len(batch)))
    assert metric.compute() == 1.0  # the mean of batch medians would be 6.33


def test_a_padded_sample_counts_once():
    assert quantile([1.0, 2.0, 9.0, 9.0, 9.0], ids=[0, 1, 2, 2, 2]) == 2.0


def test_without_samples_it_is_nan_and_float32():
    metric = Quantile()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(metric.compute())
    result = quantile(torch.tensor([1.0, 2.0], dtype=torch.float16))
    assert result.dtype is torch.float32 and result.shape == ()


def test_infinite_values_are_ranked():
    assert quantile([1.0, math.inf, math.inf, math.inf]) == math.inf
    assert quantile([1.0, 2.0, math.inf]) == 2.0


def test_reset_forgets():
    metric = Quantile()
    metric.update(torch.tensor([5.0]), torch.tensor([0]))
    metric.reset()
    metric.update(torch.tensor([1.0]), torch.tensor([0]))
    assert metric.compute() == 1.0


def test_nan_is_an_error_that_names_the_samples():
    with pytest.raises(ValueError, match=r"NaN.*\[7\]"):
        quantile([1.0, math.nan], ids=[3, 7])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="the median is"):
        Quantile(q=50)
    with pytest.raises(ValueError, match="one value and one id"):
        Quantile().update(torch.zeros(2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="whole numbers"):
        Quantile().update(torch.zeros(2), torch.zeros(2))


def _rank(rank, path, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    metric, one_sided = Quantile(), Quantile()
    # a sampler for two ranks over five samples: rank 1 gets sample 0 once more
    values, ids = torch.tensor([[1.0, 7.0, 3.0], [9.0, 4.0, 1.0]]), torch.tensor([[0, 2, 4], [1, 3, 0]])
    metric.update(values[rank], ids[rank])
    if rank == 0:
        one_sided.update(values[0], ids[0])
    results[rank] = [float(metric.compute()), float(one_sided.compute()), len(metric.values)]
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_agree_on_the_exact_median_even_when_one_has_no_sample(tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        workers = [context.Process(target=_rank, args=(rank, tmp_path / "store", results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert dict(results) == {0: [4.0, 3.0, 1], 1: [4.0, 3.0, 1]}
