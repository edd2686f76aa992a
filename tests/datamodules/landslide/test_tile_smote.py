"""SMOTE on tiles: imbalanced-learn's synthetic set, and what must hold of it in any case."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import tracemalloc

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from sklearn.neighbors import NearestNeighbors

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide import parent_tiles, tile_smote
from stagewise.datamodules.landslide.channels import LANDCOVER, ChannelList
from stagewise.datamodules.landslide.parent_tiles import nearest
from stagewise.datamodules.landslide.synthetic_tiles import SyntheticTiles
from stagewise.datamodules.landslide.tile_smote import TileSmote, TileSource, between

CHANNELS = ChannelList(["elevation", "slope", *LANDCOVER])
CONTINUOUS = 2
SIDE = 6
RICH, POOR = 9, 14
MEAN, STD = [1500.0, 20.0] + [0.0] * 11, [400.0, 8.0] + [1.0] * 11


def tiles(holes=False, rich=RICH):
    """Rich ones first, then poor ones of class 0."""
    rng = np.random.default_rng(5)
    made = []
    for i in range(rich + POOR):
        channels = np.zeros((len(CHANNELS), SIDE, SIDE), np.float32)
        channels[:CONTINUOUS] = rng.normal(0, 1, (2, SIDE, SIDE)) * [[[400]], [[8]]] + [[[1500]], [[20]]]
        cover = rng.integers(0, 11, (SIDE, SIDE))
        channels[CONTINUOUS:] = np.eye(11, dtype=np.float32)[cover].transpose(2, 0, 1)
        mask = rng.choice([-1, 0, 1, 2], (SIDE, SIDE), p=[0.2, 0.1, 0.5, 0.2]) if i < rich else np.zeros((SIDE, SIDE))
        if holes:
            channels[:, i % SIDE, i % 5] = np.nan
            channels[1, 0, i % 3] = np.nan
            mask[np.isnan(channels).any(0)] = -1
        made.append((channels, mask.astype(np.int64)))
    return made


def source(made, mean=MEAN, std=STD, key="data", read=None):
    counts = np.array([np.bincount(mask[mask >= 0], minlength=3) for _, mask in made])
    names = [f"area:{i}:0" for i in range(len(made))]
    return TileSource(read or made.__getitem__, names, counts, CHANNELS, mean, std, key)


def oracle(vectors, count, seed, neighbours=5):
    """What imbalanced-learn appends to the rich tiles (and to as many others as it wants for a second class)."""
    y = np.array([1] * RICH + [0] * POOR)
    smote = SMOTE(sampling_strategy={1: RICH + count}, random_state=seed, k_neighbors=neighbours)
    return smote.fit_resample(vectors, y)[0][RICH + POOR :]


def all_of(made):
    pairs = [made[i] for i in range(len(made))]
    return np.stack([c for c, _ in pairs]), np.stack([m for _, m in pairs])


class OnFirst(NearestNeighbors):
    """Neighbours by the first ``columns`` features only; the others come along."""

    columns = len(CHANNELS) * SIDE * SIDE

    def fit(self, x, y=None):
        return super().fit(x[:, : self.columns])

    def kneighbors(self, x, return_distance=True):
        return super().kneighbors(x[:, : self.columns], return_distance=return_distance)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_synthetic_set_is_imbalanced_learns(tmp_path, seed):
    made, smote = tiles(), TileSmote(target_share=0.3, seed=seed)
    ours, masks = all_of(smote.make(source(made), tmp_path))
    assert len(ours) >= 5
    raw, true_mask = all_of(made)
    scale = np.float32(STD)[:, None, None]
    normalised = (raw - np.float32(MEAN)[:, None, None]) / scale
    one_hot = np.eye(4, dtype=np.float32)[true_mask]  # the last one is "ignored"
    vectors = np.concatenate([normalised.reshape(len(made), -1), one_hot.reshape(len(made), -1)], 1)
    theirs = oracle(vectors, len(ours), seed, OnFirst(n_neighbors=6))
    channels = theirs[:, : OnFirst.columns].reshape(ours.shape) * scale + np.float32(MEAN)[:, None, None]
    np.testing.assert_allclose(ours[:, :CONTINUOUS], channels[:, :CONTINUOUS], rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(ours[:, CONTINUOUS:].argmax(1), channels[:, CONTINUOUS:].argmax(1))
    assert set(np.unique(ours[:, CONTINUOUS:])) == {0, 1}
    classes = theirs[:, OnFirst.columns :].reshape(*masks.shape, 4).argmax(-1)
    np.testing.assert_array_equal(masks, np.where(classes == 3, -1, classes))


def test_without_one_hots_the_set_is_bitwise_imbalanced_learns(tmp_path):
    made = [(channels[:CONTINUOUS], mask) for channels, mask in tiles()]
    plain = source(made, [0, 0], [1, 1])._replace(channels=ChannelList(CHANNELS.names[:CONTINUOUS]))
    ours, _ = all_of(TileSmote(target_share=0.3, seed=3).make(plain, tmp_path))
    theirs = oracle(all_of(made)[0].reshape(len(made), -1), len(ours), 3)
    np.testing.assert_array_equal(ours.reshape(len(ours), -1), theirs)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_neighbours_are_those_of_exact_distances(offset):
    x = np.random.default_rng(0).normal(offset, 1, (40, 3000)).astype(np.float32)
    exact = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(x.astype(np.float64))
    expected = exact.kneighbors(x.astype(np.float64), return_distance=False)[:, 1:]
    np.testing.assert_array_equal(nearest(np.array_split(x, 7, axis=1), 5), expected)


def test_pieces_of_any_size_give_the_same_tiles(tmp_path, monkeypatch):
    made, smote = tiles(), TileSmote(target_share=0.3)
    whole = smote.make(source(made), tmp_path / "whole")
    monkeypatch.setattr(parent_tiles, "BLOCK_BYTES", 4 * RICH * 5)  # 5 pixels at a time, which does not divide 36
    pieces = smote.make(source(made), tmp_path / "pieces")
    assert whole.manifest == pieces.manifest
    for a, b in zip(all_of(whole), all_of(pieces)):
        np.testing.assert_array_equal(a, b)


def test_each_lies_on_the_segment_between_its_parents_and_says_so(tmp_path):
    made = tiles(holes=True)
    synthetic = TileSmote(target_share=0.3).make(source(made), tmp_path)
    assert len({tile["id"] for tile in synthetic.manifest}) == len(synthetic)
    for i, said in enumerate(synthetic.manifest):
        (a, mask_a), (b, mask_b) = (made[int(said[role].split(":")[1])] for role in ("base", "neighbour"))
        channels, mask = synthetic[i]
        assert said["base"] != said["neighbour"] and 0 <= said["lambda"] < 1
        low, high = np.minimum(a, b)[:CONTINUOUS], np.maximum(a, b)[:CONTINUOUS]
        there = ~np.isnan(low)
        inside = (channels[:CONTINUOUS] >= low - 1e-3) & (channels[:CONTINUOUS] <= high + 1e-3)
        assert inside[there].all()
        along = (
            (channels - a)[:CONTINUOUS][there] @ (b - a)[:CONTINUOUS][there] / ((b - a)[:CONTINUOUS][there] ** 2).sum()
        )
        assert along == pytest.approx(said["lambda"], abs=1e-5)
        assert np.isin(mask, [-1, 0, 1, 2]).all()
        assert ((mask == mask_a) | (mask == mask_b) | (mask == -1)).all()
        np.testing.assert_array_equal(np.bincount(mask[mask >= 0], minlength=3), synthetic.counts[i])


def test_no_data_in_a_parent_is_no_data_and_ignored(tmp_path):
    made = tiles(holes=True)
    synthetic = TileSmote(target_share=0.3).make(source(made), tmp_path)
    for i, said in enumerate(synthetic.manifest):
        a, b = (made[int(said[role].split(":")[1])][0] for role in ("base", "neighbour"))
        channels, mask = synthetic[i]
        np.testing.assert_array_equal(np.isnan(channels), np.isnan(a) | np.isnan(b))
        assert (mask[np.isnan(channels).any(0)] == -1).all()


def test_the_seed_decides(tmp_path):
    made = tiles()
    first, again, other = (
        TileSmote(target_share=0.3, seed=seed).make(source(made), tmp_path / place)
        for seed, place in [(0, "a"), (0, "b"), (1, "c")]
    )
    np.testing.assert_array_equal(all_of(first)[0], all_of(again)[0])
    assert not np.array_equal(all_of(first)[0], all_of(other)[0])
    assert not {t["id"] for t in first.manifest} & {t["id"] for t in other.manifest}


def test_the_rare_class_reaches_its_share_and_the_log_says_it(tmp_path, caplog):
    made = tiles()
    train = source(made)
    with caplog.at_level(logging.INFO):
        synthetic = TileSmote(target_share=0.4).make(train, tmp_path)
    counts = train.counts.sum(0) + synthetic.counts.sum(0)
    assert counts[1] / counts.sum() == pytest.approx(0.4, abs=0.02)
    assert f"{len(synthetic)} synthetic tiles of {RICH} rich ones" in caplog.text
    assert f"now {counts[1] / counts.sum():.2%}" in caplog.text


def test_a_share_that_is_there_makes_none_with_a_warning(tmp_path, caplog):
    made = tiles()
    with caplog.at_level(logging.WARNING):
        synthetic = TileSmote(target_share=0.01).make(source(made), tmp_path)
    assert len(synthetic) == 0 and "0 synthetic tiles" in caplog.text
    assert synthetic.counts.shape == (0, 3)


def test_the_same_is_not_made_twice_and_another_is(tmp_path):
    made = tiles()
    smote = TileSmote(target_share=0.3)
    first = smote.make(source(made), tmp_path)

    def unread(_):
        raise AssertionError("read although it was there")

    assert smote.make(source(made, read=unread), tmp_path).manifest == first.manifest
    for changed in (source(made, key="other", read=unread), source(made, mean=[0.0] * 13, read=unread)):
        with pytest.raises(AssertionError):
            smote.make(changed, tmp_path)


def test_a_failure_in_the_middle_leaves_nothing_and_the_next_run_makes_it(tmp_path):
    made = tiles()

    def full_disk(i):
        if i == RICH - 2:
            raise OSError(28, "No space left on device")
        return made[i]

    with pytest.raises(OSError, match="No space"):
        TileSmote(target_share=0.3).make(source(made, read=full_disk), tmp_path)
    assert left_by(tmp_path) == []
    made = TileSmote(target_share=0.3).make(source(made), tmp_path)
    assert len(made) and left_by(tmp_path) == [made.folder.name]


def left_by(folder):
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_killed_run_leaves_nothing_under_the_final_name_and_the_next_clears_up(tmp_path, monkeypatch):
    calls = iter(range(9))

    def dies(*arguments):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return between(*arguments)

    monkeypatch.setattr(tile_smote, "between", dies)
    train, smote = source(tiles()), TileSmote(target_share=0.3)
    run = multiprocessing.get_context("fork").Process(target=smote.make, args=(train, tmp_path))
    run.start()
    run.join()
    monkeypatch.undo()
    (half,) = left_by(tmp_path)
    assert run.exitcode == -signal.SIGKILL and half.endswith(".part")
    other = TileSmote(target_share=0.4).make(train, tmp_path)  # not confused by what other settings left
    made = smote.make(train, tmp_path)
    assert sorted(left_by(tmp_path)) == sorted([made.folder.name, other.folder.name])
    assert made.manifest == smote.make(train, tmp_path / "anew").manifest


def test_only_rich_tiles_are_read(tmp_path):
    made, seen = tiles(), []
    TileSmote(target_share=0.3).make(source(made, read=lambda i: seen.append(i) or made[i]), tmp_path)
    assert set(seen) == set(range(RICH))


def test_too_few_rich_tiles_are_named_with_the_remedy(tmp_path):
    with pytest.raises(StagewiseError, match=r"k=5 needs 6 tiles with at least 30% .* train has 4; lower `rich_share`"):
        TileSmote(target_share=0.3).make(source(tiles(rich=4)), tmp_path)


def test_a_share_beyond_the_rich_tiles_is_refused(tmp_path):
    with pytest.raises(StagewiseError, match="raise `rich_share`"):
        TileSmote(target_share=0.9).make(source(tiles()), tmp_path)


@pytest.mark.parametrize(("name", "value"), [("target_share", 7.5), ("rich_share", 0.0), ("k", 0)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(StagewiseError, match=f"`{name}`"):
        TileSmote(**{name: value})


def test_a_disk_without_room_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StagewiseError, match=r"need .* GB"):
        TileSmote(target_share=0.3).make(source(tiles()), tmp_path)


def test_a_cut_file_is_refused(tmp_path):
    folder = TileSmote(target_share=0.3).make(source(tiles()), tmp_path).folder
    path = folder / "channels.npy"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(StagewiseError, match=r"channels.npy' is missing or too short"):
        SyntheticTiles.open(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StagewiseError, match="delete the folder"):
        SyntheticTiles.open(folder)


def test_the_files_are_plain_numpy_and_json(tmp_path):
    synthetic = TileSmote(target_share=0.3).make(source(tiles()), tmp_path)
    channels, masks = all_of(synthetic)
    np.testing.assert_array_equal(np.load(synthetic.folder / "channels.npy"), channels)
    np.testing.assert_array_equal(np.load(synthetic.folder / "masks.npy"), masks)
    assert json.loads((synthetic.folder / "manifest.json").read_text())["settings"]["k"] == 5


def test_at_the_ends_it_is_the_parent():
    a, b = tiles()[:2]
    for step, parent in ((0.0, a), (1.0, b)):
        channels, mask = between(a, b, step, CHANNELS.one_hot)
        np.testing.assert_allclose(channels, parent[0], atol=1e-3)
        np.testing.assert_array_equal(mask, parent[1])


def test_memory_does_not_grow_with_the_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(parent_tiles, "BLOCK_BYTES", 1 << 15)
    shape = (2, 64, 64)

    def read(i):
        return np.random.default_rng(i).random(shape, dtype=np.float32), np.full(shape[1:], i < 60, np.int64)

    counts = np.array([[0, 4096]] * 60 + [[4096, 0]] * 60)
    train = TileSource(read, [str(i) for i in range(120)], counts, ChannelList(["a", "b"]), [0, 0], [1, 1], "data")
    tracemalloc.start()
    made = TileSmote(target_share=0.7).make(train, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tile = 4 * np.prod(shape)
    assert len(made) > 60 and peak < 30 * tile, f"{peak / tile:.0f} tiles of memory for {60 + len(made)}"
