import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, WeightedRandomSampler

from stagewise.datamodules import GroupBalancedBatchSampler, ReplayableSampler, ResumableDataLoader, loaders
from stagewise.datamodules.errors import DataMismatchError, StagewiseError


class Drawing:
    """Samples that draw from the three global generators."""

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return torch.tensor([row, torch.rand(1).item(), float(np.random.rand()), random.random()], dtype=torch.float64)


class Whole(Drawing):
    def __getitems__(self, rows):
        return [self[row] for row in rows]


def make(dataset=None, **options):
    return ResumableDataLoader(dataset or Drawing(), **{"batch_size": 3, "shuffle": True, "seed": 1, **options})


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    return [batch.tolist() for batch in loader]


def test_every_sample_comes_once_in_an_order_of_its_own_each_epoch():
    loader = make()
    rows = [[int(row[0]) for batch in epoch(loader, number) for row in batch] for number in range(3)]
    assert all(sorted(order) == list(range(20)) for order in rows)
    assert rows[0] != rows[1] != rows[2] != rows[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seen", [0, 1, 4, 6])
def test_it_goes_on_with_the_very_batches_and_random_numbers(seen, workers):
    whole = epoch(make(), 2)
    loader = make(num_workers=workers)
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    assert [next(batches).tolist() for _ in range(seen)] == whole[:seen]
    again = make(num_workers=workers)
    again.load_state_dict({**loader.state_dict(), "epoch": 2})
    assert [batch.tolist() for batch in again] == whole[seen:]


def test_the_position_is_that_of_the_batch_in_hand_even_of_the_last():
    loader = make()
    for number, _ in enumerate(loader, start=1):
        expected = (0, number) if number < 7 else (1, 0)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == expected


def test_skipped_batches_are_not_loaded():
    class Counting(Drawing):
        loaded = 0

        def __getitem__(self, row):
            Counting.loaded += 1
            return super().__getitem__(row)

    loader = make(Counting())
    loader.load_state_dict({**loader.state_dict(), "batch": 5})
    assert len(list(loader)) == 2 and Counting.loaded == 20 - 5 * 3


def test_a_loaded_position_of_another_epoch_is_dropped():
    loader = make()
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "batch": 5})
    assert len(epoch(loader, 4)) == 7


def test_the_run_s_own_generators_are_left_alone():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    list(make())
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_a_dataset_that_fetches_whole_batches_gives_the_same():
    assert epoch(make(Whole())) == epoch(make())


def test_persistent_workers_draw_each_epoch_anew():
    loader, plain = make(num_workers=1, persistent_workers=True), make()
    assert [epoch(loader, number) for number in (0, 1)] == [epoch(plain, number) for number in (0, 1)]


def test_any_sampler_can_be_replayed():
    sampler = WeightedRandomSampler([1.0] * 10 + [5.0] * 10, 20)
    first, second = (epoch(make(shuffle=None, sampler=sampler), number) for number in (0, 1))
    assert first != second and epoch(make(shuffle=None, sampler=sampler), 1) == second


def test_a_sampler_that_knows_epochs_is_taken_as_it_is():
    sampler = DistributedSampler(range(20), num_replicas=2, rank=0)
    assert make(shuffle=None, sampler=sampler).sampler is sampler


def test_a_balanced_batch_sampler_goes_on_in_the_middle():
    def loader():
        sampler = GroupBalancedBatchSampler([0] * 15 + [1] * 5, {0: 2, 1: 1}, batches_per_epoch=6)
        return ResumableDataLoader(Drawing(), batch_sampler=sampler)

    again = loader()
    again.load_state_dict({**again.state_dict(), "epoch": 0, "batch": 4})
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in loader()][4:]


def test_lightning_s_copy_under_ddp_keeps_the_arguments():
    from lightning.pytorch.utilities.data import _update_dataloader

    sampler = DistributedSampler(range(20), num_replicas=2, rank=1, seed=4)
    copy = _update_dataloader(make(data_key="k", num_workers=0), sampler)
    assert isinstance(copy, ResumableDataLoader) and copy.fingerprint()["data_key"] == "k"
    assert copy.sampler is sampler and len(copy) == 4


def test_processes_share_each_batch_of_one_order(monkeypatch):
    whole = [batch.tolist() for batch in make(batch_size=4, drop_last=True, dataset=range(20))]
    parts = []
    for rank in range(2):
        monkeypatch.setattr(loaders, "rank_and_world", lambda rank=rank: (rank, 2))
        parts.append([batch.tolist() for batch in make(batch_size=4, drop_last=True, dataset=range(20))])
    assert [first + second for first, second in zip(*parts)] == whole


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_size": 4}, "^2 processes cannot share an incomplete last batch; pass drop_last=True"),
        ({"batch_size": 3, "drop_last": True}, "batch_size is 3, not divisible by the 2 processes; take 2 or 4"),
        ({"batch_size": 1, "drop_last": True}, "batch_size is 1, fewer than the 2 processes"),
    ],
)
def test_batches_that_processes_cannot_share_are_refused(monkeypatch, options, words):
    monkeypatch.setattr(loaders, "rank_and_world", lambda: (0, 2))
    with pytest.raises(StagewiseError, match=words):
        list(make(**options))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dataset": range(19)}, "samples: 20 in the checkpoint, 19 here"),
        ({"batch_size": 4}, "batch_size: 3 in the checkpoint, 4 here"),
        ({"seed": 2}, "seed: 1 in the checkpoint, 2 here"),
        ({"data_key": "new"}, "data_key:  in the checkpoint, new here"),
    ],
)
def test_other_data_is_refused_with_each_difference(change, words):
    with pytest.raises(DataMismatchError, match=words):
        make(**change).load_state_dict(make().state_dict())


def test_other_groups_of_the_same_size_are_refused():
    def loader(groups):
        sampler = GroupBalancedBatchSampler(groups, {0: 1, 1: 1}, batches_per_epoch=6)
        return ResumableDataLoader(range(4), batch_sampler=sampler)

    with pytest.raises(DataMismatchError, match="groups: "):
        loader([0, 1, 0, 1]).load_state_dict(loader([0, 0, 1, 1]).state_dict())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"dataset": Stream()}, "map-style"),
        ({"dataset": range(3), "batch_size": None}, "needs `batch_size`"),
        ({"dataset": range(3), "batch_sampler": BatchSampler(range(3), 2, False)}, r"sampler\.set_epoch"),
    ],
)
def test_what_has_no_position_is_refused(options, words):
    with pytest.raises(StagewiseError, match=words):
        ResumableDataLoader(**options)


def test_a_replayable_sampler_has_the_length_of_its_own():
    sampler = ReplayableSampler(WeightedRandomSampler([1.0, 2.0], 5), seed=0)
    assert len(sampler) == len(list(sampler)) == 5
