from collections import Counter

import numpy as np
import pytest
from lightning.pytorch.utilities.data import _update_dataloader
from torch.utils.data import DataLoader, DistributedSampler

from stagewise.datamodules import GroupBalancedBatchSampler, samplers
from stagewise.datamodules.errors import QuotaError
from stagewise.datamodules.shard_sampler import ShardWindowBatchSampler

GROUPS = np.repeat([0, 1, 2], [96, 24, 7])
SHARDS = np.concatenate([np.arange(96) // 8, 12 + np.arange(24) // 8, np.full(7, 15)])
QUOTAS = {0: 4, 1: 2, 2: 2}


def make(batches=30, quotas=QUOTAS, window=2, **options):
    return ShardWindowBatchSampler(GROUPS, quotas, batches, shards=SHARDS, window=window, **options)


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


def stream(sampler, group, epochs):
    drawn = np.concatenate([np.array(epoch(sampler, number)).ravel() for number in range(epochs)])
    return drawn[GROUPS[drawn] == group]


@pytest.mark.parametrize("exhausted", ["cycle", "replace"])
def test_every_batch_holds_the_mix_and_an_epoch_is_a_function_of_its_number(exhausted):
    batches = epoch(make(exhausted=exhausted), 3)
    assert len(batches) == 30 and all(Counter(GROUPS[batch].tolist()) == QUOTAS for batch in batches)
    assert epoch(make(exhausted=exhausted), 3) == batches != epoch(make(exhausted=exhausted), 2)
    assert epoch(make(exhausted=exhausted, seed=1), 3) != batches


@pytest.mark.parametrize("exhausted", ["cycle", "replace"])
def test_a_group_is_drawn_from_a_window_of_its_shards_at_a_time(exhausted):
    drawn = stream(make(exhausted=exhausted), 0, 4)  # 480 rows: five cycles of 96 rows in windows of 16
    windows = [set(SHARDS[drawn[start : start + 16]].tolist()) for start in range(0, 480, 16)]
    assert all(len(shards) <= 2 for shards in windows)
    cycles = [windows[start : start + 6] for start in range(0, 30, 6)]
    assert all(set().union(*cycle) <= set(range(12)) for cycle in cycles)
    assert len({tuple(map(tuple, map(sorted, cycle))) for cycle in cycles}) == 5  # each shuffles its shards anew
    inside = drawn[:16]
    assert not np.array_equal(inside, np.sort(inside))


def test_cycle_shows_every_row_before_it_repeats_one_and_replace_does_not():
    for group, size in enumerate((96, 24, 7)):
        drawn = stream(make(), group, 4)
        assert sorted(drawn[:size].tolist()) == np.flatnonzero(GROUPS == group).tolist()
    drawn = stream(make(exhausted="replace"), 0, 4)
    assert len(set(drawn[:16].tolist())) < 16


def test_one_shard_a_group_gives_the_batches_of_the_whole_group():
    window = ShardWindowBatchSampler(GROUPS, QUOTAS, 30, seed=5, keyed=True, shards=GROUPS, window=1)
    assert epoch(window, 2) == epoch(GroupBalancedBatchSampler(GROUPS, QUOTAS, 30, seed=5, keyed=True), 2)


def test_strata_keep_their_share_of_a_group_all_along():
    options = {"shards": SHARDS, "window": 1, "strata": GROUPS}
    sampler = ShardWindowBatchSampler(np.zeros(127, np.int64), {0: 127}, 1, **options)
    (cycle,) = epoch(sampler, 0)
    assert sorted(cycle) == list(range(127))
    for part in np.array_split(np.array(cycle), 4):
        assert np.abs(np.bincount(GROUPS[part], minlength=3) - np.array([24, 6, 1.75])).max() <= 2
    assert sampler.most_shards() == 2 + 2 + 1


def test_ranks_share_out_the_global_batch(monkeypatch):
    whole, parts = epoch(make(keyed=True), 1), []
    for rank in range(2):
        monkeypatch.setattr(samplers, "rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(epoch(make(keyed=True), 1))
    assert [sorted(left + right) for left, right in zip(*parts)] == [sorted(batch) for batch in whole]
    assert all(Counter(GROUPS[[row for row, _ in batch]].tolist()) == {0: 2, 1: 1, 2: 1} for batch in parts[1])


def test_lightnings_distributed_re_creation_keeps_the_window():
    loader = DataLoader(range(127), batch_sampler=make(keyed=True))
    again = _update_dataloader(loader, DistributedSampler(range(127), num_replicas=2, rank=0))
    assert type(again.batch_sampler) is ShardWindowBatchSampler
    assert again.batch_sampler.fingerprint() == loader.batch_sampler.fingerprint()
    assert list(again.batch_sampler) == list(loader.batch_sampler)


def test_the_fingerprint_names_window_and_shards():
    first = make().fingerprint()
    assert first["window"] == 2 and make(window=3).fingerprint() != first
    moved = ShardWindowBatchSampler(GROUPS, QUOTAS, 30, shards=SHARDS[::-1], window=2)
    assert {key for key, value in moved.fingerprint().items() if first[key] != value} == {"shards"}


def test_what_is_needed_at_a_time_is_counted_and_a_window_of_nothing_refused():
    assert make().most_shards() == 4 + 3 + 1
    with pytest.raises(QuotaError, match=r"`window` must be at least 1 shard, got 0"):
        make(window=0)
