import functools

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from stagewise.datamodules.errors import CheckpointError, StagewiseError
from stagewise.lightning_modules.landslide.attention import CBAM
from stagewise.lightning_modules.landslide.heads import ClassHead
from stagewise.lightning_modules.landslide.network import LandslideNetwork
from stagewise.lightning_modules.landslide.objective import LandslideObjective
from stagewise.lightning_modules.landslide.ordinal import class_probabilities
from stagewise.lightning_modules.optim import GroupedOptimizer

SMALL = {"encoder": "tu-resnet10t", "decoder_channels": (16, 8, 8)}
B0 = "efficientnet-b0"  # small, and of the recipe's family
HEADS = ("softmax", "coral", "corn")


def small(channels=4, classes=3, seed=0, **options):
    torch.manual_seed(seed)
    return LandslideNetwork(channels, classes, **SMALL | options).eval()


def picture(channels=4, side=(32, 40), seed=0):
    return torch.randn(2, channels, *side, generator=torch.Generator().manual_seed(seed))


def answer(network, image):
    with torch.no_grad():
        return network(image)


# --- shapes and heads ---


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_head_gives_logits_whose_softmax_are_ordered_probabilities(kind, classes):
    out = answer(small(classes=classes, head=kind), picture())
    p = class_probabilities(out)
    assert out["logits"].shape == p.shape == (2, classes, 32, 40)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 32, 40))
    extra = {"softmax": None, "coral": "levels", "corn": "conditionals"}[kind]
    assert set(out) == {"logits"} | ({extra} if extra else set())
    if extra:
        assert out[extra].shape == (2, classes - 1, 32, 40)


@pytest.mark.parametrize("kind", HEADS)
def test_before_the_unet_has_learned_a_pixel_path_answers_from_the_pixel_alone(kind):
    network, image = small(head=kind, pixel_path=True), picture()
    torch.nn.init.normal_(network.pixel.weight)
    out = answer(network, image)["logits"]
    rearranged = answer(network, image.flip(-1, -2))["logits"].flip(-1, -2)
    shuffled = answer(network, image[..., torch.randperm(40)])["logits"]
    torch.testing.assert_close(out, rearranged)
    assert not torch.allclose(out, shuffled) and torch.allclose(
        out.mean((0, 2, 3)), shuffled.mean((0, 2, 3)), atol=1e-4
    )
    if kind == "softmax":
        linear = torch.einsum("kc,bchw->bkhw", network.pixel.weight[:, :, 0, 0], image)
        torch.testing.assert_close(out, linear + network.head.score.bias.view(-1, 1, 1))


def test_beside_a_pixel_path_the_unet_learns_from_its_second_step_on():
    network = small(pixel_path=True).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for learns in (False, True):
        optimizer.zero_grad()
        network(picture())["logits"][:, 0].square().mean().add(network(picture())["logits"][:, 1].mean()).backward()
        deep = max(float(p.grad.abs().max()) for p in network.encoder.parameters())
        assert (deep > 0) == learns
        optimizer.step()


def test_a_coral_head_is_one_score_with_falling_biases_that_start_even():
    head = ClassHead(8, 5, "coral", dropout=0.0)
    out = head(torch.randn(1, 8, 6, 6))
    steps = out["levels"].diff(dim=1)
    torch.testing.assert_close(steps, steps[..., :1, :1].expand_as(steps))  # the same everywhere: one shared score
    assert (steps < 0).all()
    even = head(torch.zeros(1, 8, 6, 6))["logits"].softmax(1)
    torch.testing.assert_close(even, torch.full_like(even, 0.2))


@pytest.mark.parametrize("side", [(32, 40), (33, 45), (17, 70), (1, 1), (5, 64)])
def test_any_side_is_padded_inside_and_cropped(side):
    assert answer(small(), picture(side=side))["logits"].shape == (2, 3, *side)


def test_padding_repeats_the_border_and_leaves_no_trace_at_the_crop():
    network = small(attention=False)
    x = picture(side=(24, 32))
    by_hand = torch.nn.functional.pad(x[..., :20, :27], (0, 5, 0, 4), mode="replicate")
    ours = answer(network, x[..., :20, :27])["logits"]
    torch.testing.assert_close(ours, answer(network, by_hand)["logits"][..., :20, :27])
    assert not torch.allclose(ours, answer(network, x)["logits"][..., :20, :27])


def test_the_recipes_encoder_takes_28_channels():
    torch.manual_seed(0)
    network = LandslideNetwork(28, 3)
    parts = LandslideObjective(3)(network(picture(28, (64, 64))[:1]), torch.ones(1, 64, 64, dtype=torch.long))
    parts["total"].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == []  # nothing idle: DDP would refuse it
    assert network.encoder._conv_stem.weight.shape[1] == 28 and network.attention.mlp[0].in_features == 448
    assert network.head.dropout.p == 0.4


# --- normalisation ---


def test_normalisation_is_inside_and_travels_in_the_state_dict():
    mean, std = [100.0, 0.0, -3.0, 5.0], [50.0, 1.0, 0.1, 2.0]
    ours, bare = small(statistics={"mean": mean, "std": std}), small()
    x = picture()
    physical = x * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    torch.testing.assert_close(answer(ours, physical)["logits"], answer(bare, x)["logits"], atol=1e-4, rtol=1e-4)
    bare.load_state_dict(ours.state_dict())
    torch.testing.assert_close(answer(bare, physical)["logits"], answer(ours, physical)["logits"])


def test_nodata_counts_as_the_mean_and_no_nan_comes_out():
    network = small(statistics={"mean": [100.0, 0.0, 0.0, 0.0], "std": [50.0, 1.0, 1.0, 1.0]})
    x = picture()
    x[:, 0] = torch.nan
    filled = x.clone()
    filled[:, 0] = 100.0
    out = answer(network, x)["logits"]
    assert out.isfinite().all()
    torch.testing.assert_close(out, answer(network, filled)["logits"])
    assert answer(network, torch.full_like(x, torch.nan))["logits"].isfinite().all()


def test_values_beyond_those_of_train_are_held_to_them():
    bounds = {"low": [0.0, -1.0, 0.0, 0.0], "high": [1.0, 1.0, 0.0, 3.0]}  # the third never varied: a class unseen
    network, x = small(statistics=bounds), picture() * 3
    held = x.clone()
    for i, (low, high) in enumerate(zip(*bounds.values())):
        held[:, i] = x[:, i].clamp(low, high)
    torch.testing.assert_close(answer(network, x)["logits"], answer(network, held)["logits"])
    assert not torch.allclose(answer(network, x)["logits"], answer(small(), x)["logits"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": {"mean": [0.0, 1.0]}}, "`mean` has 2 numbers, there are 4 channels"),
        (
            {"statistics": {"mean": [0.0, float("nan"), 0.0, 0.0]}},
            r"`mean` must be numbers, and is not in channel\(s\) \[1\]",
        ),
        ({"statistics": {"std": [1.0, 1.0, 1.0, 0.0]}}, r"`std` must be positive, and is not in channel\(s\) \[3\]"),
        ({"head": "sigmoid"}, "`head` must be one of softmax, coral, corn, got 'sigmoid'"),
        ({"dropout": 40}, "`dropout` must be a share"),
        ({"classes": 1}, "`classes` must be at least 2"),
        ({"encoder": "resnet17"}, "network.encoder='resnet17'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(StagewiseError, match=message):
        LandslideNetwork(**{"channels": 4, "classes": 3, **SMALL, **options})


# --- attention and dropout ---


def test_attention_sits_on_the_deepest_features_alone():
    network = small()
    assert isinstance(network.attention, CBAM)
    seen = []
    network.attention.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    features = []
    network.decoder.register_forward_pre_hook(lambda module, args: features.extend(args[0]))
    answer(network, picture(side=(32, 32)))
    ((before, after),) = seen
    assert before.shape[-2:] == (4, 4) and features[-1] is after and not torch.equal(before, after)
    assert isinstance(small(attention=False).attention, torch.nn.Identity)


def test_dropout_really_runs_before_the_head():
    """In the eval mode of everything else the answers differ by Monte-Carlo dropout alone, and only there."""
    network, x = small(), picture()
    statistics = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    with network.mc_dropout():
        samples = torch.stack([answer(network, x)["logits"].softmax(1) for _ in range(4)])
        assert not any(m.training for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert samples.std(0).amax((1, 2, 3)).min() > 1e-3
    quiet = torch.stack([answer(network, x)["logits"] for _ in range(2)])
    assert torch.equal(quiet[0], quiet[1])
    with network.mc_dropout(on=False):
        assert torch.equal(answer(network, x)["logits"], quiet[0])
    assert all(torch.equal(network.state_dict()[name], value) for name, value in statistics.items())


def test_mc_dropout_leaves_the_mode_that_it_found_even_after_an_error():
    for mode in (True, False):
        network = small().train(mode)
        with pytest.raises(RuntimeError, match="stop"), network.mc_dropout():
            raise RuntimeError("stop")
        assert network.head.dropout.training is mode


def test_mc_dropout_without_dropout_is_refused():
    network = small(dropout=0.0)
    with pytest.raises(StagewiseError, match="mc_dropout needs dropout"), network.mc_dropout():
        pass
    with network.mc_dropout(on=False):
        pass


@pytest.mark.parametrize("kind", HEADS)
def test_the_parts_are_groups_of_the_optimizer(kind):
    network = small(head=kind)
    groups = {name: {"modules": [name], "lr": 1e-3} for name in ("encoder", "decoder", "attention", "head")}
    optimizer = GroupedOptimizer(functools.partial(torch.optim.AdamW), groups)(network)["optimizer"]
    counts = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    assert all(counts) and sum(counts) == sum(p.numel() for p in network.parameters())


# --- weights of the encoder ---


@pytest.fixture(scope="module")
def state():
    """An encoder in the layout of the published files: for RGB, with its classifier."""
    torch.manual_seed(7)
    encoder = smp.encoders.get_encoder(B0, weights=None, depth=3)
    return {**encoder.state_dict(), "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "wrapped.pth")
    torch.save({k: v for k, v in state.items() if k != "_blocks.3._bn0.weight"}, folder / "short.pth")
    torch.save({"model": small}, folder / "pickled.pth")
    torch.save([1, 2], folder / "list.pth")
    (folder / "torn.pth").write_bytes((folder / "model.pth").read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("name", "channels"), [("model.safetensors", 5), ("wrapped.pth", 1), ("model.pth", 3), ("model.pth", 5)]
)
def test_a_file_is_loaded_and_its_first_convolution_widened_as_smp_does(files, state, name, channels):
    loaded = small(channels, encoder=B0, weights=str(files / name)).encoder.state_dict()
    reference = smp.encoders.get_encoder(B0, weights=None, depth=3)
    reference.load_state_dict(dict(state))
    reference.set_in_channels(channels, pretrained=True)
    expected = {k: v for k, v in reference.state_dict().items() if not k.startswith(("_conv_head", "_bn1"))}  # idle
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_a_grey_raster_repeated_over_all_channels_looks_like_a_grey_picture(files):
    rgb, six = (small(c, encoder=B0, weights=str(files / "model.pth")).encoder for c in (3, 6))
    grey = picture(1)
    with torch.no_grad():
        torch.testing.assert_close(six(grey.repeat(1, 6, 1, 1))[1], rgb(grey.repeat(1, 3, 1, 1))[1])


def test_a_file_of_timms_layout_is_loaded_into_a_tu_encoder(tmp_path):
    import timm

    torch.manual_seed(3)
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "timm.pth")
    state = torch.load(tmp_path / "timm.pth", weights_only=True)
    network = small(5, encoder="tu-resnet10t", weights=str(tmp_path / "timm.pth"))
    own = network.encoder.model.state_dict()
    same = [key for key in own if key in state and own[key].shape == state[key].shape]
    assert "layer1.0.conv1.weight" in same and all(torch.equal(own[key], state[key]) for key in same)
    assert network.encoder.model.conv1[0].weight.shape[1] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pth", "no file '.*absent.pth'; network.weights is a file, a name such as imagenet, or null"),
        ("torn.pth", "torn.pth' is no readable file of weights"),
        ("pickled.pth", "pickled.pth' is no readable file of weights"),
        ("list.pth", "holds no state dict but a list"),
        ("short.pth", "short.pth' does not fit the encoder efficientnet-b0: .*_blocks.3._bn0.weight"),
    ],
)
def test_a_bad_file_is_named(files, name, message):
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        small(encoder=B0, weights=str(files / name))


def test_a_file_of_another_encoder_is_refused(files):
    with pytest.raises(CheckpointError, match="does not fit the encoder efficientnet-b1"):
        small(encoder="efficientnet-b1", weights=str(files / "model.pth"))


def test_a_named_file_comes_through_the_hub(files, monkeypatch):
    asked = []

    def fetch(repository, filename, revision=None, **_):
        asked.append((repository, filename))
        return str(files / filename)

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fetch)
    hub, disk = (small(5, encoder=B0, weights=w) for w in ("imagenet", str(files / "model.pth")))
    assert ("smp-hub/efficientnet-b0.imagenet", "model.safetensors") in asked
    assert torch.equal(hub.encoder._conv_stem.weight, disk.encoder._conv_stem.weight)


def test_an_unreachable_hub_is_one_clear_error_and_never_random_weights(monkeypatch):
    def fail(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand a long story")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fail)
    with pytest.raises(
        CheckpointError, match=r"weights='imagenet' of the encoder efficientnet-b0 .*network.weights=FILE"
    ):
        small(encoder=B0, weights="imagenet")


def test_a_name_that_smp_does_not_know_is_refused_before_any_download():
    with pytest.raises(CheckpointError, match=r"imagenet22k.*cannot be had"):
        small(encoder=B0, weights="imagenet22k")
