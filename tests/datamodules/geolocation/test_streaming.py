"""Shards: converted, read, resumed, and refused; a `local:` store stands for one behind a URL."""

import csv
import json
import os
import pickle
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter

from stagewise.convert import run
from stagewise.datamodules import GeolocationDataModule
from stagewise.datamodules.errors import (
    BadRowsError,
    DataMismatchError,
    DatasetNotFoundError,
    ShardError,
    StagewiseError,
)
from stagewise.datamodules.images import centre_box, crop, read_image

LOADER = {"batch_size": 8, "batches_per_epoch": 6}
SMALL_MB = 0.006  # half a dozen pictures


@pytest.fixture
def make(cell_options, tmp_path):
    def build(root, storage="litdata", loader=None, **options):
        options = {"cells": cell_options, "image": {"px": 16}, "cache_dir": str(tmp_path / "cache"), **options}
        return GeolocationDataModule(str(root), storage=storage, loader=LOADER | (loader or {}), **options)

    return build


@pytest.fixture
def opened(make):
    def build(root, *args, **options):
        module = make(root, *args, **options)
        module.setup("fit")
        return module

    return build


@pytest.fixture
def convert(country, make, tmp_path):
    def build(name="store", shard_mb=SMALL_MB, splits=None, **options):
        country.write()
        make(country.root, "folder", **options).convert(str(tmp_path / name), shard_mb, splits)
        return tmp_path / name

    return build


def rows_of(root, split):
    with open(root / f"{split}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def batches(loader, epoch=0):
    loader.batch_sampler.sampler.set_epoch(epoch)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, second)
    )


def one_shard(store):
    return store / json.loads((store / "manifest.json").read_text())["splits"]["train"][1]["file"]


# --- conversion ---


def test_every_picture_and_every_column_comes_back_byte_for_byte(country, convert, opened):
    country.columns.append("note")
    for rows in country.rows.values():
        rows[2]["note"] = 'a "quoted", note'
    store = convert()
    module = opened(store)
    for split, expected in country.rows.items():
        rows, pictures = rows_of(store, split), (module.splits.get(split), module.shards(split))[1]
        for number, row in enumerate(rows):
            assert pictures.content(number).numpy().tobytes() == (country.root / row["image"]).read_bytes()
        assert len(rows) == len(expected) and all(set(row) == set(country.columns) for row in rows)
        plain = [{k: str(v) for k, v in ({"note": ""} | row).items()} for row in expected]
        assert sorted(rows, key=str) == sorted(({k: p[k] for k in rows[0]} for p in plain), key=str)
    assert [row["id"] for row in rows_of(store, "val")] == [row["id"] for row in country.rows["val"]]
    regions = [int(row["province_id"]) for row in rows_of(store, "train")]
    assert regions == sorted(regions)  # shards of one region
    assert len(list((store / "train" / "0").glob("*.bin"))) > 3


def test_litdata_itself_reads_the_shards(country, convert):
    store = convert()
    rows = [row for row in rows_of(store, "train") if row["province_id"] == "1"]
    theirs = StreamingDataset(str(store / "train" / "1"))
    assert len(theirs) == len(rows)
    for number in (0, 7, 14):
        assert bytes(theirs[number]) == (country.root / rows[number]["image"]).read_bytes()


def test_a_conversion_gives_the_same_shards_again_and_mixes_the_rows_of_a_region(country, convert):
    first, again = convert("first"), convert("again")
    assert (first / "manifest.json").read_text() == (again / "manifest.json").read_text()
    ids = [row["id"] for row in rows_of(first, "train") if row["province_id"] == "0"]
    assert ids != sorted(ids) == sorted(row["id"] for row in country.rows["train"] if row["province_id"] == 0)


def test_a_failed_conversion_leaves_nothing(convert, tmp_path, monkeypatch):
    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(BinaryWriter, "done", fail)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="disk full"):
        convert()
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache"}


def test_a_killed_conversion_leaves_no_store_and_the_next_one_makes_it(convert, opened, tmp_path, monkeypatch):
    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(BinaryWriter, "done", kill)
        child = os.fork()
        if not child:
            convert()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "store.part").is_dir() and not (tmp_path / "store").exists()
    opened(convert())
    assert not (tmp_path / "store.part").exists()


def test_a_conversion_overwrites_nothing_and_writes_no_url(convert, make, country):
    store = convert()
    with pytest.raises(StagewiseError, match=r"output='.*store' is there already; pass another folder"):
        convert()
    with pytest.raises(StagewiseError, match=r"output='s3://bucket/x' is remote; write a local folder and copy it"):
        make(country.root, "folder").convert("s3://bucket/x")
    with pytest.raises(StagewiseError, match=r"these are shards already; pass datamodule.storage=folder"):
        make(store).convert("other")


def test_bad_rows_are_refused_or_left_out_when_shards_are_made(country, convert, opened):
    bad = country.rows["train"][4]
    country.picture("train", 4).write_bytes(b"no picture")
    with pytest.raises(BadRowsError, match=r"train-004.*truncated or not a picture"):
        convert()
    module = opened(convert(on_bad_rows="drop"))
    assert len(module.splits.get("train")) == 59
    assert bad["id"] not in module.splits.get("train").id.to_pylist()


def test_the_command_says_what_it_wrote(country, tmp_path, capsys):
    settings = [f"datamodule.root={country.write()}", "datamodule.regions=null", f"paths.cache={tmp_path / 'cache'}"]
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose("convert", [*settings, f"output={tmp_path / 'store'}", f"options.shard_mb={SMALL_MB}"])
    text = run(cfg)
    assert capsys.readouterr().out.strip() == text
    assert re.search(r"train: 60 pictures in \d\d shards, 0.1 MB", text) and "storage=litdata datamodule.root=" in text
    with pytest.raises(StagewiseError, match="is there already"):
        run(cfg)


# --- reading ---


def test_one_shard_a_region_gives_the_very_batches_of_the_folder(country, convert, opened):
    store = convert(shard_mb=32)
    folder = opened(store, "folder", image={"px": 16, "root": str(country.root)})
    for epoch in range(2):
        expected = batches(folder.train_dataloader(), epoch)
        assert same(batches(opened(store).train_dataloader(), epoch), expected)
    assert same(list(opened(store).val_dataloader()), list(folder.val_dataloader()))
    assert same(list(opened(store).reference_dataloader()), list(folder.reference_dataloader()))


def test_geography_and_evaluation_are_those_of_the_folder(country, convert, opened):
    store, folder = opened(convert()), opened(country.root, "folder")
    assert store.geography["cells"] == folder.geography["cells"]
    assert store.geography["count"] == folder.geography["count"]
    assert same(list(store.val_dataloader()), list(folder.val_dataloader()))
    assert same(list(store.test_dataloader()), list(folder.test_dataloader()))


@pytest.mark.parametrize("balance", ["sampler", "weights"])
def test_batches_of_many_shards_hold_the_mix_and_the_pictures_of_their_rows(country, convert, opened, balance):
    store = convert()
    module = opened(store, loader={"balance": balance, "batches_per_epoch": None}, streaming={"window": 1})
    folder = opened(store, "folder", image={"px": 16, "root": str(country.root)}).dataset("train")
    for batch in batches(module.train_dataloader(), 1):
        mix = Counter(batch["label"].tolist())
        assert mix == {0: 4, 1: 2, 2: 2} if balance == "sampler" else 3 <= mix[0] <= 6
        for row, draw, image in zip(batch["sample_id"].tolist(), batch["draw"].tolist(), batch["image"]):
            assert torch.equal(folder[(row, draw)]["image"], image)


def test_rows_that_training_drops_do_not_shift_the_pictures_of_the_others(country, convert, opened):
    country.columns.append("cell_id")
    bad = [row["id"] for row in country.rows["train"] if row["province_id"] == 0][::5]
    for row in country.rows["train"]:
        row["cell_id"] = 99 if row["id"] in bad else ""
    store = convert()
    cells = country.write_cells([(10, 0, 30.1, 70.1), (11, 1, 32.1, 70.1), (12, 2, 34.1, 70.1)])
    module = opened(store, cells={"path": str(cells)}, on_bad_rows="drop", streaming={"window": 1})
    ids, files = module.splits.get("train").id.to_pylist(), {r["id"]: r["image"] for r in country.rows["train"]}
    assert len(ids) == 60 - len(bad) and not set(ids) & set(bad)
    for batch in batches(module.train_dataloader()):
        assert Counter(batch["label"].tolist()) == {0: 4, 1: 2, 2: 2}
    for row, sample in enumerate(ids):
        expected = read_image(country.root / files[sample])
        assert torch.equal(module.dataset("train")[row]["image"], crop(expected, centre_box(24, 32), 16))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_mid_epoch_with_the_very_samples(convert, opened, workers):
    store, options = convert(), {"streaming": {"window": 1}, "loader": {"num_workers": workers}}
    loader = opened(store, **options).train_dataloader()
    loader.batch_sampler.sampler.set_epoch(2)
    running = iter(loader)
    seen = [next(running) for _ in range(2)]
    state, rest = loader.state_dict(), list(running)
    assert state["batch"] == len(seen) == 2
    again = opened(store, **options).train_dataloader()
    again.load_state_dict(state)
    assert same(list(again), rest)
    other = opened(store, streaming={"window": 2}).train_dataloader()
    with pytest.raises(DataMismatchError, match=r"window: 1 in the checkpoint, 2 here"):
        other.load_state_dict(state)


def test_a_data_set_can_be_sent_to_another_process(convert, opened):
    dataset = opened(f"local:{convert()}").dataset("train")
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["image"], dataset[3]["image"])


def test_cached_features_know_the_shards_that_they_were_made_from(convert, opened):
    def encode(batch):
        return {"clip_features": batch["image"].mean((2, 3))}

    module = opened(convert(), feature_cache={"views": 1})
    module.cache_features(encode, "w", torch.device("cpu"))
    cached = torch.cat([batch["clip_features"] for batch in module.reference_dataloader()])
    plain = torch.stack([module.dataset("train")[row]["image"].float().mean((1, 2)) / 255 for row in range(60)])
    assert (cached - plain).abs().max() < 1e-3
    assert module.pictures_key("train") != module.pictures_key("val")


# --- a remote store ---


def test_a_remote_store_gives_the_same_batches_with_a_cache_that_never_grows_beyond_its_limit(convert, opened):
    store = convert()
    window = {"window": 1, "cache_gb": 40_000 / 1e9}
    module = opened(f"local:{store}", streaming=window)
    expected = batches(opened(store, streaming=window).train_dataloader())
    folder, found, held, names = module.store.folder, [], [], set()
    for batch in module.train_dataloader():
        files = [path for path in folder.rglob("*") if path.is_file() and ".bin" in path.name]
        held.append(sum(path.stat().st_size for path in files))
        names |= {path.name for path in files}
        found.append(batch)
    assert same(found, expected)
    assert 20_000 < max(held) <= 40_000 < sum(path.stat().st_size for path in (store / "train").rglob("*.bin"))
    assert same(list(module.val_dataloader()), list(opened(store).val_dataloader()))
    assert not [path for path in folder.rglob("*") if path.suffix == ".part" or path.parent.name == ".arriving"]


def test_a_cache_that_cannot_hold_the_windows_is_refused(convert, opened):
    module = opened(f"local:{convert()}", streaming={"window": 2, "cache_gb": 30_000 / 1e9})
    with pytest.raises(ShardError, match=r"cache_gb=3e-05 is too small: \d+ shards are read at a time; give it"):
        module.train_dataloader()


def test_tables_of_a_store_that_was_made_anew_are_copied_anew(country, convert, opened, tmp_path):
    store = convert()
    first = opened(f"local:{store}")
    list(first.val_dataloader())
    shutil.rmtree(store)
    country.rows["val"].pop()
    convert()
    module = opened(f"local:{store}")
    assert len(module.splits.get("val")) == 19
    assert not list(module.store.folder.rglob("*.bin"))


def test_what_a_killed_download_left_is_removed_in_time(convert, opened):
    store = convert()
    module = opened(f"local:{store}")
    left = module.store.folder / "train" / "0" / "chunk-0-0.bin.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(100))
    os.utime(left, (0, 0))
    module.shards("val").image(0)
    assert not left.exists()


# --- bad input ---


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, r"the shard '.*chunk-0-1.bin' is missing; copy it from where the store was made"),
        (lambda p: os.truncate(p, 2000), r"the shard '.*chunk-0-1.bin' has 2000 of \d+ bytes; copy it"),
    ],
)
def test_a_missing_or_truncated_shard_ends_the_run_before_training(convert, make, harm, words):
    store = convert()
    harm(one_shard(store))
    with pytest.raises(ShardError, match=words):
        make(store).setup("fit")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, r"cannot fetch 'local:.*/train/0/chunk-0-1.bin' \(FileNotFoundError"),
        (lambda p: os.truncate(p, 2000), r"the shard 'local:.*chunk-0-1.bin' is not the one that the manifest names"),
        (lambda p: p.write_bytes(p.read_bytes()[::-1]), r"chunk-0-1.bin' is not the one that the manifest names; copy"),
    ],
)
def test_a_bad_shard_of_a_remote_store_is_named_when_it_is_fetched(convert, opened, harm, words):
    store = convert()
    module = opened(f"local:{store}")
    harm(one_shard(store))
    with pytest.raises(ShardError, match=words):
        list(module.reference_dataloader())
    assert not list(module.store.folder.rglob("*.part")) and not list(module.store.folder.rglob(".arriving/*"))


def test_a_shard_that_is_damaged_while_a_run_reads_it_is_named(convert, opened):
    store = convert()
    module, shard = opened(store), one_shard(store)
    content = shard.read_bytes()
    for harm, words in ((content[:3000], "is truncated or damaged"), (bytes(len(content)), "is truncated or damaged")):
        shard.write_bytes(harm)
        with pytest.raises(ShardError, match=rf"the shard '.*chunk-0-1.bin' {words}"):
            list(module.reference_dataloader())
    shard.unlink()
    with pytest.raises(ShardError, match=r"chunk-0-1.bin' cannot be read \(No such file or directory\); copy it"):
        list(module.reference_dataloader())


def test_tables_and_manifest_are_checked(convert, make, country, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no manifest.json under root=.*python convert.py.*storage=folder"):
        make(country.write()).setup("fit")
    store = convert()
    lines = (store / "val.csv").read_text().splitlines()
    (store / "val.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ShardError, match=r"val.csv' is not the file that the shards were made from; change the rows"):
        make(store).setup("fit")
    (store / "val.csv").unlink()
    with pytest.raises(ShardError, match=r"val.csv' is missing; copy or convert"):
        make(store).setup("fit")
    (store / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match=r"manifest.json' is damaged .*; copy or convert the store again"):
        make(store).setup("fit")
    with pytest.raises(ShardError, match=r"cannot fetch 'local:.*nowhere/manifest.json'"):
        make(f"local:{tmp_path}/nowhere").setup("fit")


def test_mistyped_settings_are_refused(make, country):
    with pytest.raises(StagewiseError, match=r"`storage` must be 'folder' or 'litdata', got 'mds'"):
        make(country.root, "mds")
    with pytest.raises(
        StagewiseError, match=r"`streaming` has unknown key\(s\) \['windows'\]; known: window, cache_gb"
    ):
        make(country.root, streaming={"windows": 3})


def test_a_picture_that_does_not_decode_is_named_by_its_row(country, convert, opened):
    country.picture("val", 3).write_bytes(b"no picture")
    module = opened(convert(checks={"images": False}))
    with pytest.raises(BadRowsError, match=r"picture 3 of the shard '.*val/chunk-0-0.bin' is truncated or not a pic"):
        module.dataset("val")[3]
