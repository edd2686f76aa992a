"""What is written for pictures with detections; the network is asked in tests/test_drains.py."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from stagewise.datamodules.drains.detections import Detection
from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, StagewiseError
from stagewise.lightning_modules.drains.serving import predict_folder


class Module:
    """Says the second class of those that the type allows."""

    device = torch.device("cpu")

    def __init__(self, schema):
        self.schema, self.asked = schema, []

    def network(self, batch):
        self.asked.append(len(batch["box_type"]))
        logits = torch.full((len(batch["box_type"]), 9), -torch.inf)
        first = torch.tensor([3, 0, 5, 8])[batch["box_type"]]
        logits[torch.arange(len(first)), first] = 0.0
        second = (first + 1).clamp(max=8)
        logits[torch.arange(len(first)), second] = 1.0
        return {"logits": logits}


class Detector:
    """The same three objects in every picture."""

    def __init__(self):
        self.unknown = Counter({"gully": 1})

    def detect(self, path, picture):
        kinds = ("toe_drain", "vegetation", "unknown")
        return [Detection((4 + 20 * i, 5.0, 18 + 20 * i, 30.0), kind, 0.9) for i, kind in enumerate(kinds)]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "b.png", "c.webp"):
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_all_boxes_of_a_picture_are_one_batch_and_unknown_types_get_no_condition(pictures, schema, tmp_path):
    module = Module(schema)
    answers = predict_folder(module, str(pictures), str(tmp_path / "out"), Detector()).answers
    assert module.asked == [2, 2, 2]
    for one in answers:
        assert [(o["type"], o["condition"]) for o in one["objects"]] == [
            ("toe_drain", "blocked"),
            ("vegetation", None),
            ("unknown", None),
        ]
        assert one["objects"][0]["condition_score"] == pytest.approx(
            torch.tensor([0.0, 1.0]).softmax(0)[1].item(), abs=1e-3
        )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"] == {"toe_drain blocked": 3, "unknown": 3, "vegetation": 3}
    assert summary["unknown_types"] == {"gully": 1} and summary["without_detections"] == 0


def test_a_picture_keeps_its_name_and_its_file_is_what_its_suffix_says(pictures, schema, tmp_path):
    predict_folder(Module(schema), str(pictures), str(tmp_path / "out"), Detector())
    kinds = {}
    for path in (tmp_path / "out" / "pictures").iterdir():
        with Image.open(path) as image:
            kinds[path.name] = image.format
    assert kinds == {"a.jpg": "JPEG", "b.png": "PNG", "c.webp.png": "PNG"}


def test_a_folder_without_pictures_is_refused_and_nothing_is_written(schema, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match="no picture at input="):
        predict_folder(Module(schema), str(tmp_path / "empty"), str(tmp_path / "out"), Detector())
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_is_named_and_a_bar_shows_the_way(pictures, schema, tmp_path, caplog, capsys):
    (pictures / "b.jpg").write_bytes(b"no picture")
    answers = predict_folder(Module(schema), str(pictures), str(tmp_path / "out"), Detector()).answers
    assert [one["image"] for one in answers] == ["a.jpg", "b.png", "c.webp"]
    assert "left out b.jpg: " in caplog.text and "pictures: " in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["broken"]) == ["b.jpg"]


def test_broken_pictures_alone_are_an_error_and_nothing_is_written(pictures, schema, tmp_path):
    for path in pictures.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(BadRowsError, match=r"of 3 pictures none can be read: .*a\.jpg"):
        predict_folder(Module(schema), str(pictures), str(tmp_path / "out"), Detector())
    assert not (tmp_path / "out").exists()


def test_pictures_without_detections_and_unknown_types_are_told(pictures, schema, tmp_path, caplog):
    nothing = Detector()
    nothing.detect = lambda path, picture: []
    predict_folder(Module(schema), str(pictures), str(tmp_path / "out"), nothing)
    assert "3 of 3 pictures have no detection" in caplog.text and "{'gully': 1}" in caplog.text


def test_a_run_never_draws_over_its_pictures(pictures, schema, tmp_path):
    mine = pictures.rename(tmp_path / "pictures")
    before = (mine / "a.jpg").read_bytes()
    for source in (mine, tmp_path):
        with pytest.raises(StagewiseError, match="pass another output"):
            predict_folder(Module(schema), str(source), str(tmp_path), Detector())
    assert (mine / "a.jpg").read_bytes() == before
