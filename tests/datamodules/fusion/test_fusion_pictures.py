"""Pictures as the network sees them: values, crops, colours, and the store on disk."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from stagewise.datamodules.errors import BadRowsError, StagewiseError
from stagewise.datamodules.fusion.dataset import moved
from stagewise.datamodules.fusion.picture_store import depth_of, open_pictures
from stagewise.datamodules.fusion.pictures import as_float, colours_of, cut_picture, from_false_colour, picture_size
from stagewise.datamodules.fusion.table import FusionTable

PLAIN = {"px": 32, "channels": 3, "colormap": None, "margin": 0.1, "bits": 8}


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def test_a_picture_keeps_its_values_whatever_its_maximum(tmp_path):
    for value in (7, 80, 255):
        path = save(tmp_path / f"{value}.png", np.full((20, 20, 3), value, np.uint8))
        assert (cut_picture(path, None, PLAIN) == value).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_16_bit_grey_is_scaled_by_65535_and_nothing_else(tmp_path, bits):
    pixels = np.full((20, 20), 30000, np.uint16)
    pixels[:, 10:] = 31000
    seen = cut_picture(save(tmp_path / "a.png", pixels), None, PLAIN | {"bits": bits, "channels": 1})
    shares = as_float(seen)[0, :, [2, 29]].mean(0)
    np.testing.assert_allclose(shares, np.array([30000, 31000]) / 65535, atol=1e-6 if bits == 16 else 0.5 / 255 + 1e-6)
    assert seen.dtype == (torch.uint16 if bits == 16 else torch.uint8)


def test_the_box_is_shown_whole_with_its_margin_and_its_aspect(tmp_path):
    pixels = np.full((40, 80, 3), 50, np.uint8)
    pixels[10:20, 20:40] = 200  # the box
    seen = cut_picture(save(tmp_path / "a.png", pixels), (20, 10, 40, 20), PLAIN | {"px": 24, "margin": 0.1})
    # 20 x 10 and a margin of 2 are 24 x 14: in a square of 24 px, 5 px of padding above and below
    assert (seen[:, :5] == 0).all() and (seen[:, 19:] == 0).all()
    assert (seen[:, 7:17, 2:22] == 200).all() and (seen[:, 5:7] == 50).all() and (seen[:, 7:17, :2] == 50).all()


def test_exif_turns_the_picture_its_size_and_its_box(tmp_path):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", np.stack([pixels] * 3, 2), exif=exif)
    assert picture_size(path) == (20, 40)
    assert cut_picture(path, (0, 0, 20, 10), PLAIN | {"margin": 0}).float().max() == 255
    assert cut_picture(path, (0, 20, 20, 40), PLAIN | {"margin": 0}).float().max() == 0


@pytest.mark.parametrize("colormap", ["inferno", "jet"])
def test_false_colours_turn_back_into_what_they_were(colormap):
    scalar = np.arange(256, dtype=np.uint8).reshape(16, 16)
    back, distance = from_false_colour(colours_of(colormap)[scalar], colormap)
    assert distance == 0 and np.abs(back.astype(int) - scalar).max() <= 2  # some levels share a colour
    noisy = np.clip(colours_of(colormap)[scalar].astype(int) + 2, 0, 255).astype(np.uint8)
    assert np.abs(from_false_colour(noisy, colormap)[0].astype(int) - scalar).mean() < 3


def test_false_colours_become_one_channel_before_they_are_resized(tmp_path):
    scalar = np.repeat(np.array([[30, 220]], np.uint8), 16, 1).repeat(32, 0)
    path = save(tmp_path / "a.png", colours_of("jet")[scalar])
    seen = cut_picture(path, None, PLAIN | {"colormap": "jet", "channels": 1, "px": 8})
    assert seen.shape == (1, 8, 8) and (seen[0, :, 0] == 30).all() and (seen[0, :, -1] == 220).all()


def test_pictures_in_other_colours_are_refused(tmp_path):
    options = PLAIN | {"colormap": "inferno", "channels": 1}
    green = np.zeros((8, 8, 3), np.uint8)
    green[..., 1] = 255
    with pytest.raises(BadRowsError, match=r"not in the colours of image\.colormap=inferno"):
        cut_picture(save(tmp_path / "a.png", green), None, options)
    with pytest.raises(BadRowsError, match="16-bit grey"):
        cut_picture(save(tmp_path / "b.png", np.zeros((8, 8), np.uint16)), None, options)
    with pytest.raises(StagewiseError, match="'infreno', which matplotlib has not"):
        colours_of("infreno")


# --- moves ---


def test_moved_pictures_keep_their_values_and_mirror():
    stay, flip, keep = torch.zeros(1, 2), torch.tensor([True]), torch.tensor([False])
    image = torch.full((1, 1, 16, 16), 180, dtype=torch.uint8)
    inner = moved(image, flip, torch.tensor([1.1]), torch.tensor([[0.1, -0.05]]))[..., 4:12, 4:12]
    assert (inner == 180).all() and inner.dtype == torch.uint8
    noise = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(moved(noise, flip, torch.ones(1), stay), noise.flip(-1))
    shifted = moved(noise, flip, torch.ones(1), torch.tensor([[0.25, 0.0]]))
    assert torch.equal(shifted[..., 4:], noise.flip(-1)[..., :-4])
    deep = torch.full((1, 1, 8, 8), 40000, dtype=torch.int32).to(torch.uint16)
    assert moved(deep, keep, torch.tensor([1.2]), stay).to(torch.int32).min() == 40000
    assert torch.equal(moved(deep, flip, torch.ones(1), stay), deep)


# --- store ---


def table_of(*own):
    pictures = [[path for path, _ in pairs] for pairs in own]
    boxes = [[box for _, box in pairs] for pairs in own]
    ids = [f"r{i}" for i in range(len(own))]
    return FusionTable.of(ids, ids, [0] * len(own), classes=["a", "b"], pictures=pictures, boxes=boxes)


def test_the_store_gives_what_the_cutter_gives_and_is_written_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = [save(tmp_path / f"{i}.png", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for i in range(3)]
    table = table_of([(paths[0], None), (paths[1], (2, 2, 20, 10))], [], [(paths[2], None)])
    store = open_pictures(table, tmp_path / "cache", PLAIN)
    for path, box in ((paths[0], None), (paths[1], (2, 2, 20, 10))):
        assert torch.equal(store(path, box), cut_picture(path, box, PLAIN))
    assert len(pickle.dumps(store)) < 10_000
    monkeypatch.setattr("stagewise.datamodules.fusion.picture_store.cut_picture", None)
    again = open_pictures(table, tmp_path / "cache", PLAIN)
    assert torch.equal(pickle.loads(pickle.dumps(again))(paths[2], None), store(paths[2], None))


def test_another_box_picture_or_setting_is_another_store(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    first = open_pictures(table_of([(path, None)]), tmp_path, PLAIN).folder
    assert open_pictures(table_of([(path, (0, 0, 9, 9))]), tmp_path, PLAIN).folder != first
    assert open_pictures(table_of([(path, None)]), tmp_path, PLAIN | {"px": 16}).folder != first
    save(path, np.ones((21, 30, 3), np.uint8))
    assert open_pictures(table_of([(path, None)]), tmp_path, PLAIN).folder != first


def test_pictures_that_break_off_are_named_and_nothing_is_left(tmp_path):
    paths = [save(tmp_path / f"{i}.png", np.random.randint(0, 256, (20, 30, 3), np.uint8)) for i in range(3)]
    for path in paths[1:]:
        with open(path, "r+b") as file:
            file.truncate(400)
    with pytest.raises(BadRowsError, match=r"2 bad row.*row 'r0' picture .*1\.png.*row 'r1' picture .*2\.png"):
        open_pictures(table_of([(paths[0], None), (paths[1], None)], [(paths[2], None)]), tmp_path / "cache", PLAIN)
    assert [path for path in (tmp_path / "cache" / "fusion").iterdir() if path.is_dir()] == []


def test_no_picture_at_all(tmp_path):
    table = table_of([], [])
    assert depth_of(table) == 8
    open_pictures(table, tmp_path, PLAIN)


def test_one_16_bit_picture_makes_the_store_deep(tmp_path):
    grey = save(tmp_path / "a.png", np.full((9, 9), 513, np.uint16))
    colour = save(tmp_path / "b.png", np.full((9, 9, 3), 2, np.uint8))
    table = table_of([(grey, None)], [(colour, None)])
    assert depth_of(table) == 16
    store = open_pictures(table, tmp_path, PLAIN | {"bits": 16})
    values = [store(path, None).to(torch.int32) for path in (grey, colour)]
    assert (values[0] == 513).all() and (values[1] == 514).all()
