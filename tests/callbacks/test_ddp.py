"""Two processes: what the callbacks, the metric and the sampler promise there, seen in one fit."""

from collections import Counter

import pytest


@pytest.fixture(scope="module")
def ranks(spawned, tmp_path_factory):
    done = spawned("ranks.py", tmp_path_factory.mktemp("ranks"))
    assert done["codes"] == [0, 0]
    return done["ranks"]


def test_the_ranks_never_differ_through_thaw_freeze_and_rollback(ranks):
    for rank in ranks:
        assert rank["outcomes"] == ["kept", "rolled back", "kept", "kept"]
        assert rank["trainable"] == [14, 14, 12, 14, 14, 14]
        assert rank["differences"] == [0.0] * 6
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_the_median_is_that_of_all_samples_though_padding_repeats_one(ranks):
    assert ranks[0]["medians"] == ranks[1]["medians"] == [4.0] * len(ranks[0]["medians"])


def test_a_class_that_one_shard_lacks_is_no_collapse(ranks):
    assert [rank["flag"] for rank in ranks] == [None, None]


def test_every_batch_of_every_rank_holds_the_mix_and_each_epoch_is_drawn_anew(ranks):
    batches = [[tuple(map(int, batch)) for batch in rank["rows"]] for rank in ranks]
    assert len(batches[0]) == len(batches[1]) == 15
    for batch in batches[0] + batches[1]:
        assert Counter(row >= 40 for row in batch) == {False: 2, True: 1}
    assert not [batch for batch, other in zip(*batches) if set(batch) & set(other)]
    assert batches[0][:3] != batches[0][3:6]
