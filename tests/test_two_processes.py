"""Every experiment on two processes: caches made once, and figures equal to one process's."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from stagewise.datamodules import ranks
from stagewise.datamodules.errors import DataMismatchError, QuotaError

HERE = Path(__file__).parent
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("drains", "landslide")]


@pytest.mark.parametrize("family", ["fusion", "geopak", "shards", *SLOW])
def test_a_run_on_two_processes_has_the_figures_of_one(family, tmp_path):
    command = [sys.executable, str(HERE / "two_processes.py"), str(tmp_path), family]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    errors = "\n".join(path.read_text() for path in tmp_path.glob("error_*.txt"))
    assert "RESULT [0, 0, 0]" in done.stdout, errors + done.stderr[-3000:]
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert two.keys() == one.keys() and len(one) > 8
    assert two == pytest.approx(one, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("rows", "world", "size"), [(7, 2, 3), (9, 2, 4), (130, 4, 32), (5, 5, 1), (2, 2, 64), (11, 4, 1)]
)
def test_an_evaluation_shows_each_row_once_in_as_many_batches_on_each_process(rows, world, size, monkeypatch):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank_and_world", lambda rank=rank: (rank, world))
        shares.append(list(ranks.ShareOfRows(rows, size)))
        assert len(shares[-1]) == len(ranks.ShareOfRows(rows, size))
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
    assert len({len(share) for share in shares}) == 1
    assert all(1 <= len(batch) <= size + 1 for share in shares for batch in share)


def test_fewer_rows_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "rank_and_world", lambda: (0, 4))
    with pytest.raises(QuotaError, match="3 rows to evaluate on, fewer than the 4 processes; use fewer"):
        list(ranks.ShareOfRows(3, 64))


def test_a_machine_with_other_data_is_named(monkeypatch):
    def gather(every, own):
        every[:] = [("first", "aa"), own, ("third", "bb")]

    monkeypatch.setattr(ranks, "rank_and_world", lambda: (1, 3))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(platform, "node", lambda: "second")
    with pytest.raises(
        DataMismatchError, match=r"process 2 on 'third' has other data at 'here' than process 0 on 'first'"
    ):
        ranks.check_same_everywhere("here", "aa")
    with pytest.raises(DataMismatchError, match=r"process 1 on 'second'.*hash cc, not aa\); copy the same data"):
        ranks.check_same_everywhere("here", "cc")
