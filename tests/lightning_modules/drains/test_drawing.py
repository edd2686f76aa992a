"""The annotated picture: four colours, and labels that stay inside and apart."""

import numpy as np
import pytest
import torch

from stagewise.lightning_modules.drains.drawing import COLOURS, colour_of, draw_objects, place_labels


def grey(width=320, height=240):
    return torch.full((3, height, width), 90, dtype=torch.uint8)


def overlap(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.clip(sides, 0, None).prod())


@pytest.mark.parametrize(
    ("kind", "condition", "name"),
    [
        ("toe_drain", "normal", "normal"), ("rock_toe", "damaged", "damaged"), ("slope_drain", "blocked", "blocked"),
        ("vegetation", None, "normal"), ("unknown", None, "unknown"), ("toe_drain", None, "unknown"),
    ],
)  # fmt: skip
def test_four_colours(kind, condition, name):
    assert colour_of(kind, condition) == COLOURS[name] and len(set(COLOURS.values())) == 4


def test_box_and_label_are_drawn_in_the_colour_and_nothing_else_changes():
    picture = grey()
    image = np.asarray(draw_objects(picture, [[100, 100, 140, 180]], ["toe drain blocked"], [COLOURS["blocked"]]))
    assert image.shape == (240, 320, 3) and (picture == 90).all()
    changed = (image != 90).any(-1)
    rows, columns = np.nonzero(changed)
    assert (image[100, 110] == COLOURS["blocked"]).all() and not changed[120:170, 110:130].any()
    assert rows.min() >= 80 and columns.min() >= 99 and rows.max() <= 180 and columns.max() < 300


@pytest.mark.parametrize(
    "box",
    [(0, 0, 20, 20), (300, 0, 320, 15), (0, 225, 30, 240), (310, 230, 320, 240), (0, 0, 320, 240), (-9, -9, 400, 300)],
)
def test_labels_of_boxes_at_the_edges_lie_whole_inside(box):
    (label,) = place_labels([box], [(90, 14)], 320, 240)
    assert (label[:2] >= 0).all() and label[2] <= 320 and label[3] <= 240
    assert tuple(label[2:] - label[:2]) == (90, 14)
    image = np.asarray(draw_objects(grey(), [box], ["slope drain damaged"], [COLOURS["damaged"]]))
    assert np.sum((image == COLOURS["damaged"]).all(-1)) > 300  # the label's ground is there


def test_labels_do_not_cover_each_other_while_there_is_room():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.uniform(0, 200, (12, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 100, (12, 2))], axis=1)
        labels = place_labels(boxes, [(70, 12)] * 12, 320, 240)
        assert max(overlap(labels[i], labels[j]) for i in range(12) for j in range(i)) == 0
        assert labels.min() >= 0 and labels[:, 2].max() <= 320 and labels[:, 3].max() <= 240


def test_twenty_labels_of_one_place_still_lie_apart_and_a_full_picture_ends():
    labels = place_labels([[150, 100, 160, 110]] * 20, [(60, 12)] * 20, 320, 240)
    assert max(overlap(labels[i], labels[j]) for i in range(20) for j in range(i)) == 0
    crowded = place_labels([[5, 5, 10, 10]] * 9, [(30, 20)] * 9, 40, 40)
    assert crowded.shape == (9, 4) and crowded.max() <= 40


def test_small_pictures_thin_boxes_and_long_texts():
    image = draw_objects(
        grey(40, 16), [[3, 3, 3.2, 12], [50, 50, 60, 60]], ["toe drain blocked 0.93", ""], [COLOURS["blocked"]] * 2
    )
    assert image.size == (40, 16)


def test_a_picture_without_objects_comes_back_as_it_was():
    assert (np.asarray(draw_objects(grey(), np.zeros((0, 4)), [], [])) == 90).all()
