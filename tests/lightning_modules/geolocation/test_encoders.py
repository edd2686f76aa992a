import logging
import pickle
from types import SimpleNamespace
from typing import ClassVar

import open_clip
import pytest
import timm
import torch
from torchvision.models import resnet18

from stagewise.datamodules.errors import CheckpointError
from stagewise.lightning_modules import half_precision
from stagewise.lightning_modules.clip import clip_image_tower
from stagewise.lightning_modules.geolocation.encoders import load_places365, scene_encoder


class Trap:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


# --- CLIP ---


@pytest.fixture
def config(tiny):
    return {k: v for k, v in tiny.CLIP.items() if k not in ("name", "pretrained")}


@pytest.fixture
def whole_clip(config):
    torch.manual_seed(1)
    return open_clip.create_model("ViT-B-16", None, force_image_size=32, **config).eval()


def test_a_clip_file_gives_its_image_tower(whole_clip, config, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(whole_clip.state_dict(), path)
    tower = clip_image_tower("ViT-B-16", pretrained=str(path), image_px=32, **config).eval()
    assert same(tower, whole_clip.visual)
    assert not any("transformer.resblocks" in k and "token_embedding" in k for k in tower.state_dict())
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(tower(image), whole_clip.encode_image(image))
    assert tower(image).shape == (2, tower.output_dim)


def test_a_training_checkpoint_of_open_clip_loads_too(whole_clip, config, tmp_path):
    path = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in whole_clip.state_dict().items()}}, path)
    assert same(clip_image_tower("ViT-B-16", str(path), 32, **config), whole_clip.visual)


def test_position_embeddings_are_resampled_to_the_pictures_side(whole_clip, config, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(whole_clip.state_dict(), path)
    tower = clip_image_tower("ViT-B-16", str(path), 64, **config)
    assert tower.positional_embedding.shape[0] == 1 + (64 // 16) ** 2
    assert torch.equal(tower.conv1.weight, whole_clip.visual.conv1.weight)
    assert tower(torch.rand(1, 3, 64, 64)).isfinite().all()


def refusal_of_clip(path, config):
    with pytest.raises(CheckpointError) as caught:
        clip_image_tower("ViT-B-16", str(path), 32, **config)
    assert str(path) in str(caught.value) and "encoder clip" in str(caught.value)
    return str(caught.value)


def test_a_missing_clip_file_is_named(config, tmp_path):
    refusal_of_clip(tmp_path / "nowhere.pt", config)


def test_a_clip_file_of_another_size_is_refused(whole_clip, config, tmp_path):
    torch.save(whole_clip.state_dict(), tmp_path / "clip.pt")
    refusal_of_clip(tmp_path / "clip.pt", config | {"vision_cfg": config["vision_cfg"] | {"layers": 3}})


def test_a_clip_file_without_a_tensor_is_refused_by_name(whole_clip, config, tmp_path):
    state = whole_clip.state_dict()
    del state["visual.conv1.weight"]
    torch.save(state, tmp_path / "clip.pt")
    assert "visual.conv1.weight" in refusal_of_clip(tmp_path / "clip.pt", config)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_clip_file_is_refused(config, tmp_path, content):
    (tmp_path / "clip.pt").write_bytes(content)
    refusal_of_clip(tmp_path / "clip.pt", config)


def test_code_in_a_clip_file_does_not_run(whole_clip, config, tmp_path):
    torch.save({"state_dict": whole_clip.state_dict(), "extra": Trap(tmp_path / "marker")}, tmp_path / "clip.pt")
    refusal_of_clip(tmp_path / "clip.pt", config)
    assert not (tmp_path / "marker").exists()


def test_logging_works_again_after_a_clip_model_was_made_or_refused(config, tmp_path, caplog):
    with pytest.raises(CheckpointError):
        clip_image_tower("ViT-B-16", str(tmp_path / "nowhere.pt"), 32, **config)
    clip_image_tower("ViT-B-16", None, 32, **config)
    logging.getLogger("anything").warning("heard")
    assert "heard" in caplog.text and "random weights, because pretrained=null" in caplog.text


def test_a_logging_level_that_the_caller_set_stays(config):
    logging.disable(logging.ERROR)
    try:
        clip_image_tower("ViT-B-16", None, 32, **config)
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("name", "pretrained", "given", "used"),
    [
        ("ViT-B-16", "openai", None, True),
        ("ViT-B-16", "laion2b_s34b_b88k", None, False),
        ("ViT-B-16", None, None, False),
        ("ViT-B-16", "/some/file.pt", None, False),
        ("ViT-B-16", "/some/file.pt", True, True),
    ],
)
@pytest.mark.parametrize("load", [True, False])
def test_the_activation_is_the_one_that_the_weights_were_trained_with(name, pretrained, given, used, load, monkeypatch):
    calls = []

    def create_model(*args, **options):  # no weights are fetched
        calls.append((args, options))
        return SimpleNamespace(visual=torch.nn.Identity())

    monkeypatch.setattr(open_clip, "create_model", create_model)
    clip_image_tower(name, pretrained, 224, load=load, quick_gelu=given)
    (args, options) = calls[0]
    assert options["force_quick_gelu"] is used
    assert args == (name, pretrained if load else None) and options["require_pretrained"] is (load and bool(pretrained))


def test_the_activation_reaches_the_network(config):
    quick = clip_image_tower("ViT-B-16", None, 32, quick_gelu=True, **config)
    plain = clip_image_tower("ViT-B-16", None, 32, **config)
    kinds = [{type(m).__name__ for m in tower.modules() if "GELU" in type(m).__name__} for tower in (quick, plain)]
    assert kinds == [{"QuickGELU"}, {"GELU"}]


# --- Places365 ---


def places_file(path, arch="resnet18", counters=True, **changes):
    """The layout of the published file: wrapped in DataParallel, with a classifier of 365 scenes."""
    torch.manual_seed(2)
    model = resnet18(num_classes=365)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = {f"module.{k}": v for k, v in model.state_dict().items() if counters or "num_batches" not in k}
    for key, value in changes.items():
        name = f"module.{key.replace('__', '.')}"
        state.pop(name) if value is None else state.update({name: value})
    torch.save({"epoch": 90, "arch": arch, "state_dict": state, "best_prec1": 54.7}, path)
    return model.eval()


@pytest.mark.parametrize("counters", [True, False])
def test_a_places365_file_loads_exactly(tmp_path, counters):
    published = places_file(tmp_path / "resnet18_places365.pth.tar", counters=counters)
    encoder = scene_encoder("resnet18", str(tmp_path / "resnet18_places365.pth.tar")).eval()
    mine, theirs = encoder.state_dict(), published.state_dict()
    assert set(theirs) - set(mine) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items() if "num_batches" not in k)
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(published.fc(encoder(image)), published(image), atol=1e-4, rtol=1e-4)
    assert encoder(image).shape == (2, encoder.num_features)


def test_a_file_as_python_two_wrote_it_loads(tmp_path):
    class Pickler(pickle._Pickler):
        """Protocol 2 with byte strings, as in the published file of 2017."""

        dispatch: ClassVar = dict(pickle._Pickler.dispatch)

        def save_str(self, text):
            raw = text.encode()
            if len(raw) > 255:
                return pickle._Pickler.save_str(self, text)
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
            self.memoize(text)

        dispatch[str] = save_str

    old = SimpleNamespace(
        __name__="old", Pickler=Pickler, dump=lambda value, file, protocol: Pickler(file, protocol).dump(value)
    )
    published = places_file(tmp_path / "new.pth.tar", counters=False)
    content = torch.load(tmp_path / "new.pth.tar", weights_only=True)
    torch.save(content, tmp_path / "old.pth.tar", old, pickle_protocol=2, _use_new_zipfile_serialization=False)
    encoder = scene_encoder("resnet18", str(tmp_path / "old.pth.tar"))
    assert torch.equal(encoder.conv1.weight, published.conv1.weight)


def test_the_names_of_resnet50_are_those_of_the_file():
    with torch.device("meta"):
        from torchvision.models import resnet50

        published, ours = (
            resnet50(num_classes=365).state_dict(),
            timm.create_model("resnet50", num_classes=0).state_dict(),
        )
    assert {k: v.shape for k, v in published.items() if not k.startswith("fc.")} == {
        k: v.shape for k, v in ours.items()
    }


def test_a_plain_state_dict_loads(tmp_path, tiny):
    options = {k: v for k, v in tiny.SCENE.items() if k not in ("name", "weights")}
    source = timm.create_model("resnet10t", num_classes=0, **options)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    assert same(scene_encoder("resnet10t", str(tmp_path / "weights.pt"), **options), source)


def refusal(path, model=None):
    with pytest.raises(CheckpointError) as caught:
        load_places365(model or timm.create_model("resnet18", num_classes=0), str(path))
    assert str(path) in str(caught.value) and "encoder scene" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "bn1.running_mean"])
def test_a_missing_tensor_is_named(tmp_path, key):
    places_file(tmp_path / "file.tar", **{key.replace(".", "__"): None})
    assert f"missing ['{key}']" in refusal(tmp_path / "file.tar")


def test_a_tensor_of_another_shape_is_named_and_nothing_is_loaded(tmp_path):
    places_file(tmp_path / "file.tar", layer2__0__conv1__weight=torch.zeros(3, 3))
    model = timm.create_model("resnet18", num_classes=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert "layer2.0.conv1.weight" in refusal(tmp_path / "file.tar", model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_superfluous_tensor_is_named(tmp_path):
    places_file(tmp_path / "file.tar", layer9__weight=torch.zeros(3))
    assert "layer9.weight" in refusal(tmp_path / "file.tar")


def test_a_file_of_another_architecture_is_refused(tmp_path):
    places_file(tmp_path / "file.tar")
    refusal(tmp_path / "file.tar", timm.create_model("resnet10t", num_classes=0))


def test_a_missing_places_file_names_the_option(tmp_path):
    assert "scene.weights=" in refusal(tmp_path / "nowhere.tar")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": 3}, {"conv1.weight": "text"}])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.tar")
    refusal(tmp_path / "file.tar")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_damaged_places_file_is_refused(tmp_path, content):
    (tmp_path / "file.tar").write_bytes(content)
    refusal(tmp_path / "file.tar")


def test_code_in_a_places_file_does_not_run(tmp_path):
    torch.save({"state_dict": {}, "arch": Trap(tmp_path / "marker")}, tmp_path / "file.tar")
    refusal(tmp_path / "file.tar")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "file.tar", weights_only=False)["arch"].close()  # a careless reader runs it
    assert (tmp_path / "marker").exists()


def test_random_weights_are_announced_unless_a_checkpoint_brings_them(tiny, caplog):
    scene_encoder(**tiny.SCENE)
    assert "random weights, because weights=null" in caplog.text
    caplog.clear()
    scene_encoder(**tiny.SCENE, load=False)
    scene_encoder(**(tiny.SCENE | {"weights": "/no/such/file"}), load=False)
    assert not caplog.text


def test_half_precision_is_chosen_by_the_device(monkeypatch):
    monkeypatch.undo()  # the fixture that turns it off
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert half_precision.runs_bf16_faster(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not half_precision.runs_bf16_faster(torch.device("cpu"))
    assert not half_precision.runs_bf16_faster(torch.device("mps"))
