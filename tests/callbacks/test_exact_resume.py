import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def matrix(exact, folder, chosen=lambda number: True, **options):
    """Resumes from every chosen save of one run: ``{number: (stage, moment, differences)}``, and the saves' places."""
    archive = folder / "archive"
    whole = exact.fit(folder / "whole", io=exact.Archive(archive), **options)
    saves = sorted(archive.iterdir())
    results = {}
    for number, save in enumerate(saves):
        if chosen(number):
            where = exact.describe(save)
            results[number] = (*where, exact.differences(whole, exact.fit(save, **options)))
    return whole, results, saves


def wrong(results):
    return {number: row for number, row in results.items() if row[2]}


def test_the_run_goes_through_a_plateau_and_a_rollback(exact, tmp_path):
    whole = exact.fit(tmp_path)
    assert [row["outcome"] for row in whole["stages"]["stages"]] == ["kept", "kept", "rolled back"]
    assert [row["ended by"] for row in whole["stages"]["stages"]] == ["epochs", "plateau", "epochs"]
    assert whole["best"] == 4 and exact.differences(whole, whole) == []


def test_a_resume_from_some_saves_is_bitwise_the_run_that_was_never_killed(exact, tmp_path):
    _, results, _ = matrix(exact, tmp_path, chosen=lambda number: number % 4 == 0)
    assert len(results) >= 4 and not wrong(results)


@pytest.mark.slow
def test_a_resume_from_every_save_is_bitwise_the_run_that_was_never_killed(exact, tmp_path):
    _, results, saves = matrix(exact, tmp_path)
    assert len(results) == len(saves) and not wrong(results)
    moments = {(stage, moment) for stage, moment, _ in results.values()}
    for stage in ("heads", "plateau", "last"):
        assert {(stage, moment) for moment in ("batch 0", "mid-epoch", "after validation", "epoch end")} <= moments | {
            ("last", "epoch end"),  # the last stage ends with the fit
            ("plateau", "batch 0"),
        }, moments
    assert ("finished", "epoch end") in moments
