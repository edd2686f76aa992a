import pytest
import torch
from torch.nn import functional as F

from stagewise.datamodules.drains.vocabulary import TYPE_OF_CLASS
from stagewise.datamodules.errors import CheckpointError, StagewiseError
from stagewise.lightning_modules import half_precision
from stagewise.lightning_modules.clip import clip_model
from stagewise.lightning_modules.drains.export import INPUTS, Exported
from stagewise.lightning_modules.drains.network import DrainNetwork


def logits(network, batch):
    with torch.no_grad():
        return network(batch)["logits"]


def test_a_type_gets_no_class_of_another(make, batch):
    out = logits(make(), batch)
    types = torch.as_tensor(TYPE_OF_CLASS)
    assert torch.equal(out.isfinite(), types[:, None] == types)
    torch.testing.assert_close(out.softmax(1).sum(1), torch.ones(9))
    assert out[8].argmax() == 8  # vegetation has no condition


def test_the_logits_are_clips_own_similarities(make, batch, clip):
    network = make(prompts={"templates": ["a photo of {}"], "position": False})
    torch.manual_seed(0)
    plain = clip_model(image_px=32, **clip).eval()
    import open_clip

    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=32)(["a photo of slope drain damaged"])
    with torch.no_grad():
        image = (batch["image"] - network.mean) / network.std
        wanted = (
            plain.logit_scale.exp()
            * plain.encode_image(image, normalize=True)
            @ plain.encode_text(tokens, normalize=True).T
        )
    got = logits(network, batch)
    slope = batch["box_type"] == TYPE_OF_CLASS[7]
    torch.testing.assert_close(got[slope, 7], wanted[slope, 0], rtol=1e-4, atol=1e-4)


def test_prompts_change_the_answer_only_by_what_they_say(make, batch):
    said, unsaid = make(), make(prompts={"position": False})
    moved = {**batch, "position": (batch["position"] + 1) % 3}
    alone = {**batch, "context": torch.zeros_like(batch["context"])}
    assert not torch.equal(logits(said, batch), logits(said, moved))
    assert torch.equal(logits(said, batch), logits(said, alone))
    assert torch.equal(logits(unsaid, batch), logits(unsaid, moved))
    hidden = {**batch, "position": torch.full_like(batch["position"], -1)}
    torch.testing.assert_close(logits(said, hidden), logits(unsaid, batch))
    everything = make(prompts={"context": True})
    assert not torch.equal(logits(everything, batch), logits(everything, alone))


def test_a_live_text_tower_answers_as_the_bank_and_learns(make, batch):
    live = make(text=True)
    torch.testing.assert_close(logits(live, batch), logits(make(), batch), rtol=1e-4, atol=1e-4)
    F.cross_entropy(live(batch)["logits"], batch["label"]).backward()
    assert all(p.grad is not None for p in live.text.parameters())
    assert make().text is None


@pytest.mark.parametrize("options", [{}, {"text": True}, {"lora": {"rank": 2}}, {"features": 8}])
def test_what_is_exported_answers_as_the_network(make, batch, options):
    network = make(**options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # LoRA begins as nothing
    wanted = logits(network, batch).clamp(min=-1e4)
    exported = Exported(network)
    assert exported.network.text is None and exported.network.adapters is None
    with torch.no_grad():
        found = exported(*(batch[name] for name in INPUTS))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(network, batch).clamp(min=-1e4), wanted)


@pytest.mark.parametrize(
    "options", [{"lora": {"rank": 2}}, {"head": "linear", "prompts": {"position": False}}, {"features": 8}]
)
def test_every_addition_starts_as_plain_clip(make, batch, options):
    plain = make(prompts=options.get("prompts"))
    torch.testing.assert_close(logits(make(**options), batch), logits(plain, batch), rtol=1e-4, atol=1e-4)


def test_the_feature_branch_is_of_the_box_alone(make, batch):
    network = make(features=8)
    torch.nn.init.normal_(network.features.layers[-1].weight)
    other = {**batch, "metadata": batch["metadata"].flip(0)}
    assert not torch.equal(logits(network, batch), logits(network, other))
    assert torch.equal(logits(make(), batch), logits(make(), other))


def test_two_views_are_both_seen(make, batch):
    network = make()
    both = {**batch, "view": batch["image"].flip(0)}
    assert not torch.allclose(logits(network, both), logits(network, batch))
    same = {**batch, "view": batch["image"]}
    torch.testing.assert_close(logits(network, same), logits(network, batch), rtol=1e-4, atol=1e-4)


def test_weights_come_from_a_file_and_the_bank_from_its_text_tower(schema, clip, batch, tmp_path):
    torch.manual_seed(5)
    torch.save(clip_model(image_px=32, **clip).state_dict(), tmp_path / "clip.pt")
    first, second = (DrainNetwork(schema, {**clip, "pretrained": str(tmp_path / "clip.pt")}).eval() for _ in range(2))
    assert torch.equal(logits(first, batch), logits(second, batch)) and first.bank.embedding.norm(dim=-1).allclose(
        torch.ones(1)
    )
    with pytest.raises(CheckpointError, match="nowhere"):
        DrainNetwork(schema, {**clip, "pretrained": str(tmp_path / "nowhere.pt")})


def test_a_linear_head_beside_a_text_tower_is_refused(make):
    with pytest.raises(StagewiseError, match="got 'linear' with text=true"):
        make(head="linear", text=True)
    with pytest.raises(StagewiseError, match="got 'mlp'"):
        make(head="mlp")


def test_a_frozen_tower_answers_in_half_precision_where_that_is_faster(make, batch, monkeypatch):
    network = make().eval()
    exact = logits(network, batch)
    network.freeze()
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: False)
    assert torch.equal(logits(network, batch), exact)
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: True)
    half = logits(network, batch)
    seen = exact.isfinite()
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    torch.testing.assert_close(half[seen], exact[seen], rtol=0.05, atol=0.2)
    network.train()
    assert network(batch)["logits"].requires_grad
    assert all(value.dtype == torch.float32 for value in network.state_dict().values() if value.is_floating_point())
