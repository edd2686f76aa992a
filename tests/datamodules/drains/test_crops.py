"""Crops: the whole box, its true aspect, and nothing upside down."""

import numpy as np
import pytest
import torch

from stagewise.datamodules.drains.boxes import from_corners
from stagewise.datamodules.drains.crops import (
    MARK_COLOUR,
    MEAN_COLOUR,
    crop_window,
    jiggle,
    letterbox,
    mark_box,
    whole_window,
)
from stagewise.datamodules.errors import StagewiseError

PURE = torch.tensor([0, 0, 255], dtype=torch.uint8)  # of the object that is looked for
THIN = {  # left, top, right, bottom in a picture of 312 x 240 px
    "tall": (100, 40, 115, 153),
    "wide at the bottom": (0, 210, 311, 240),
    "tall at the right edge": (300, 0, 312, 240),
    "in the corner": (0, 0, 60, 8),
    "square": (150, 100, 190, 140),
    "tiny": (200, 200, 204, 204),
}


def picture_of(corners, width=312, height=240):
    """A red and green picture with one blue object."""
    left, top, right, bottom = corners
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[0] = 200
    picture[:, top:bottom, left:right] = PURE[:, None, None]
    return picture, from_corners([corners], (width, height))[0]


def blue(image):
    """Mask of what is mostly the object."""
    return (image[2] > 127) & (image[0] < 100)


def extent(mask):
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("pad", ["mean", "context"])
@pytest.mark.parametrize("name", THIN)
def test_the_crop_holds_the_whole_box_at_its_true_aspect(name, pad):
    corners = THIN[name]
    picture, box = picture_of(corners)
    window = crop_window(box, (312, 240), 0.1, pad)
    left, top, right, bottom = extent(blue(letterbox(picture, window, 224)))
    scale = 224 / window.side
    assert right - left == pytest.approx((corners[2] - corners[0]) * scale, abs=1.5)
    assert bottom - top == pytest.approx((corners[3] - corners[1]) * scale, abs=1.5)


@pytest.mark.parametrize("name", THIN)
def test_the_margin_is_a_share_of_the_longer_side_where_the_picture_has_room(name):
    corners = THIN[name]
    _, box = picture_of(corners)
    window = crop_window(box, (312, 240), 0.2)
    around = max(3, 0.2 * max(corners[2] - corners[0], corners[3] - corners[1]))
    expected = (corners[0] - around, corners[1] - around, corners[2] + around, corners[3] + around)
    inside = np.clip(expected, 0, [312, 240, 312, 240])
    np.testing.assert_allclose(window[:4], inside, atol=1)


def test_mean_shows_the_mean_colour_beside_a_thin_box_and_context_the_picture():
    picture, box = picture_of(THIN["tall"])
    mean, context = (letterbox(picture, crop_window(box, (312, 240), 0.1, pad), 224) for pad in ("mean", "context"))
    assert tuple(mean[:, 112, 5].tolist()) == MEAN_COLOUR
    assert context[:, 112, 5].tolist() == [200, 0, 0]
    assert blue(mean).sum() == blue(context).sum()  # the object has the same size in both
    beyond = letterbox(picture, crop_window(picture_of(THIN["wide at the bottom"])[1], (312, 240), 0.1, "context"), 224)
    assert tuple(beyond[:, -1, 112].tolist()) == MEAN_COLOUR  # the picture ends there


@pytest.mark.parametrize("upright", [False, True], ids=["wide", "tall"])
def test_fold_lays_the_pieces_of_a_strip_side_by_side_in_order_and_larger(upright):
    strip = torch.linspace(0, 255, 306).to(torch.uint8)[None, None].expand(3, 24, -1)
    picture = torch.zeros(3, 312, 312, dtype=torch.uint8)
    picture[:, 200:224, 3:309] = strip
    corners = (3, 200, 309, 224)
    if upright:
        picture, corners = picture.transpose(1, 2), (200, 3, 224, 309)
    window = crop_window(from_corners([corners], (312, 312))[0], (312, 312), margin=0, pad="fold")
    assert window.pieces == 3
    folded = letterbox(picture, window, 66)
    folded = folded.transpose(1, 2) if upright else folded
    along = torch.cat([folded[0, row] for row in (11, 33, 55)]).float()  # the middle of each piece
    assert (along[5:-5].diff() > -1).all() and along[5] < 12 and along[-6] > 240  # it goes on in the next piece
    assert along[66].item() == pytest.approx(85, abs=5)  # a row shows a third, so it is three times as large


def test_fold_leaves_what_is_not_thin_whole():
    box = from_corners([(150, 100, 190, 140)], (312, 240))[0]
    assert crop_window(box, (312, 240), pad="fold") == crop_window(box, (312, 240), pad="mean")


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (64, 64), (1000, 7)])
def test_a_whole_picture_is_whole_and_not_squashed(size):
    width, height = size
    picture = torch.full((3, height, width), 255, dtype=torch.uint8)
    shown = extent(letterbox(picture, whole_window(size), 112).sum(0) == 765)
    scale = 112 / max(size)
    assert (shown[2] - shown[0], shown[3] - shown[1]) == (
        pytest.approx(width * scale, abs=1),
        pytest.approx(max(1, height * scale), abs=1),
    )
    assert abs(shown[0] - (112 - shown[2])) <= 1 and abs(shown[1] - (112 - shown[3])) <= 1  # centred


def test_shrinking_is_antialiased():
    stripes = torch.zeros(3, 400, 400, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = letterbox(stripes, whole_window((400, 400)), 50)[:, 5:-5, 5:-5].float()
    assert small.std() < 10 and abs(small.mean() - 127) < 5


@pytest.mark.parametrize("name", THIN)
def test_the_mark_surrounds_the_object_and_hides_nothing_of_it(name):
    picture, box = picture_of(THIN[name])
    whole = letterbox(picture, whole_window((312, 240)), 224)
    marked = mark_box(whole, box, (312, 240))
    red = (marked == torch.tensor(MARK_COLOUR, dtype=torch.uint8)[:, None, None]).all(0)
    assert red.any() and marked.shape == whole.shape
    frame, inside = extent(red), extent(blue(whole))
    assert all(abs(a - b) <= 5 for a, b in zip(frame, inside))
    at_edge = any(edge in (0, limit) for edge, limit in zip(THIN[name], (0, 0, 312, 240)))
    assert at_edge or torch.equal(blue(marked), blue(whole))
    assert torch.equal(marked[:, ~red], whole[:, ~red])


def test_a_gradient_never_comes_out_upside_down():
    gradient = torch.linspace(0, 255, 96).to(torch.uint8)[None, :, None].repeat(3, 1, 96)
    rng = np.random.default_rng(0)
    for _ in range(30):
        zoom, shift = rng.uniform(0.85, 1.15), tuple(rng.uniform(-0.05, 0.05, 2))
        moved = jiggle(gradient, bool(rng.integers(2)), zoom, shift)
        assert moved.shape == gradient.shape
        column = moved[0, 12:-12, 48].int()
        assert (column.diff() >= 0).all() and column[-1] > column[0]


def test_a_flip_moves_left_and_right_only_and_twice_is_none():
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    flipped = jiggle(image, flip=True)
    assert torch.equal(jiggle(flipped, flip=True), image) and torch.equal(jiggle(image, flip=False), image)
    assert torch.equal(flipped.sort(-1).values, image.sort(-1).values)  # each row keeps its pixels


def test_zoom_and_shift_go_where_they_say():
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[2, 40:60, 40:60] = 255
    left, top, right, bottom = extent(blue(jiggle(image, False, 1.2)))
    assert right - left == bottom - top == pytest.approx(24, abs=2)
    right_down = extent(blue(jiggle(image, False, 1.0, (0.1, 0.05))))
    assert right_down == (50, 45, 70, 65)
    assert tuple(jiggle(image, False, 1.0, (0.1, 0.0))[:, 50, 2].tolist()) == MEAN_COLOUR


@pytest.mark.parametrize("options", [{"pad": "black"}, {"margin": -0.1}])
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(StagewiseError, match="`pad` must be one of"):
        crop_window([0.5, 0.5, 0.1, 0.1], (100, 100), **options)
