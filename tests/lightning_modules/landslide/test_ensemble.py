import copy

import pytest

from stagewise.datamodules.errors import CheckpointError
from stagewise.lightning_modules.landslide.module import LandslideModule

SCHEMA = {"channels": ["slope"], "classes": ["low", "high"], "pixel_size_m": 10.0, "channel_options": {}}


def member(schema=(), calibration=None, **inference):
    module = LandslideModule(inference=inference)
    module.schema, module.calibration = SCHEMA | dict(schema), copy.deepcopy(calibration)
    return module


def test_members_that_differ_in_inference_are_said_to_and_the_first_ones_is_used(caplog):
    first, second = member(window=64, overlap=16), member(window=128, overlap=16)
    with caplog.at_level("WARNING"):
        assert first.ensemble([second]).inference["window"] == 64
    assert "the members' inference differs; the ensemble uses the first one's" in caplog.text
    assert first.members == [first, second]


def test_members_alike_are_not_warned_of(caplog):
    calibrations = [{"kind": "temperature", "temperature": t} for t in (1.0, 4.0)]
    first, second = (member(calibration=c) for c in calibrations)
    assert first.ensemble([second]).calibration == {
        "kind": "temperature",
        "temperature": pytest.approx(2.0),
        "of": "the members' mean",
    }
    assert not caplog.records


@pytest.mark.parametrize(
    "changed",
    [{"channels": ["aspect"]}, {"classes": ["no", "yes"]}, {"pixel_size_m": 5.0}],
    ids=lambda c: next(iter(c)),
)
def test_members_that_see_or_answer_other_things_are_refused(changed):
    (name,) = changed
    with pytest.raises(CheckpointError, match=f"member 2 of the ensemble has {name}"):
        member().ensemble([member(schema=changed)])
