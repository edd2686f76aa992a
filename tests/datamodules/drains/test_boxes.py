"""Geometry of boxes, and what lies around them."""

import numpy as np
import pytest

from stagewise.datamodules.drains.boxes import (
    FEATURES,
    box_features,
    context_of,
    from_corners,
    iou,
    position_of,
    to_corners,
)


@pytest.fixture
def scene():
    rng = np.random.default_rng(1)
    size = rng.uniform(0.05, 0.4, (12, 2))
    centre = size / 2 + rng.random((12, 2)) * (1 - size)
    return np.concatenate([centre, size], 1), rng.integers(0, 4, 12)


def column(features, name):
    return features[:, FEATURES.index(name)]


def test_position_has_its_limits_at_033_and_066():
    boxes = [[0.5, y, 0.1, 0.1] for y in (0.0, 0.3299, 0.33, 0.66, 0.6601, 1.0)]
    assert position_of(boxes).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_context_is_the_set_of_the_other_types(scene):
    types = scene[1]
    for own, mask in enumerate(context_of(types)):
        others = set(np.delete(types, own).tolist())
        assert {t for t in range(4) if mask >> t & 1} == others
    assert context_of([2, -1]).tolist() == [0, 4]  # one that is not known adds nothing


def test_corners_and_back(scene):
    boxes = scene[0]
    np.testing.assert_allclose(from_corners(to_corners(boxes, (640, 480)), (640, 480)), boxes)


def test_iou_against_counted_pixels(scene):
    boxes = np.round(scene[0] * 50) / 50
    corners = np.round(to_corners(boxes, (100, 100))).astype(int)
    masks = np.zeros((len(corners), 100, 100), bool)
    for mask, (left, top, right, bottom) in zip(masks, corners):
        mask[top:bottom, left:right] = True
    both = (masks[:, None] & masks[None]).sum((2, 3))
    either = (masks[:, None] | masks[None]).sum((2, 3))
    np.testing.assert_allclose(iou(boxes, boxes), both / either, atol=1e-9)


def test_coverage_against_counted_pixels(scene):
    boxes, types = np.round(scene[0] * 50) / 50, scene[1]
    corners = np.round(to_corners(boxes, (100, 100))).astype(int)
    covered = column(box_features(boxes, types, (100, 100)), "covered")
    for own, (left, top, right, bottom) in enumerate(corners):
        others = np.zeros((100, 100), bool)
        for x0, y0, x1, y1 in np.delete(corners, own, 0):
            others[y0:y1, x0:x1] = True
        assert covered[own] == pytest.approx(others[top:bottom, left:right].mean(), abs=1e-6)


def test_an_object_is_not_among_its_neighbours(scene):
    boxes, types = scene
    features = box_features(boxes, types, (300, 200))
    counts = np.stack(
        [column(features, f"others_{name}") for name in ("rock_toe", "slope_drain", "toe_drain", "vegetation")], 1
    )
    np.testing.assert_array_equal(counts.sum(1), len(boxes) - 1)
    changed = types.copy()
    changed[0] = (types[0] + 1) % 4  # its own type moves its own columns only, and others' view of it
    again = box_features(boxes, changed, (300, 200))
    same = [i for i, name in enumerate(FEATURES) if not name.startswith("is_")]
    np.testing.assert_array_equal(features[0, same], again[0, same])
    assert not np.array_equal(features[1], again[1])


def test_a_twin_box_covers_wholly_and_lies_at_distance_0():
    features = box_features([[0.5, 0.5, 0.2, 0.2]] * 2, [0, 3], (100, 100))
    assert column(features, "covered").tolist() == [1, 1] and column(features, "nearest_other").tolist() == [0, 0]
    assert column(features, "others_above").tolist() == column(features, "others_below").tolist() == [0, 0]


def test_above_and_below_add_up_and_a_mirrored_picture_changes_neither(scene):
    boxes, types = scene
    features = box_features(boxes, types, (300, 200))
    np.testing.assert_array_equal(column(features, "others_above") + column(features, "others_below"), len(boxes) - 1)
    highest = boxes[:, 1].argmin()
    assert column(features, "others_above")[highest] == 0
    mirrored = boxes * [-1, 1, 1, 1] + [1, 0, 0, 0]
    rest = [i for i, name in enumerate(FEATURES) if name != "centre_x"]
    np.testing.assert_allclose(box_features(mirrored, types, (300, 200))[:, rest], features[:, rest], atol=1e-5)


def test_the_aspect_is_that_of_pixels():
    square_in_a_wide_picture = box_features([[0.5, 0.5, 0.1, 0.2]], [1], (400, 200))
    assert column(square_in_a_wide_picture, "log_aspect")[0] == pytest.approx(0)


def test_a_picture_without_objects_has_no_rows():
    assert box_features([], [], (10, 10)).shape == (0, len(FEATURES)) and context_of([]).shape == (0,)
