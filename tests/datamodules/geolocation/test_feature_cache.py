import json
import os

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StaleCacheError
from stagewise.datamodules.geolocation import feature_cache
from stagewise.datamodules.geolocation.photo_table import read_photo_table

ROWS, VIEWS = 10, 3
KEY = {"weights": "w0", "transform": "t0", "data": "d0"}


class Encoder:
    """Counts its calls; the feature tells row and view."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, batch):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the device went away")
        row = batch["sample_id"].float()
        return {"clip": torch.stack([row, batch["view"].float(), row / 3], 1), "scene": row[:, None].double()}


def batches(view):
    for rows in torch.arange(ROWS).flip(0).split(4):  # in any order: sample_id says where a row goes
        yield {"sample_id": rows, "view": torch.full((len(rows),), view)}


def load(folder, encode, key=KEY, views=VIEWS):
    return feature_cache.load_or_make(folder, key, views, ROWS, batches, encode)


def test_features_are_stored_once_by_view_and_row_in_half_precision(tmp_path):
    encode = Encoder()
    made = load(tmp_path / "cache", encode)
    assert encode.calls == VIEWS * 3
    assert {name: (array.shape, array.dtype) for name, array in made.items()} == {
        "clip": ((VIEWS, ROWS, 3), np.float16),
        "scene": ((VIEWS, ROWS, 1), np.float16),
    }
    assert np.array_equal(made["clip"][:, :, 0], np.tile(np.arange(ROWS), (VIEWS, 1)))
    assert np.array_equal(made["clip"][:, :, 1], np.tile(np.arange(VIEWS)[:, None], (1, ROWS)))
    again = load(tmp_path / "cache", encode)
    assert encode.calls == VIEWS * 3
    assert all(np.array_equal(again[name], made[name]) for name in made)
    assert isinstance(again["clip"], np.memmap) and not again["clip"].flags.writeable


@pytest.mark.parametrize("part", ["weights", "transform", "data"])
def test_a_stale_cache_is_refused_and_says_what_differs(tmp_path, part):
    load(tmp_path / "cache", Encoder())
    encode = Encoder()
    with pytest.raises(StaleCacheError, match=f"cache' was made from other {part}; delete the folder"):
        load(tmp_path / "cache", encode, KEY | {part: "other"})
    with pytest.raises(StaleCacheError, match=f"other {part}, views;" if part < "views" else "other views, weights;"):
        load(tmp_path / "cache", encode, KEY | {part: "other"}, views=4)
    assert encode.calls == 0


@pytest.mark.parametrize("fail_at", [1, 2, 9])
def test_an_interrupted_run_leaves_no_cache_and_the_next_makes_it(tmp_path, fail_at):
    folder = tmp_path / "deep" / "cache"
    with pytest.raises(RuntimeError, match=r"went away"):
        load(folder, Encoder(fail_at))
    assert not folder.exists()
    made = load(folder, Encoder())
    assert np.array_equal(made["scene"][2, :, 0], np.arange(ROWS))
    assert sorted(path.name for path in folder.iterdir()) == ["clip.npy", "key.json", "scene.npy"]
    assert [path.name for path in folder.parent.iterdir()] == ["cache"]
    assert json.loads((folder / "key.json").read_text()) == KEY | {"views": VIEWS, "rows": ROWS}


def test_data_key_follows_rows_and_pictures(country):
    path = country.write() / "train.csv"

    def key():
        return feature_cache.data_key(read_photo_table(path, None)[0])

    seen = [key()]
    assert key() == seen[0]
    picture = country.picture("train", 0)
    os.utime(picture, ns=(0, 12345))
    seen.append(key())
    picture.write_bytes(picture.read_bytes() + b"\0")
    os.utime(picture, ns=(0, 12345))  # same time, other size
    seen.append(key())
    country.rows["train"][:2] = country.rows["train"][1::-1]
    country.write()
    seen.append(key())
    country.rows["train"].pop()
    country.write()
    seen.append(key())
    assert len(set(seen)) == 5
