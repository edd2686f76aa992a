"""Names of types, conditions and classes."""

import pytest

from stagewise.datamodules.drains.imbalance import corrections_of
from stagewise.datamodules.drains.vocabulary import (
    CLASS_NAMES,
    CLASSES,
    CONDITIONS,
    TYPE_OF_CLASS,
    TYPES,
    class_of,
    parse_class,
    parse_type,
)
from stagewise.datamodules.errors import StagewiseError


def test_the_nine_classes_are_the_possible_pairs_and_no_other():
    possible = 0
    for kind in TYPES:
        for condition in (*CONDITIONS, None):
            try:
                label = class_of(kind, condition)
            except StagewiseError:
                continue
            possible += 1
            assert CLASSES[label].type == TYPES[TYPE_OF_CLASS[label]] == kind and CLASSES[label].condition == condition
    assert possible == len(CLASSES) == 9


@pytest.mark.parametrize(
    "pair", [("rock_toe", "blocked"), ("vegetation", "normal"), ("toe_drain", None), ("road", "normal")]
)
def test_an_impossible_pair_is_refused_with_the_possible_ones(pair):
    with pytest.raises(StagewiseError, match=r"possible: toe_drain normal, .*vegetation"):
        class_of(*pair)


@pytest.mark.parametrize(
    "style", [str, str.upper, lambda s: s.replace("_", " "), lambda s: s.replace(" ", "- ").title()]
)
def test_names_are_read_however_they_are_spelled(style):
    assert [parse_class(style(name)) for name in CLASS_NAMES] == list(range(9))
    assert [parse_type(style(name)) for name in TYPES] == list(TYPES)


def test_a_bare_type_is_normal_and_an_unknown_name_is_refused():
    assert parse_class("Toe drain") == class_of("toe_drain", "normal")
    assert parse_type("Toe drain- Blocked") is None and parse_type("") is None
    with pytest.raises(StagewiseError, match="'rock toe blocked' is no class of drains"):
        parse_class("rock toe blocked")


@pytest.mark.parametrize("name", ["oversmaple", "", "focal+focal", "none+focal"])
def test_a_correction_that_says_nothing_clear_is_refused(name):
    with pytest.raises(StagewiseError, match="give one of none, oversample"):
        corrections_of(name)
