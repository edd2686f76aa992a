import pytest
import torch
from torch import nn

from stagewise.datamodules.errors import CheckpointError, StagewiseError
from stagewise.lightning_modules.fusion.branch import CoralHead, PictureBranch
from stagewise.lightning_modules.fusion.network import FusionNetwork

BRANCH = {"name": "test_resnet", "pretrained": False}


def make(schema, **options):
    torch.manual_seed(0)
    return FusionNetwork(schema, branch=BRANCH, **options).eval()


def batch(rows=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    metadata = torch.rand(rows, 3, generator=g).softmax(1)
    return {
        "image": torch.rand(rows, 1, 32, 32, generator=g),
        "has_image": torch.ones(rows, dtype=torch.bool),
    }, metadata


@pytest.mark.parametrize("kind", ["average", "tuned", "stacking", "concat"])
def test_a_row_without_one_source_is_answered_by_the_other(schema, kind):
    network = make(schema, rule={"kind": kind})
    given, metadata = batch(4)
    given["has_image"][[1, 3]] = False
    metadata[[2, 3]] = torch.nan
    out = network(given, metadata)
    p = out["probability"]
    assert torch.equal(p[1], metadata[1])
    assert torch.equal(p[2], out["picture"][2])
    assert torch.allclose(p[3], torch.tensor([0.25, 0.5, 0.25]))  # the classes' shares in train
    assert torch.allclose(p.sum(1), torch.ones(4)) and out["picture"][1].isnan().all()


def test_the_fixed_rule_is_the_weighted_sum_of_both_branches(schema):
    network, (given, metadata) = make(schema), batch()
    out = network(given, metadata)
    assert torch.allclose(out["probability"], 0.7 * metadata + 0.3 * network.picture(given["image"])["probability"])


def test_gradients_reach_the_branch_and_are_finite_beside_rows_without_picture(schema):
    network, (given, metadata) = make(schema).train(), batch()
    given["has_image"][0] = False
    metadata[1] = torch.nan
    network(given, metadata)["probability"][:, 0].log().sum().backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


def test_a_picture_that_is_not_there_enters_no_statistics(schema):
    network, (given, metadata) = make(schema).train(), batch()
    given["has_image"][:3] = False
    changed = {**given, "image": given["image"].clone()}
    changed["image"][:3] = 7.0
    assert torch.equal(network(given, metadata)["probability"], network(changed, metadata)["probability"])
    given["has_image"][:] = False
    assert torch.equal(network(given, metadata)["probability"], metadata)


def test_probabilities_pass_no_batchnorm(schema):
    network = make(schema)
    norms = [name for name, part in network.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(name.startswith("picture.body.") for name in norms)


def test_metadata_alone_has_no_parameter_and_the_image_no_rule(schema):
    given, metadata = batch()
    alone = make(schema, modality="metadata")
    assert not list(alone.parameters()) and torch.equal(alone(given, metadata)["probability"], metadata)
    image = make(schema, modality="image")
    assert torch.equal(
        image(given, metadata)["probability"], image(given, torch.full_like(metadata, torch.nan))["probability"]
    )
    assert {name.split(".")[0] for name, _ in image.named_parameters()} == {"picture"}


def test_the_brightest_pixel_changes_no_other_answer_than_its_own(schema):
    """Absolute values are the signal: the same field 0.2 warmer is another picture."""
    branch = make(schema, modality="image").picture
    field = torch.rand(1, 1, 32, 32) * 0.5
    assert not torch.allclose(branch(field)["probability"], branch(field + 0.2)["probability"], atol=1e-4)
    assert torch.equal(
        branch(torch.cat([field, field + 0.4]))["probability"][:1], branch(torch.cat([field, field]))["probability"][:1]
    )


def test_coral_levels_fall_whatever_the_weights_and_its_probabilities_sum_to_1(schema):
    head = CoralHead(4, 5)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=5.0)
    assert (head(torch.randn(20, 4)).diff(dim=1) <= 0).all()
    out = PictureBranch(schema, **BRANCH, head="coral").eval()(batch()[0]["image"])
    assert out["levels"].shape == (6, 2) and torch.allclose(out["probability"].sum(1), torch.ones(6), atol=1e-5)


def test_weights_of_a_file_are_taken_over(schema, tmp_path):
    branch = PictureBranch(schema, **BRANCH)
    torch.save(branch.body.state_dict(), tmp_path / "body.pt")
    again = PictureBranch(schema, "test_resnet", pretrained=str(tmp_path / "body.pt"))
    assert all(torch.equal(a, b) for a, b in zip(branch.body.parameters(), again.body.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"name": "no_such_network"}, CheckpointError, "branch.name='no_such_network'"),
        ({"pretrained": "no/file.pt"}, CheckpointError, "no weights at"),
        ({"head": "votes"}, StagewiseError, "branch.head must be one of"),
    ],
)
def test_a_branch_that_cannot_be_made_says_why(schema, options, error, words):
    with pytest.raises(error, match=words):
        PictureBranch(schema, **{**BRANCH, **options})


def test_an_unknown_modality_is_refused(schema):
    with pytest.raises(StagewiseError, match="modality must be one of"):
        make(schema, modality="sound")
