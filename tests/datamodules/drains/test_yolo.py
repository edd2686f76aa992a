"""A YOLO folder as a table: what is read, dropped and refused."""

import logging

import numpy as np
import pytest
from PIL import Image

from stagewise.datamodules import DrainDataModule
from stagewise.datamodules.drains.boxes import to_corners
from stagewise.datamodules.drains.vocabulary import CLASS_NAMES
from stagewise.datamodules.drains.yolo import label_path, picture_size, read_yolo
from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, StagewiseError
from stagewise.datamodules.images import read_image

BOX = "3 0.5 0.5 0.5 0.5"


def test_a_polygon_is_the_box_around_its_points(yolo):
    yolo.add("a.png", ["1 0.2 0.3 0.6 0.3 0.4 0.7", "1 0.4 0.5 0.4 0.4", "5 0.1 0.1 0.9 0.1 0.9 0.2 0.1 0.2"])
    table = read_yolo(yolo.root).table
    corners = to_corners(table.boxes, (1, 1))
    np.testing.assert_allclose(corners, [[0.2, 0.3, 0.6, 0.7], [0.2, 0.3, 0.6, 0.7], [0.1, 0.1, 0.9, 0.2]])
    assert table.label.tolist() == [1, 1, 5]


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 5, 7, 9])  # beside the class
def test_a_row_of_another_length_names_file_and_line(yolo, columns):
    yolo.add("a.png", [BOX, "", " ".join(["3"] + ["0.5"] * columns)])
    with pytest.raises(BadRowsError, match=rf"a\.txt:3 has {columns + 1} columns; write 'class cx cy w h'"):
        read_yolo(yolo.root)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1.5 0.5 0.5 0.1 0.1", "has class 1.5; write a whole number from 0 to 8"),
        ("a 0.5 0.5 0.1 0.1", "no number"),
        ("1 0.5 0,5 0.1 0.1", "no number"),
        ("1 0.5 nan 0.1 0.1", "not finite"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_even_where_not_strict(yolo, row, words):
    yolo.add("a.png", [row])
    with pytest.raises(BadRowsError, match=rf"a\.txt:1 .*{words}"):
        read_yolo(yolo.root)


BAD = ["0 1.2 0.5 0.1 0.1", "0 0.95 0.5 0.3 0.1", "0 0.5 0.5 0 0.1", "0 0.5 0.5 0.1 -0.1", "0 0.2 0.2 0.4 0.2 0.6 0.2"]
BAD += ["9 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1"]  # data.yaml names 0 to 8


def test_what_lies_outside_has_no_area_or_no_class_is_dropped_and_counted_in_one_line(yolo, caplog):
    yolo.add("a.png", [BOX, *BAD, "0 0.5 0.5 0.03 0.5"])  # the last is 2 px wide
    with caplog.at_level(logging.WARNING):
        folder = read_yolo(yolo.root)
    assert len(folder.table) == 1
    assert {reason: len(where) for reason, where in folder.notes.items()} == {
        "boxes outside the picture": 2,
        "boxes without area": 3,
        "boxes of a class that data.yaml does not name": 2,
        "boxes too small": 1,
    }
    (record,) = caplog.records
    assert "2 boxes outside the picture, 3 boxes without area, 2 boxes of a class" in record.message
    assert record.message.count("a.txt:") == 3 and "a.txt:2" in record.message and "correct or remove" in record.message


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_a_file_from_windows_is_read(yolo, begin):
    yolo.add("a.png", [BOX, BOX])
    path = yolo.root / "labels" / "a.txt"
    path.write_bytes(begin + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_yolo(yolo.root).table.label.tolist() == [3, 3]


@pytest.mark.parametrize("row", BAD)
def test_strict_refuses_it_and_names_file_and_line(yolo, row):
    yolo.add("a.png", [BOX, row])
    with pytest.raises(BadRowsError, match=r"a\.txt:2\. Correct or remove them, or set strict=false"):
        read_yolo(yolo.root, strict=True)


def test_strict_names_the_first_ten(yolo):
    yolo.add("a.png", ["0 0.5 0.5 0 0.1"] * 12)
    with pytest.raises(BadRowsError) as caught:
        read_yolo(yolo.root, strict=True)
    assert "12 boxes without area" in str(caught.value) and "a.txt:10" in str(caught.value)
    assert "a.txt:11" not in str(caught.value)


def test_what_rounding_puts_outside_is_clipped(yolo):
    yolo.add("a.png", ["0 0.5 0.5 1.001 0.5", "0 -0.0005 0.2 0.5 0.2 0.5 0.8"])
    corners = to_corners(read_yolo(yolo.root, strict=True).table.boxes, (1, 1))
    assert len(corners) == 2 and corners.min() >= 0 and corners.max() <= 1


def test_the_least_side_is_measured_in_pixels(yolo):
    yolo.add("small.png", ["0 0.5 0.5 0.05 0.5"])  # 64 px wide: 3.2 px
    yolo.add("large.png", ["0 0.5 0.5 0.05 0.5"], pixels=np.zeros((50, 100, 3), np.uint8))  # 5 px
    table = read_yolo(yolo.root, strict=True).table  # small is no fault of the data
    assert [table.paths[i].endswith("large.png") for i in table.picture] == [True]


def test_pictures_without_labels_stay_and_labels_without_picture_are_told(yolo):
    yolo.add("a.png", [BOX])
    yolo.add("empty.png")
    (yolo.root / "labels" / "empty.txt").unlink()
    yolo.label("gone.png", [BOX])
    yolo.label("classes.png", CLASS_NAMES)  # a list that labelling tools leave there
    folder = read_yolo(yolo.root)
    assert len(folder.table.paths) == 2 and len(folder.table) == 1
    assert len(folder.notes["pictures without objects"]) == 1
    assert [where.endswith("gone.txt") for where in folder.notes["label files without picture"]] == [True]
    with pytest.raises(BadRowsError, match=r"1 label files without picture: .*gone\.txt"):
        read_yolo(yolo.root, strict=True)


def test_a_folder_without_any_object_says_where_the_rows_belong(yolo, tmp_path):
    yolo.places(rows=())
    data = DrainDataModule(str(yolo.root), image={"px": 32}, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(BadRowsError, match=r"rows of '.*images/p0_0\.png' belong into '.*labels/p0_0\.txt'"):
        data.setup("fit")


def test_a_file_that_is_no_picture_is_dropped_with_its_objects(yolo):
    yolo.add("a.png", [BOX])
    yolo.add("b.png", [BOX]).write_bytes(b"no picture")
    yolo.add("c.jpg", [BOX]).write_bytes(b"")
    folder = read_yolo(yolo.root)
    assert len(folder.table) == 1 and len(folder.notes["unreadable pictures"]) == 2
    with pytest.raises(BadRowsError, match=r"2 unreadable pictures: .*b\.png"):
        read_yolo(yolo.root, strict=True)
    (yolo.root / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DatasetNotFoundError, match=r"no picture in the folders .* can be read"):
        read_yolo(yolo.root)


def _kinds():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return {
        "grey.png": colour[..., 0],
        "grey.jpg": colour[..., 0],
        "rgba.png": rng.integers(0, 256, (20, 30, 4), dtype=np.uint8),
        "deep.png": (colour[..., 0].astype(np.uint16) << 8) + 7,
        "plain.JPEG": colour,
    }


@pytest.mark.parametrize("name", _kinds())
def test_the_header_says_the_size_of_the_picture_as_it_is_read(yolo, name):
    path = yolo.add(name, [BOX], pixels=_kinds()[name])
    table = read_yolo(yolo.root, strict=True).table
    assert (table.width[0], table.height[0]) == (30, 20) == tuple(read_image(path).shape[:0:-1])
    assert read_image(path).float().std() > 30  # sixteen bits are scaled down, not cut


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_turns_the_size_as_it_turns_the_picture(tmp_path, orientation, suffix):
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    size = picture_size(tmp_path / f"a.{suffix}")
    assert size == tuple(read_image(tmp_path / f"a.{suffix}").shape[:0:-1])
    assert size == ((20, 30) if orientation > 4 else (30, 20))


# --- data.yaml ---


def test_roboflow_folders_lists_and_any_split_name(yolo):
    yolo.yaml(train="../train/images", valid="../valid/images", field=["a/images", "b/images"], test="")
    for folder in ("train", "valid", "a", "b"):
        yolo.add(f"{folder}.png", [BOX], folder=f"{folder}/images")
    table = read_yolo(yolo.root, strict=True).table
    assert sorted(table.split.tolist()) == ["field", "field", "train", "valid"] and len(table) == 4


def test_path_is_where_the_folders_are(yolo, tmp_path):
    yolo.add("a.png", [BOX], folder="../elsewhere/images")
    yolo.yaml(path=str(tmp_path / "elsewhere"), train="images")
    assert len(read_yolo(yolo.root).table) == 1
    yolo.yaml(path="../elsewhere", train="images", license="CC BY 4.0", kpt_shape=[17, 3])
    assert set(read_yolo(yolo.root).table.split) == {"train"}


def test_labels_lie_where_the_last_images_becomes_labels():
    assert label_path("/images/set/images/train/images.jpg").as_posix() == "/images/set/labels/train/images.txt"
    assert label_path("/set/pictures/a.jpg").as_posix() == "/set/pictures/a.txt"


def test_names_in_another_order_mean_the_same_classes(yolo):
    yolo.yaml(names={i: name for i, name in enumerate(reversed(CLASS_NAMES))}, train="images", nc=9)
    yolo.add("a.png", ["0 0.5 0.5 0.5 0.5", "8 0.5 0.5 0.5 0.5"])
    assert read_yolo(yolo.root).table.label.tolist() == [8, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nc": 8}, "nc is 8, but `names` has 9"),
        ({"names": list(CLASS_NAMES[:8])}, "each of the nine classes once, but has 'vegetation' not at all"),
        ({"names": [*CLASS_NAMES, "Vegetation"]}, "'vegetation' twice"),
        ({"names": [*CLASS_NAMES[:8], "road"]}, "data.yaml': 'road' is no class of drains"),
        ({"names": {1: "vegetation"}}, "number them from 0"),
        ({"names": None}, "has no `names`"),
        ({"train": "nowhere"}, "`train` names the folder 'nowhere', which is not there"),
    ],
)
def test_a_data_yaml_of_something_else_is_refused(yolo, change, words):
    yolo.add("a.png", [BOX])
    yolo.yaml(**{"train": "images", **change})
    with pytest.raises(StagewiseError, match=words):
        read_yolo(yolo.root)


def test_no_data_yaml_no_yaml_and_no_pictures(yolo, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no data\.yaml under root=.*pass datamodule\.root=FOLDER"):
        read_yolo(tmp_path / "nowhere")
    (yolo.root / "images").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"no picture in the folders .* add \.jpg, \.jpeg, \.png"):
        read_yolo(yolo.root)
    (yolo.root / "data.yaml").write_text("a: [")
    with pytest.raises(StagewiseError, match="is no YAML"):
        read_yolo(yolo.root)
