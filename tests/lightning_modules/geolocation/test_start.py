import pytest
import torch

from stagewise.datamodules.errors import CheckpointError
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.start import read_checkpoint


class Trap:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("read", [read_checkpoint, lambda path: load_module(str(path))])
class TestReading:
    def test_a_missing_file_is_named(self, read, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint at '.*gone\.ckpt'; check the path"):
            read(tmp_path / "gone.ckpt")

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
    def test_a_damaged_file_is_named(self, read, tmp_path, content):
        (tmp_path / "bad.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.ckpt' is damaged or no checkpoint"):
            read(tmp_path / "bad.ckpt")

    @pytest.mark.parametrize("content", [[1], {"weights": 1}])
    def test_a_file_of_something_else_is_refused(self, read, tmp_path, content):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match=r"holds no `state_dict`; pass a checkpoint that train\.py wrote"):
            read(tmp_path / "other.ckpt")

    def test_code_in_a_checkpoint_does_not_run(self, read, tmp_path):
        torch.save({"state_dict": {}, "provenance": Trap(tmp_path / "marker")}, tmp_path / "evil.ckpt")
        with pytest.raises(CheckpointError, match=r"evil\.ckpt"):
            read(tmp_path / "evil.ckpt")
        assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("provenance", [{}, {"provenance": {"module": "SegmentationModule"}}])
def test_a_checkpoint_of_an_unknown_task_names_the_known_ones(tmp_path, provenance):
    torch.save({"state_dict": {}, **provenance}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match=r"was not written by train\.py .*known tasks: .*GeolocationModule"):
        load_module(str(tmp_path / "foreign.ckpt"))
