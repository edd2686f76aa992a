"""The store: a file is decoded once, nothing half-made is left, other data make another store."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from stagewise.datamodules.drains import crop_store
from stagewise.datamodules.drains.crop_store import CropStore, open_crops
from stagewise.datamodules.drains.crops import crop_window, letterbox, whole_window
from stagewise.datamodules.drains.yolo import read_yolo
from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.images import read_image


@pytest.fixture
def table(yolo):
    yolo.places(places=2)
    return read_yolo(yolo.root).table


def folders(cache):
    return [path.name for path in (cache / "drains").iterdir() if path.is_dir()]


def test_what_is_stored_is_what_the_pure_functions_give(table, tmp_path):
    store = open_crops(table, tmp_path, px=64, margin=0.1, pad="context", wholes=True)
    for row in range(0, len(table), 5):
        number = int(table.picture[row])
        picture, size = read_image(table.paths[number]), (64, 48)
        crop = letterbox(picture, crop_window(table.boxes[row], size, 0.1, "context"), 64)
        assert torch.equal(store.crop(row), crop)
        assert torch.equal(store.whole(number), letterbox(picture, whole_window(size), 64))


def test_each_file_is_decoded_once_and_not_again_when_the_store_is_there(table, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(crop_store, "read_image", lambda path: opened.append(path) or read_image(path))
    first = open_crops(table, tmp_path, px=32, wholes=True)
    assert sorted(opened) == sorted(table.paths)
    assert open_crops(table, tmp_path, px=32, wholes=True).folder == first.folder
    assert len(opened) == len(table.paths)


def test_other_settings_boxes_or_files_make_another_store(table, tmp_path):
    open_crops(table, tmp_path, px=32)
    for changed in ({"px": 48}, {"px": 32, "margin": 0.2}, {"px": 32, "pad": "context"}, {"px": 32, "wholes": True}):
        before = len(folders(tmp_path))
        open_crops(table, tmp_path, **changed)
        assert len(folders(tmp_path)) == before + 1
    os.utime(table.paths[0], (1, 1))
    count = len(folders(tmp_path))
    open_crops(table, tmp_path, px=32)
    table.boxes[0, 0] += 0.01
    open_crops(table, tmp_path, px=32)
    assert len(folders(tmp_path)) == count + 2


def test_a_run_that_is_stopped_leaves_no_store(table, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(crop_store, "letterbox", killed)
        open_crops(table, tmp_path, px=32)
    assert folders(tmp_path) == []
    assert open_crops(table, tmp_path, px=32).crop(0).float().std() > 0


def test_a_picture_that_does_not_decode_is_named_and_the_others_are_there(table, tmp_path):
    data = open(table.paths[1], "rb").read()
    open(table.paths[1], "wb").write(data[: len(data) // 2])  # its header is whole
    store = open_crops(table, tmp_path, px=32)
    assert list(store.broken) == [1] and "truncated" in store.broken[1]
    assert all(store.crop(row).float().std() > 0 for row in range(len(table)) if table.picture[row] != 1)


def test_a_box_is_of_the_picture_as_exif_turns_it(yolo, tmp_path):
    """As YOLO's own tools read it: the label of a turned photograph is drawn on what a viewer shows."""
    seen = np.zeros((40, 60, 3), np.uint8)
    seen[10:20, 5:15] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer turns the stored pixels by 90 degrees clockwise
    yolo.add("a.png", ["3 0.16666667 0.375 0.16666667 0.25"], pixels=np.rot90(seen).copy(), exif=turned)
    table = read_yolo(yolo.root, strict=True).table
    crop = open_crops(table, tmp_path / "cache", px=16, margin=0.0).crop(0)
    assert (table.width[0], table.height[0]) == (60, 40) and crop[:, 5:11, 5:11].min() == 255


def test_a_worker_gets_the_name_of_the_store_and_not_its_pixels(table, tmp_path):
    store = open_crops(table, tmp_path, px=64)
    store.crop(0)
    sent = pickle.dumps(store)
    assert len(sent) < 2000 and torch.equal(pickle.loads(sent).crop(3), store.crop(3))
    image = store.crop(0)
    image.fill_(0)  # a sample may be changed, the store is not
    assert store.crop(0).any()


def test_a_folder_without_manifest_is_refused(table, tmp_path):
    store = open_crops(table, tmp_path, px=32)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(StagewiseError, match=r"no crops in .*; delete the folder"):
        CropStore(store.folder)
    shutil.rmtree(store.folder)
    assert np.array_equal(open_crops(table, tmp_path, px=32).crop(0).shape, (3, 32, 32))
