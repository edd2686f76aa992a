"""The end-to-end score on cases that can be counted by hand."""

import numpy as np
import pytest

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.drains.matching import MISSED, match_boxes

A, B = [0, 0, 10, 10], [20, 0, 30, 10]


def test_the_same_boxes_match_whatever_their_order():
    found = match_boxes([A, B], [2, 1], [B, A], [1, 2], [0.3, 0.9])
    assert found.detection.tolist() == [1, 0] and len(found.false) == 0


def test_a_box_of_another_type_or_of_none_matches_nothing():
    found = match_boxes([A], [2], [A, A], [1, -1], [0.9, 0.9])
    assert found.detection.tolist() == [MISSED] and found.false.tolist() == [0, 1]


def test_half_the_union_is_enough_and_less_is_not():
    assert match_boxes([A], [0], [[0, 0, 10, 5]], [0], [1.0]).detection.tolist() == [0]
    assert match_boxes([A], [0], [[0, 0, 10, 4.9]], [0], [1.0]).detection.tolist() == [MISSED]


def test_one_detection_stands_for_one_object_and_the_stronger_chooses_first():
    found = match_boxes([A], [0], [[0, 0, 10, 8], [0, 0, 10, 9]], [0, 0], [0.9, 0.8])
    assert found.detection.tolist() == [0] and found.false.tolist() == [1]
    near = [[0, 0, 10, 10], [0, 4, 10, 14]]
    found = match_boxes(near, [0, 0], [[0, 2, 10, 12], near[0]], [0, 0], [0.9, 0.8])
    assert found.detection.tolist() == [0, MISSED]  # greedy: the first took the only object that the second could have


def test_a_long_thin_box_is_judged_in_its_own_proportions():
    drain, shifted = [100, 10, 115, 123], [108, 10, 123, 123]
    assert match_boxes([drain], [1], [shifted], [1], [1.0]).detection.tolist() == [MISSED]  # 7 of 23 px in common
    assert match_boxes([drain], [1], [[100, 30, 115, 143]], [1], [1.0]).detection.tolist() == [0]


def test_pictures_without_objects_or_detections():
    nothing = np.zeros((0, 4))
    found = match_boxes(nothing, [], [A], [0], [1.0])
    assert found.detection.shape == (0,) and found.false.tolist() == [0]
    assert match_boxes([A], [0], nothing, [], []).detection.tolist() == [MISSED]
    assert match_boxes(nothing, [], nothing, [], []).false.shape == (0,)
    with pytest.raises(StagewiseError, match="least_iou"):
        match_boxes([A], [0], [A], [0], [1.0], least_iou=0)
