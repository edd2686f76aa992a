import errno
import os
import random

import pytest
import torch

from stagewise.callbacks import DurableCheckpointIO
from stagewise.callbacks import durable_files as module
from stagewise.callbacks.durable_files import damage_of, load_durably, save_durably


def content(number):
    return {"number": number, "weights": torch.full((5000,), float(number))}


def saved(path, numbers, **options):
    io = DurableCheckpointIO(**options)
    for number in numbers:
        io.save_checkpoint(content(number), path)
    return io


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def number_in(path):
    return torch.load(path, weights_only=True)["number"]


def test_what_was_saved_is_loaded_and_plain_torch_can_read_it(tmp_path):
    path = tmp_path / "deep" / "run.ckpt"
    io = saved(path, [1])
    assert io.load_checkpoint(path)["number"] == number_in(path) == 1 and names(path.parent) == ["run.ckpt"]


@pytest.mark.parametrize(
    "keep, expected",
    [
        (1, {"run.ckpt": 4}),
        (2, {"run.ckpt": 4, "run.previous.ckpt": 3}),
        (3, {"run.ckpt": 4, "run.previous.ckpt": 3, "run.previous_2.ckpt": 2}),
    ],
)
def test_versions_are_kept(tmp_path, keep, expected):
    saved(tmp_path / "run.ckpt", [1, 2, 3, 4], keep=keep)
    assert {name: number_in(tmp_path / name) for name in names(tmp_path)} == expected


def test_one_file_may_keep_another_number_of_versions(tmp_path):
    io = DurableCheckpointIO(keep=1)
    for number in (1, 2, 3):
        io.save_checkpoint(content(number), tmp_path / "run.ckpt", storage_options={"keep": 2})
    assert names(tmp_path) == ["run.ckpt", "run.previous.ckpt"]


def test_a_save_that_was_killed_between_two_names_loses_no_version(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    saved(path, [1, 2, 3], keep=3)

    class Killed(BaseException):
        pass

    for names_taken in (0, 1, 2):  # of the three that a save with three versions takes
        calls = []

        def replace(source, target, calls=calls, allowed=names_taken, real=os.replace):
            if len(calls) == allowed:
                raise Killed
            calls.append(target)
            real(source, target)

        monkeypatch.setattr(module.os, "replace", replace)
        monkeypatch.setattr(module, "_remove_leftovers", lambda path: None)  # a kill cleans nothing up
        before = number_in(path)
        with pytest.raises(Killed):
            save_durably(content(before + 1), path, keep=3)
        assert number_in(path) == before
        monkeypatch.undo()
        save_durably(content(before + 1), path, keep=3)
        kept = [number_in(tmp_path / name) for name in ("run.ckpt", "run.previous.ckpt", "run.previous_2.ckpt")]
        assert kept == [before + 1, before, before - 1]
        assert len(names(tmp_path)) == 3


def test_a_file_system_without_links_keeps_versions_too(tmp_path, monkeypatch):
    def refuse(*_, **options):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(module.os, "link", refuse)
    io = saved(tmp_path / "run.ckpt", [1, 2])
    assert number_in(tmp_path / "run.previous.ckpt") == 1
    (tmp_path / "run.ckpt").unlink()  # killed between the two names
    assert io.load_checkpoint(tmp_path / "run.ckpt")["number"] == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights: torch.load alone does not notice
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, empty, flip])
def test_a_damaged_file_gives_way_to_the_one_before_with_a_warning_that_names_both(tmp_path, caplog, damage):
    io, path = saved(tmp_path / "run.ckpt", [1, 2]), tmp_path / "run.ckpt"
    path.unlink(), save_durably(content(2), path)
    damage(path)
    assert io.load_checkpoint(path)["number"] == 1
    assert "run.ckpt' is damaged (" in caplog.text and "the older" in caplog.text
    assert "run.previous.ckpt'" in caplog.text


def test_torch_load_alone_would_not_see_a_flipped_bit(tmp_path):
    saved(tmp_path / "run.ckpt", [1])
    flip(tmp_path / "run.ckpt")
    assert number_in(tmp_path / "run.ckpt") == 1 and "checksum" in damage_of(tmp_path / "run.ckpt")


def test_without_a_readable_version_the_error_names_every_file(tmp_path):
    io = saved(tmp_path / "run.ckpt", [1, 2])
    for path in tmp_path.iterdir():
        empty(path)
    with pytest.raises(OSError, match=r"run\.ckpt' is damaged.*run\.previous\.ckpt' is damaged.*no older version"):
        io.load_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        io.load_checkpoint(tmp_path / "other.ckpt")


def test_leftovers_of_a_killed_save_go_with_the_next_save(tmp_path):
    path = tmp_path / "run.ckpt"
    saved(path, [1, 2])
    (tmp_path / "run.ckpt.part").write_bytes(b"half")
    (tmp_path / "run.previous.ckpt.part").write_bytes(b"half")
    save_durably(content(3), path, keep=2)
    assert names(tmp_path) == ["run.ckpt", "run.previous.ckpt"]


def test_loading_touches_nothing_so_a_run_may_save_at_the_same_time(tmp_path, monkeypatch):
    saved(tmp_path / "run.ckpt", [1])
    (tmp_path / "run.ckpt.part").write_bytes(b"being written by another process")
    for call in ("unlink", "replace", "link", "open"):
        monkeypatch.setattr(module.os, call, None)  # nothing of the disk but reading
    assert load_durably(tmp_path / "run.ckpt")["number"] == 1
    assert names(tmp_path) == ["run.ckpt", "run.ckpt.part"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_its_bytes_a_file_is_read_right_or_gives_way(tmp_path, seed):
    io, path = saved(tmp_path / "run.ckpt", [1, 2]), tmp_path / "run.ckpt"
    good, draw = path.read_bytes(), random.Random(seed)
    for _ in range(150):
        data = bytearray(good)
        start = draw.choice([0, len(data) - 700, draw.randrange(len(data))])  # the zip's lists stand at its ends
        for position in range(start, min(start + draw.choice([1, 1, 4, 40]), len(data))):
            data[position] = draw.randrange(256)
        path.unlink(), path.write_bytes(data)
        loaded = io.load_checkpoint(path)
        assert loaded["number"] in (1, 2) and torch.equal(loaded["weights"], content(loaded["number"])["weights"])


def test_removing_removes_the_versions(tmp_path):
    saved(tmp_path / "run.ckpt", [1, 2]).remove_checkpoint(tmp_path / "run.ckpt")
    assert names(tmp_path) == []


def test_what_a_file_would_run_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"x": Evil()}, tmp_path / "run.ckpt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        DurableCheckpointIO().load_checkpoint(tmp_path / "run.ckpt")
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_saved_raises_and_leaves_the_good_file(tmp_path):
    io = saved(tmp_path / "run.ckpt", [1])
    with pytest.raises(Exception, match=r"local object|pickle"):
        io.save_checkpoint({"x": lambda: None}, tmp_path / "run.ckpt")
    assert names(tmp_path) == ["run.ckpt"] and number_in(tmp_path / "run.ckpt") == 1


def test_a_target_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        saved(tmp_path / "file" / "run.ckpt", [1])


def test_addresses_and_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"writes local files, got 'memory://run\.ckpt'"):
        DurableCheckpointIO().save_checkpoint({}, "memory://run.ckpt")
    with pytest.raises(ValueError, match="`keep` must be at least 1"):
        DurableCheckpointIO(keep=0)


def test_a_file_system_without_unnamed_files_will_do(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **options):
        if flags & getattr(os, "O_TMPFILE", 0) == getattr(os, "O_TMPFILE", -1):
            raise OSError(errno.EOPNOTSUPP, "no unnamed files here")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(module.os, "open", refuse)
    saved(tmp_path / "run.ckpt", [1, 2])
    assert {name: number_in(tmp_path / name) for name in names(tmp_path)} == {"run.ckpt": 2, "run.previous.ckpt": 1}
