import pytest

from stagewise.datamodules.errors import CheckpointError, StagewiseError
from stagewise.datamodules.fusion.table import FusionTable
from stagewise.lightning_modules import FusionModule
from stagewise.lightning_modules.fusion.settings import check_checkpoint, check_pictures


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modality": "thermal"}, "modality must be one of fusion, metadata, image, got 'thermal'"),
        ({"rule": {"alpha": 1}}, r"`rule` has unknown key\(s\) \['alpha'\]; known: kind, weights, strength"),
        ({"rule": {"weights": [0.7, 0.5]}}, "sum to 1"),
        ({"forest": {"trees": 0}}, "trees=0 and min_samples_leaf=3 must be at least 1"),
        ({"forest": {"max_features": "most"}}, "max_features must be sqrt, log2, null or a share, got 'most'"),
        ({"forest": {"folds": 1}}, "forest.folds must be at least 2, got 1"),
        ({"evaluation": {"draws": 0}}, "evaluation.draws must be at least 1, got 0"),
        ({"loss": {"kind": "hinge"}}, "loss.kind must be one of"),
    ],
)
def test_settings_that_mean_nothing_are_refused_when_the_module_is_made(options, words):
    with pytest.raises(StagewiseError, match=words):
        FusionModule(**options)


def test_a_picture_branch_needs_pictures(table):
    with pytest.raises(StagewiseError, match=r"none of the 120 rows of train has a picture; .*modality=metadata"):
        check_pictures("image", {"train": table, "val": table})
    one = FusionTable.of(["a", "b"], ["p", "q"], [0, 1], classes=["x", "y"], pictures=[["a.png"], []])
    check_pictures("fusion", {"train": one, "val": one})
    check_pictures("metadata", {"train": table, "val": table})


def test_a_checkpoint_of_another_forest_is_refused():
    schema = {"classes": [], "image": {}, "splits": {}, "key": "k"}
    forests = [{"state": {"options": {"trees": trees}}} for trees in (10, 20)]
    check_checkpoint({"schema": schema, "forest": forests[0]}, schema, forests[0])
    with pytest.raises(CheckpointError, match=r"checkpoint's lightning_module\.forest are not those of this run"):
        check_checkpoint({"schema": schema, "forest": forests[0]}, schema, forests[1])
