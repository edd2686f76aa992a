"""Detections from files: both layouts, their mistakes, and names that are no type."""

import json
from pathlib import Path

import pytest
import torch

from stagewise.datamodules.drains.detections import Detection, JsonDetections, YoloDetections
from stagewise.datamodules.drains.generated import write_generated_drains
from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, StagewiseError
from stagewise.datamodules.images import read_image

NAMES = ["rock_toe", "slope_drain", "toe_drain", "vegetation"]
PICTURE = torch.zeros(3, 100, 200, dtype=torch.uint8)  # 200 wide, 100 high


def yolo(folder, text, names=NAMES):
    (folder / "a.txt").write_text(text)
    return YoloDetections(folder, names)


def as_json(folder, content):
    (folder / "found.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return JsonDetections(folder / "found.json")


def one(box=(10, 20, 30, 60), type="toe drain", **more):
    return {"box": list(box), "type": type, **more}


def test_rows_with_and_without_a_score_and_polygons(tmp_path):
    source = yolo(
        tmp_path,
        "2 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4 0.75\n\n0 0.1 0.2 0.3 0.2 0.3 0.6\n3 0.1 0.2 0.3 0.2 0.3 0.6 0.5\n",
    )
    found = source.detect(Path("x/a.jpg"), PICTURE)
    assert [(d.type, d.score) for d in found] == [
        ("toe_drain", 1.0), ("slope_drain", 0.75), ("rock_toe", 1.0), ("vegetation", 0.5)
    ]  # fmt: skip
    for detection, box in zip(found, [(80, 30, 120, 70)] * 2 + [(20, 20, 60, 60)] * 2):
        assert detection.box == pytest.approx(box)
    assert source.detect(Path("other.jpg"), PICTURE) == []


def test_names_of_nine_classes_come_from_data_yaml(tmp_path):
    write_generated_drains(tmp_path / "data", pictures=3, px=160, locations=2)
    source = YoloDetections(tmp_path / "data")
    picture = next((tmp_path / "data" / "images").glob("*.jpg"))
    rows = (tmp_path / "data" / "labels" / f"{picture.stem}.txt").read_text().splitlines()
    found = source.detect(picture, read_image(picture))
    assert len(found) == len(rows) > 0 and {d.type for d in found} <= set(NAMES) and not source.unknown


def test_unknown_types_stay_and_are_counted(tmp_path):
    source = yolo(tmp_path, "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n1 0.2 0.5 0.2 0.4\n", ["Rock-Toe", "road"])
    assert [d.type for d in source.detect(Path("a.jpg"), PICTURE)] == ["rock_toe", "unknown", "unknown"]
    assert source.unknown == {"road": 2}
    source = as_json(tmp_path, [{"image": "a.jpg", "detections": [one(type="fence")]}])
    assert source.detect(Path("a.jpg"), PICTURE) == [Detection((10, 20, 30, 60), "unknown", 1.0)]
    assert source.unknown == {"fence": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.2", "4 columns"),
        ("0 0.5 0.5 0.2 0.4 0.9 0.9 0.9 0.9 0.9 nan", "shares of the picture"),
        ("0 0.5 0.5 0.2 x", "no number"),
        ("4 0.5 0.5 0.2 0.4", "class 4; the names are given for 0 to 3"),
        ("1.5 0.5 0.5 0.2 0.4", "class 1.5"),
        ("-1 0.5 0.5 0.2 0.4", "class -1"),
        ("0 0.5 0.5 0.2 0.4 1.2", "score 1.2"),
        ("0 50 50 20 40", "divide pixels"),
    ],
)
def test_a_row_that_cannot_be_used_names_file_and_line(tmp_path, row, message):
    with pytest.raises(BadRowsError, match=rf"a\.txt:2 .*{message}"):
        yolo(tmp_path, f"0 0.5 0.5 0.2 0.4\n{row}\n")


def test_a_folder_without_rows_or_names_says_what_to_do(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no \.txt files"):
        YoloDetections(tmp_path / "nowhere", NAMES)
    with pytest.raises(StagewiseError, match="pass the detector's class names"):
        yolo(tmp_path, "0 0.5 0.5 0.2 0.4\n", names=None)
    (tmp_path / "data.yaml").write_text("names: {1: a, 2: b}\n")
    with pytest.raises(StagewiseError, match="from 0 without a gap"):
        yolo(tmp_path, "0 0.5 0.5 0.2 0.4\n", names=None)


def test_boxes_are_clipped_and_what_lies_outside_is_counted(tmp_path, caplog):
    found = yolo(tmp_path, "0 0 0.5 0.2 0.4\n0 1.2 0.5 0.2 0.4\n").detect(Path("a.png"), PICTURE)
    assert [d.box for d in found] == [pytest.approx((0, 30, 20, 70))]
    assert "a.png: 1 detections left out" in caplog.text


def test_json_boxes_are_pixels(tmp_path):
    source = as_json(
        tmp_path, [{"image": "a.jpg", "detections": [one(score=0.25)]}, {"image": "b.jpg", "detections": []}]
    )
    assert source.detect(Path("pictures/a.jpg"), PICTURE) == [Detection((10, 20, 30, 60), "toe_drain", 0.25)]
    assert source.detect(Path("b.jpg"), PICTURE) == source.detect(Path("c.jpg"), PICTURE) == []


def test_a_mark_that_windows_writes_first_is_no_fault(tmp_path):
    content = json.dumps([{"image": "a.jpg", "detections": [one()]}])
    (tmp_path / "found.json").write_text(content, encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("2 0.5 0.5 0.2 0.4\r\n", encoding="utf-8-sig", newline="")
    for source in (JsonDetections(tmp_path / "found.json"), YoloDetections(tmp_path, NAMES)):
        assert [found.type for found in source.detect(Path("a.jpg"), PICTURE)] == ["toe_drain"]


def test_pictures_of_one_name_are_told_apart_by_their_folders(tmp_path):
    content = [{"image": "a.jpg", "detections": []}, {"image": "south/a.jpg", "detections": [one()]}]
    source = as_json(tmp_path, content)
    assert len(source.detect(Path("all/south/a.jpg"), PICTURE)) == 1 and not source.detect(Path("north/a.jpg"), PICTURE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ({"a.jpg": []}, "another layout; it must be"),
        ([{"picture": "a.jpg", "detections": []}], "entry 0 has another layout"),
        ([{"image": "a.jpg", "detections": {}}], "entry 0 has another layout"),
        ([{"image": "a.jpg", "detections": []}] * 2, "entry 1: `image` is 'a.jpg'"),
        ([{"image": "a.jpg", "detections": [one(), {"box": [1, 2, 3, 4]}]}], "entry 0, detection 1 has no `type`"),
        ([{"image": "a.jpg", "detections": [one(box=(1, 2, 3))]}], r"`box` must be \[left, top, right, bottom\]"),
        ([{"image": "a.jpg", "detections": [one(box=(50, 50, 20, 10))]}], "not width and height"),
        ([{"image": "a.jpg", "detections": [one(score=3)]}], "`score` must lie between 0 and 1, got 3"),
        ([{"image": "a.jpg", "detections": [one(score=True)]}], "`score` must lie"),
    ],
)
def test_another_layout_names_the_entry(tmp_path, content, message):
    with pytest.raises(StagewiseError, match=message):
        as_json(tmp_path, content)


def test_a_json_that_is_not_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no file"):
        JsonDetections(tmp_path / "found.json")
