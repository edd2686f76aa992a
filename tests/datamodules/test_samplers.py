from collections import Counter

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from stagewise.datamodules import samplers
from stagewise.datamodules.errors import QuotaError
from stagewise.datamodules.samplers import GroupBalancedBatchSampler

GROUPS = np.random.default_rng(0).permutation(np.repeat(["a", "b", "c"], [90, 10, 7]))
QUOTAS = {"a": 4, "b": 2, "c": 2}


def make(batches=30, groups=GROUPS, quotas=QUOTAS, **options):
    return GroupBalancedBatchSampler(groups, quotas, batches, **options)


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


def mix(batch, groups=GROUPS):
    return Counter(np.asarray(groups)[batch].tolist())


def on_rank(monkeypatch, rank, world):
    monkeypatch.setattr(samplers, "rank_and_world", lambda: (rank, world))


@pytest.mark.parametrize("exhausted", ["cycle", "replace"])
def test_every_batch_holds_the_exact_mix_and_an_epoch_its_length(exhausted):
    sampler = make(exhausted=exhausted)
    for number in range(3):
        batches = epoch(sampler, number)
        assert len(batches) == len(sampler) == 30
        assert all(mix(batch) == QUOTAS for batch in batches)
    assert sampler.batch_size == 8


@pytest.mark.parametrize("exhausted", ["cycle", "replace"])
def test_epochs_differ_and_an_epoch_can_be_replayed(exhausted):
    sampler, again = make(exhausted=exhausted), make(exhausted=exhausted)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert first != second
    assert epoch(sampler, 0) == first
    assert epoch(again, 1) == second  # by a new process that never saw epoch 0
    assert epoch(make(exhausted=exhausted, seed=1), 0) != first


def test_set_epoch_reaches_it_the_way_lightning_calls_it():
    loader = DataLoader(range(len(GROUPS)), batch_sampler=make())
    first = list(loader.batch_sampler)
    loader.batch_sampler.sampler.set_epoch(1)
    assert list(loader.batch_sampler) != first


def test_cycle_shows_every_row_of_a_group_before_it_repeats_one_across_epochs_too():
    sampler, rows = make(batches=7), {g: np.flatnonzero(GROUPS == g) for g in QUOTAS}
    drawn = np.concatenate([np.array(epoch(sampler, number)).ravel() for number in range(12)])
    for group, members in rows.items():
        stream = drawn[GROUPS[drawn] == group]
        cycles = [stream[i : i + len(members)] for i in range(0, len(stream) - len(members) + 1, len(members))]
        assert len(cycles) >= 3
        assert all(sorted(cycle) == members.tolist() for cycle in cycles)
        assert any(not np.array_equal(cycles[0], cycle) for cycle in cycles[1:])


def test_replace_repeats_rows_before_a_group_is_used_up():
    drawn = np.array(epoch(make(batches=5, quotas={"b": 2}, exhausted="replace"), 0)).ravel()
    assert len(drawn) == 10
    assert len(set(drawn.tolist())) < 10


def test_replace_draws_every_row_about_equally_often():
    drawn = np.array(epoch(make(batches=2000, quotas={"b": 2}, exhausted="replace"), 0)).ravel()
    counts = np.array([np.sum(drawn == row) for row in np.flatnonzero(GROUPS == "b")])
    assert counts.sum() == 4000
    assert 320 < counts.min() <= counts.max() < 480  # 400 each, more than 4 standard deviations around it


def test_repeats_per_epoch_counts_what_the_epoch_shows():
    sampler = make(batches=35)
    drawn = Counter(GROUPS[np.array(epoch(sampler, 0)).ravel()].tolist())
    assert sampler.repeats_per_epoch() == pytest.approx({g: drawn[g] / np.sum(GROUPS == g) for g in QUOTAS})


def test_ranks_share_out_the_global_batch_and_each_holds_the_mix(monkeypatch):
    whole = epoch(make(keyed=True), 3)
    parts = []
    for rank in range(2):
        on_rank(monkeypatch, rank, 2)
        parts.append(epoch(make(keyed=True), 3))
    for number, batch in enumerate(whole):
        left, right = parts[0][number], parts[1][number]
        assert mix([row for row, _ in left]) == mix([row for row, _ in right]) == {"a": 2, "b": 1, "c": 1}
        assert sorted(left + right) == sorted(batch)
        assert not {draw for _, draw in left} & {draw for _, draw in right}


@pytest.mark.parametrize(
    ("quotas", "world", "words"),
    [({"a": 5, "b": 2}, 2, "'a' is 5, not divisible by the 2"), ({"a": 4, "b": 2}, 4, "'b' is 2, fewer than the 4")],
)
def test_quotas_that_ranks_cannot_share_are_refused(monkeypatch, quotas, world, words):
    on_rank(monkeypatch, 0, world)
    with pytest.raises(QuotaError, match=words):
        next(iter(make(quotas=quotas)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quotas": {"a": 4, "b": 0}}, "quota of 'b' is 0; give at least 1"),
        ({"quotas": {"a": 4, "b": -2}}, "quota of 'b' is -2"),
        ({"quotas": {"a": 4, "z": 2}}, r"quota of 'z' is 2, but no row has that group; groups: \['a', 'b', 'c'\]"),
        ({"quotas": {}}, "`quotas` is empty"),
        ({"exhausted": "stop"}, "`exhausted` must be 'cycle' or 'replace', got 'stop'"),
        ({"batches": 0}, "`batches_per_epoch` must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused(options, words):
    with pytest.raises(QuotaError, match=words):
        make(**options)


def test_keyed_draws_number_the_samples_of_the_whole_run():
    sampler = make(batches=10, keyed=True)
    draws = [draw for number in range(3) for batch in epoch(sampler, number) for _, draw in batch]
    assert draws == list(range(3 * 10 * 8))
    plain = make(batches=10)
    assert [[row for row, _ in batch] for batch in epoch(sampler, 2)] == epoch(plain, 2)


def test_rows_without_a_quota_are_left_out():
    drawn = np.array(epoch(make(quotas={"a": 3}), 0)).ravel()
    assert set(GROUPS[drawn].tolist()) == {"a"}


def test_random_groups_quotas_and_worlds_keep_all_promises(monkeypatch):
    rng = np.random.default_rng(1)
    for _ in range(25):
        world, n_groups, batches = int(rng.integers(1, 5)), int(rng.integers(1, 6)), int(rng.integers(1, 9))
        groups = rng.permutation(np.concatenate([np.full(rng.integers(1, 30), g) for g in range(n_groups)]))
        quotas = {g: world * int(rng.integers(1, 4)) for g in range(n_groups)}
        number, options = int(rng.integers(0, 50)), {"seed": int(rng.integers(0, 2**32)), "keyed": True}
        seen = []
        for rank in range(world):
            on_rank(monkeypatch, rank, world)
            sampler = make(batches, groups, quotas, exhausted=str(rng.choice(["cycle", "replace"])), **options)
            drawn = epoch(sampler, number)
            assert len(drawn) == batches
            for batch in drawn:
                assert mix([row for row, _ in batch], groups) == {g: q // world for g, q in quotas.items()}
            seen += [draw for batch in drawn for _, draw in batch]
        size = sum(quotas.values()) * batches
        assert sorted(seen) == list(range(number * size, (number + 1) * size))


class Rows(Dataset):
    def __len__(self):
        return len(GROUPS)

    def __getitem__(self, row):
        return torch.tensor(row)


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).append(batch.tolist())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_draws_new_batches_of_the_mix_each_epoch(tmp_path):
    module, quiet = Recorder(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(Rows(), batch_sampler=make(batches=6)))
    assert module.seen == {number: epoch(make(batches=6), number) for number in (0, 1)}
    assert module.seen[0] != module.seen[1]
    assert all(mix(batch) == QUOTAS for batches in module.seen.values() for batch in batches)


def test_lightnings_distributed_re_creation_keeps_the_balanced_draw():
    from lightning.fabric.utilities.data import _replace_dunder_methods
    from lightning.pytorch.utilities.data import _update_dataloader

    with _replace_dunder_methods(DataLoader, "dataset"), _replace_dunder_methods(BatchSampler):
        loader = DataLoader(Rows(), batch_sampler=make(batches=6, seed=3))
    again = _update_dataloader(loader, DistributedSampler(Rows(), num_replicas=2, rank=0))
    assert isinstance(again.batch_sampler, GroupBalancedBatchSampler)
    assert list(again.batch_sampler) == epoch(make(batches=6, seed=3), 0)


def test_lightning_can_copy_one_that_was_made_outside_a_hook():
    from lightning.pytorch.utilities.data import _update_dataloader

    loader = DataLoader(Rows(), batch_sampler=make(batches=6, seed=3, keyed=True))
    again = _update_dataloader(loader, DistributedSampler(Rows(), num_replicas=2, rank=0))
    assert list(again.batch_sampler) == epoch(make(batches=6, seed=3, keyed=True), 0)


def test_groups_come_from_a_column_or_a_callable_as_well():
    import pyarrow as pa

    rows = [{"place": str(group)} for group in GROUPS]
    tables = {"place": [str(group) for group in GROUPS]}, pa.table({"place": [str(group) for group in GROUPS]})
    expected = epoch(make(batches=4), 1)
    for source, key in ((tables[0], "place"), (tables[1], "place"), (rows, lambda row: row["place"])):
        assert epoch(GroupBalancedBatchSampler.by(source, key, QUOTAS, 4), 1) == expected


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(QuotaError, match="no column 'region' to group by"):
        GroupBalancedBatchSampler.by({"place": ["a"]}, "region", {"a": 1}, 1)
