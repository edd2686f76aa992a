"""The small CLIP that a demonstration starts from."""

import numpy as np
import pytest
import torch

from stagewise.lightning_modules.clip import clip_model
from stagewise.lightning_modules.drains.pretraining import clip_of_captions, contrast

IMAGE = {"px": 32, "margin": 0.1, "pad": "mean"}
SETTINGS = {"pairs": 24, "epochs": 2, "batch_size": 12}


@pytest.fixture
def drawn():
    """Red pictures and green ones, and how often they were asked for."""
    asked = []

    def draw(count, seed, *, px):
        asked.append((count, seed, px))
        pictures = np.zeros((count, 3, px, px), np.uint8)
        pictures[::2, 0], pictures[1::2, 1] = 255, 255
        return pictures, ["a red square", "a green square"] * (count // 2)

    draw.asked = asked
    return draw


def test_it_is_trained_once_for_the_same_settings_and_again_for_others(clip, drawn, tmp_path):
    plain = {name: value for name, value in clip.items() if name != "pretrained"}
    cpu = torch.device("cpu")
    first = clip_of_captions(plain, IMAGE, drawn, str(tmp_path), cpu, **SETTINGS)
    assert clip_of_captions(plain, IMAGE, drawn, str(tmp_path), cpu, **SETTINGS) == first
    assert drawn.asked == [(24, 1, 32)]
    assert clip_of_captions(plain, {**IMAGE, "pad": "fold"}, drawn, str(tmp_path), cpu, **SETTINGS) != first
    assert not list(tmp_path.rglob("*.part"))
    weights = torch.load(first, weights_only=True)
    start = clip_model(image_px=32, load=False, **clip).state_dict()
    assert weights.keys() == start.keys()
    loaded = clip_model(image_px=32, **{**clip, "pretrained": first})  # as a published file is
    torch.testing.assert_close(loaded.state_dict()["visual.proj"], weights["visual.proj"])


def test_two_pictures_of_one_text_are_both_right(clip):
    torch.manual_seed(0)
    model = clip_model(image_px=32, load=False, **clip).eval()
    images, tokens = torch.rand(3, 3, 32, 32), torch.randint(1, 100, (2, 32))
    said = torch.tensor([1, 1, 0])
    a, b = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    logits = (model.logit_scale.exp() * a @ b.T).log_softmax(1)
    back = (model.logit_scale.exp() * b @ a.T).log_softmax(1)
    expected = -(logits[[0, 1, 2], said].mean() + (back[0, 2] + (back[1, 0] + back[1, 1]) / 2) / 2) / 2
    torch.testing.assert_close(contrast(model, images, tokens, said), expected)
