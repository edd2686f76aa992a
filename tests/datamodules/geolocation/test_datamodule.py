"""The data module end to end on the tiny country."""

import io
from collections import Counter

import numpy as np
import pytest
import torch

from stagewise.datamodules import GeneratedGeolocationDataModule, GeolocationDataModule, base
from stagewise.datamodules.errors import DatasetNotFoundError, QuotaError, StagewiseError, StaleCacheError
from stagewise.datamodules.geolocation.generated import write_generated_country

LOADER = {"batch_size": 8, "batches_per_epoch": 5}
AUTO_MIX = {0: 4, 1: 2, 2: 2}


@pytest.fixture
def make(country, cell_options, tmp_path):
    def build(loader=None, **options):
        country.write()
        options = {"cells": cell_options, "image": {"px": 16}, "cache_dir": str(tmp_path / "cache"), **options}
        module = GeolocationDataModule(str(country.root), loader=LOADER | (loader or {}), **options)
        module.setup("fit")
        return module

    return build


def epoch(module, number=0):
    """Batches as the network gets them."""
    loader = module.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(number)
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, second)
    )


def test_train_batches_hold_the_mix_and_the_documented_keys(make):
    batches = epoch(make())
    assert len(batches) == 5
    for batch in batches:
        assert Counter(batch["label"].tolist()) == AUTO_MIX
        assert set(batch) == {"image", "lat_lon_deg", "label", "cell", "sample_id", "draw"}
        assert batch["image"].shape == (8, 3, 16, 16) and batch["image"].dtype == torch.float32
        assert batch["image"].min() >= 0 and batch["image"].max() <= 1 and batch["image"].std() > 0.1
        assert all(value.dtype != torch.float64 for value in batch.values())
    assert torch.cat([batch["draw"] for batch in batches]).tolist() == list(range(40))


def test_quotas_of_the_table_are_obeyed_and_checked(make):
    quotas = {"Hills": {"quota": 3}, "Coast": {"quota": 1}, "Desert": {"quota": 4}}
    assert all(Counter(batch["label"].tolist()) == {0: 3, 1: 1, 2: 4} for batch in epoch(make(regions=quotas)))
    with pytest.raises(QuotaError, match=r"add up to 8, not to loader.batch_size=9: Hills 3, Coast 1, Desert 4"):
        make({"batch_size": 9}, regions=quotas)
    with pytest.raises(QuotaError, match=r"quota of Ice cannot be met"):
        make(regions=quotas | {"Ice": {"quota": 1}}, loader={"batch_size": 9})


def test_processes_that_cannot_share_a_batch_are_refused_before_anything_is_encoded(make, monkeypatch):
    monkeypatch.setattr(base, "rank_and_world", lambda: (1, 3))
    quotas = {"Hills": {"quota": 3}, "Coast": {"quota": 4}, "Desert": {"quota": 6}}
    with pytest.raises(QuotaError, match=r"the quota of 'Coast' is 4, not divisible by the 3 processes; take 3 or 6"):
        make({"batch_size": 13}, regions=quotas)
    with pytest.raises(QuotaError, match=r"loader.batch_size is 13, not divisible by the 3 processes; take 12 or 15"):
        make({"batch_size": 13, "balance": "weights"})


def test_weights_balance_keeps_the_natural_mix(make):
    module = make({"balance": "weights", "batch_size": 12})  # 5 batches of 12: each of the 60 rows once
    rows = torch.cat([batch["sample_id"] for batch in epoch(module)])
    assert sorted(rows.tolist()) == list(range(60))
    with pytest.raises(StagewiseError, match=r"loader.balance must be 'sampler' or 'weights', got 'none'"):
        make({"balance": "none"})


def test_augmentation_is_a_function_of_seed_and_draw(make):
    first = epoch(make())
    torch.manual_seed(123), np.random.seed(123)
    assert same(epoch(make()), first)
    assert not same(epoch(make(seed=1)), first)
    module = make()
    batch = next(iter(module.train_dataloader()))
    later = module.on_after_batch_transfer({**batch, "draw": batch["draw"] + 40}, 0)
    assert not torch.allclose(later["image"], module.on_after_batch_transfer(batch, 0)["image"], atol=0.02)


def test_epochs_differ_in_rows_and_pictures_and_can_be_replayed(make):
    module = make()
    first, second = epoch(module, 0), epoch(module, 1)
    assert not any(torch.equal(a["sample_id"], b["sample_id"]) for a, b in zip(first, second))
    one = {int(i): image for batch in first for i, image in zip(batch["sample_id"], batch["image"])}
    two = {int(i): image for batch in second for i, image in zip(batch["sample_id"], batch["image"])}
    shared = one.keys() & two.keys()
    assert shared and not any(torch.allclose(one[i], two[i], atol=0.01) for i in shared)
    assert same(epoch(make(), 1), second)


def test_val_is_the_whole_split_in_order_and_deterministic(make, country):
    module = make()
    first, again = ([module.on_after_batch_transfer(b, 0) for b in m.val_dataloader()] for m in (module, make(seed=7)))
    assert same(first, again)
    assert torch.cat([b["sample_id"] for b in first]).tolist() == list(range(20))
    assert torch.cat([b["label"] for b in first]).tolist() == [row["province_id"] for row in country.rows["val"]]
    assert "draw" not in first[0] and first[0]["image"].dtype == torch.float32 and first[0]["image"].max() <= 1
    reference = list(module.reference_dataloader())
    assert torch.cat([b["sample_id"] for b in reference]).tolist() == list(range(60))


def test_settings_of_the_pictures_reach_them(make):
    still = {"px": 24, "area": [1, 1], "ratio": [1, 1], "jitter": [0, 0, 0, 0], "gamma": [1, 1], "noise": 0}
    module = make(image=still)
    loader = module.train_dataloader()
    for batch in loader:
        plain = batch["image"].float() / 255
        assert batch["image"].shape[-2:] == (24, 24)
        assert (module.on_after_batch_transfer(batch, 0)["image"] - plain).abs().max() < 1e-3


def test_batches_that_are_float_already_pass_untouched(make):
    batch = {"image": torch.rand(2, 3, 4, 4), "draw": torch.arange(2)}
    assert make().on_after_batch_transfer(batch, 0)["image"] is batch["image"]
    features = {"clip_features": torch.rand(2, 4), "draw": torch.arange(2)}
    assert make().on_after_batch_transfer(features, 0) == features


def test_workers_give_the_same_batches(make):
    assert same(epoch(make({"num_workers": 2, "batches_per_epoch": 3})), epoch(make({"batches_per_epoch": 3})))


def test_any_split_can_be_the_test_split(make, country):
    module = make()
    assert sum(len(batch["label"]) for batch in module.test_dataloader()) == 20
    (country.root / "test.csv").rename(country.root / "unseen.csv")
    module = make()
    (country.root / "test.csv").unlink()
    module.test_split = "unseen"
    assert sum(len(batch["label"]) for batch in module.test_dataloader()) == 20
    with pytest.raises(DatasetNotFoundError, match=r"no holdout.csv under root="):
        module.split_dataloader("holdout")


def test_the_geography_loads_with_weights_only(make):
    module = make(regions={"Hills": {"tau_km": 30}, "Coast": {}, "Desert": {"offset_scale": 1.4}})
    file = io.BytesIO()
    torch.save(module.geography, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == module.geography
    kinds = set()

    def walk(value):
        kinds.add(type(value))
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(part)

    walk(module.geography)
    assert kinds == {dict, list, str, int, float, type(None)}


def test_an_adopted_geography_gives_its_own_cells(make, country):
    geography = make().geography
    country.rows["train"] = [row for row in country.rows["train"] if row["latitude"] % 2 < 0.2]
    assert make().geography["cells"] != geography["cells"]
    module = GeolocationDataModule(str(country.root), image={"px": 16})
    module.geography = geography
    module.setup("fit")
    assert module.geography is geography
    expected = module.splits.cell_table.assign(module.splits.get("val").lat_lon_deg, module.splits.get("val").region)
    assert next(iter(module.val_dataloader()))["cell"].tolist() == expected.tolist()


def test_mistyped_arguments_are_refused(country):
    with pytest.raises(StagewiseError, match=r"`on_bad_rows` must be 'raise' or 'drop', got 'skip'"):
        GeolocationDataModule(str(country.root), on_bad_rows="skip")
    with pytest.raises(StagewiseError, match=r"regions.Hills has unknown key\(s\) \['tau'\]"):
        GeolocationDataModule(str(country.root), regions={"Hills": {"tau": 3}})
    with pytest.raises(DatasetNotFoundError, match=r"no train.csv under root='.*nowhere'; pass datamodule.root=FOLDER"):
        GeolocationDataModule(str(country.root / "nowhere")).setup("fit")


# --- generated data ---


def test_a_mistyped_root_refuses_instead_of_generating(tmp_path):
    module = GeneratedGeolocationDataModule(str(tmp_path / "mistyped"), {"root": str(tmp_path / "generated")})
    module.prepare_data()
    with pytest.raises(DatasetNotFoundError, match=r"no train.csv under root=.*mistyped.; pass datamodule.root=FOLDER"):
        module.setup("fit")
    assert list(tmp_path.iterdir()) == []


def test_generated_data_are_written_once_and_train(tmp_path, cell_options):
    root, rows = tmp_path / "generated", {"train": 70, "val": 14, "test": 14}
    module = GeneratedGeolocationDataModule(
        str(root),
        {"root": str(root), "rows": rows, "image_px": 24},
        loader=LOADER,
        image={"px": 16},
        cells=cell_options,
    )
    module.prepare_data()
    before = (root / "train.csv").stat().st_mtime_ns
    module.prepare_data()
    assert (root / "train.csv").stat().st_mtime_ns == before
    module.setup("fit")
    assert all(len(set(batch["label"].tolist())) == 7 for batch in module.train_dataloader())
    other = GeneratedGeolocationDataModule(str(root), {"root": str(tmp_path / "elsewhere")}, cells=cell_options)
    other.prepare_data()
    other.setup("fit")
    assert not (tmp_path / "elsewhere").exists() and len(other.splits.get("val")) == 14
    with pytest.raises(FileExistsError):
        write_generated_country(root, rows=rows)


# --- cached features ---


class Encoder:
    """Mean colour of each picture; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        assert batch["image"].dtype == torch.float32
        return {"clip_features": batch["image"].mean((2, 3))}


def cached(module, encode, weights="w0"):
    module.cache_features(encode, weights, torch.device("cpu"))
    return module


def test_cached_batches_hold_the_mix_and_features_instead_of_pictures(make):
    module, encode = make(feature_cache={"views": 2}), Encoder()
    batches = epoch(cached(module, encode))
    assert encode.calls == 2 + 1 + 1  # two views of train, val, train without augmentation: 128 pictures a batch
    assert len(batches) == 5
    for batch in batches:
        assert "image" not in batch and batch["clip_features"].shape == (8, 3)
        assert Counter(batch["label"].tolist()) == AUTO_MIX
        assert all(value.dtype != torch.float64 for value in batch.values())
    rows = [batch["sample_id"].tolist() for batch in epoch(make())]
    assert [batch["sample_id"].tolist() for batch in batches] == rows


def test_cached_val_and_reference_are_the_plain_pictures_features(make):
    module, encode = make(feature_cache={"views": 2}), Encoder()
    expected = {
        name: torch.cat([encode(module.on_after_batch_transfer(b, 0))["clip_features"] for b in loader])
        for name, loader in (("val", module.val_dataloader()), ("reference", module.reference_dataloader()))
    }
    cached(module, encode)
    for name, loader in (("val", module.val_dataloader()), ("reference", module.reference_dataloader())):
        found = torch.cat([batch["clip_features"] for batch in loader])
        assert (found - expected[name]).abs().max() < 1e-3  # half precision
    views = module._features["train"]["clip_features"]
    assert np.abs(views[0] - views[1]).max() > 0.01  # augmented, each view in its own way


def test_the_cache_is_opened_again_made_anew_for_other_weights_and_refused_for_other_pictures(make, country):
    encode = Encoder()
    first = epoch(cached(make(feature_cache={"views": 2}), encode))
    calls = encode.calls
    assert same(epoch(cached(make(feature_cache={"views": 2}), encode)), first)
    assert encode.calls == calls
    cached(make(feature_cache={"views": 2}), encode, weights="w1")
    cached(make(feature_cache={"views": 2}, image={"px": 12}), encode)
    assert encode.calls == 3 * calls
    picture = country.picture("train", 3)
    picture.write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(StaleCacheError, match=r"was made from other data; delete the folder"):
        cached(make(feature_cache={"views": 2}), encode)
    assert encode.calls == 3 * calls
