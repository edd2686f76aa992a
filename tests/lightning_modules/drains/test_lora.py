import pytest
import torch
from torch import nn

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.drains.lora import LowRankAdapters


def test_only_the_adapters_learn_and_the_tower_stays_as_it_was_published(make, batch):
    network = make(lora={"rank": 2})
    before = {name: value.clone() for name, value in network.visual.state_dict().items()}
    optimizer = torch.optim.SGD(network.adapters.parameters(), lr=1.0)
    for _ in range(2):  # the first step moves `up` alone
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch)["logits"], batch["label"]).backward()
        optimizer.step()
    assert all(p.abs().sum() > 0 for p in network.adapters.up)
    assert all(torch.equal(value, before[name]) for name, value in network.visual.state_dict().items())
    assert set(network.visual.state_dict()) == set(make().visual.state_dict())


def test_merged_matrices_answer_the_same(make, batch):
    network = make(lora={"rank": 2, "alpha": 3.0})
    for parameter in network.adapters.up:
        nn.init.normal_(parameter, std=0.1)
    image = batch["image"]
    with torch.no_grad():
        adapted, plain = network.adapters(network.visual, image), network.visual(image)
        network.adapters.merge(network.visual)
        torch.testing.assert_close(network.visual(image), adapted)
    assert not torch.allclose(plain, adapted, atol=1e-3)


def test_every_matrix_of_the_blocks_is_changed(make):
    network = make(lora={"rank": 2})
    kinds = {name.split(".", 3)[-1] for name in network.adapters.names}
    assert kinds == {"attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert len(network.adapters.names) == 3 * 4


@pytest.mark.parametrize(
    "rank, tower, words", [(0, nn.Linear(2, 2), "at least 1"), (2, nn.Linear(2, 2), "transformer")]
)
def test_what_cannot_be_adapted_is_refused(rank, tower, words):
    with pytest.raises(StagewiseError, match=words):
        LowRankAdapters(tower, rank)
