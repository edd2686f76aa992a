import pytest
import torch

from stagewise.datamodules.errors import CheckpointError
from stagewise.lightning_modules.fusion.branch import PictureBranch
from stagewise.lightning_modules.fusion.transfer import load_branch, read_branch

BRANCH = {"name": "test_resnet", "pretrained": False}


def write(path, schema, branch, modality="image", **changes):
    tensors = {f"network.picture.{name}": value for name, value in branch.state_dict().items()}
    own = {"schema": {**schema, **changes}, "modality": modality}
    torch.save({"state_dict": tensors, "fusion": own}, path)
    return str(path)


@pytest.fixture
def whole(schema):
    return {**schema, "splits": {"options": {}, "ids": {"train": ["a"]}}, "key": "k", "permuted": False}


def test_every_tensor_is_carried_over_head_included(whole, tmp_path):
    trained, fresh = PictureBranch(whole, **BRANCH), PictureBranch(whole, **BRANCH)
    assert not torch.equal(trained.head.weight, fresh.head.weight)
    path = write(tmp_path / "a.ckpt", whole, trained)
    load_branch(fresh, read_branch(path, whole), path)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())


def test_a_head_of_another_name_is_refused_and_nothing_is_loaded(whole, tmp_path):
    trained, fresh = PictureBranch(whole, **BRANCH), PictureBranch(whole, **BRANCH)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    tensors = {name.replace("head.", "classifier."): value for name, value in trained.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"head.weight is missing; head.bias is missing; classifier"):
        load_branch(fresh, tensors, "a.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize(
    ("other", "words"),
    [({"head": "coral"}, r"head\.direction\.weight is missing"), ({"name": "test_efficientnet"}, "and [0-9]+ more")],
)
def test_another_architecture_is_refused(whole, other, words):
    tensors = PictureBranch(whole, **BRANCH).state_dict()
    with pytest.raises(CheckpointError, match=words):
        load_branch(PictureBranch(whole, **{**BRANCH, **other}), tensors, "a.ckpt")


def test_a_head_of_another_shape_is_refused(whole):
    two = PictureBranch({**whole, "classes": ["a", "b"]}, **BRANCH)
    with pytest.raises(CheckpointError, match=r"head\.weight is \(2, 96\), not \(3, 96\)"):
        load_branch(PictureBranch(whole, **BRANCH), two.state_dict(), "a.ckpt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"splits": {"options": {"seed": 1}, "ids": {}}}, "other splits than"),
        ({"image": {"px": 64}}, "other image settings than"),
        ({"fold": 1}, "other fold than"),
        ({"key": "another"}, "other data than"),
        ({"permuted": True}, "other labels than"),
    ],
)
def test_a_branch_of_other_data_is_refused_with_the_remedy(whole, tmp_path, changes, words):
    path = write(tmp_path / "a.ckpt", whole, PictureBranch(whole, **BRANCH), **changes)
    with pytest.raises(CheckpointError, match=f"{words}.*modality=image"):
        read_branch(path, whole)


def test_a_checkpoint_of_another_kind_is_refused(whole, tmp_path):
    path = write(tmp_path / "a.ckpt", whole, PictureBranch(whole, **BRANCH), modality="fusion")
    with pytest.raises(CheckpointError, match="is of modality=fusion"):
        read_branch(path, whole)
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="not one of FusionModule"):
        read_branch(str(tmp_path / "b.ckpt"), whole)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_branch(str(tmp_path / "c.ckpt"), whole)
