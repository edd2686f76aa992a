"""Bad input, region lists, leaks and what is fitted on train: each test is on the message that the user reads."""

import json
import logging
import shutil

import numpy as np
import pytest

from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, QuotaError, SplitLeakError, StagewiseError
from stagewise.datamodules.geolocation.photo_splits import PhotoSplits
from stagewise.datamodules.geolocation.photo_table import read_photo_table
from stagewise.datamodules.geolocation.regions import check_settings, quotas

REGIONS = ["Hills", "Coast", "Desert"]


@pytest.fixture
def splits(country, cell_options):
    def make(on_bad_rows="raise", regions=None, image_root=None, images=True, gap=0.1, **cells):
        checks = {"images": images, "place_gap_km": gap}
        root = country.write()
        cache = root.parent / "cache"
        return PhotoSplits(root, dict(regions or {}), cell_options | cells, image_root, on_bad_rows, checks, cache)

    return make


def refused(splits, name="train", error=BadRowsError):
    with pytest.raises(error) as caught:
        splits.get(name)
    return str(caught.value)


# --- the table ---


def test_a_good_table_is_read_as_it_stands(country, splits):
    rows, table = country.rows["train"], splits().get("train")
    assert len(table) == len(rows) == 60
    assert table.id.to_pylist() == [row["id"] for row in rows]
    assert table.lat_lon_deg.tolist() == [[row["latitude"], row["longitude"]] for row in rows]
    assert table.region.tolist() == [row["province_id"] for row in rows]
    assert table.image_paths() == [str(country.root / row["image"]) for row in rows]
    assert table.image_path(7) == table.image_paths()[7]
    assert table.cell_id is None and table.line.tolist() == list(range(2, 62))


def test_missing_csv_names_file_and_remedy(country, splits):
    made = splits()
    (country.root / "train.csv").unlink()
    message = refused(made, error=DatasetNotFoundError)
    assert message == f"no train.csv under root='{country.root}'; pass datamodule.root=FOLDER."
    made = splits()
    (country.root / "val.csv").unlink()
    assert "no val.csv under root=" in refused(made, "val", DatasetNotFoundError)


def test_missing_columns_are_named(country, splits):
    country.columns = ["id", "image", "latitude", "province"]
    message = refused(splits())
    assert message.startswith(
        f"'{country.root / 'train.csv'}' lacks the column(s) longitude, province_id; it needs id,"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty or no CSV .*; its first line must be id,image,latitude,longitude,province,province_id"),
        ("id,image,latitude,longitude,province,province_id\n", "has a header but no row; add rows"),
        ("id,image,latitude,longitude,province,province_id", "is empty or no CSV"),
        ("id;image;latitude\n1;2;3\n", r"lacks the column\(s\) id, image"),
        ("id,image,latitude,longitude,province,province_id\na,b,1\n", "every line needs the columns of the header"),
    ],
    ids=["0 bytes", "header", "header without newline", "semicolons", "ragged"],
)
def test_empty_and_ragged_files(country, splits, content, words):
    made = splits()
    (country.root / "train.csv").write_text(content)
    with pytest.raises(BadRowsError, match=f"train.csv'.*{words}"):
        made.get("train")


def test_a_file_in_another_encoding_is_refused_with_the_remedy(country, splits):
    country.rows["train"][3]["province"] = "Hïlls"
    made = splits()
    text = (country.root / "train.csv").read_text(encoding="utf-8")
    (country.root / "train.csv").write_bytes(text.encode("latin-1"))
    assert "save the file as UTF-8" in refused(made)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latitude": 91}, "latitude 91.0 is not between -90 and 90"),
        ({"latitude": "NaN"}, "latitude nan is not between -90 and 90"),
        ({"latitude": "north"}, "latitude 'north' is not a number"),
        ({"latitude": ""}, "latitude nan is not between"),
        ({"latitude": "inf"}, "latitude inf is not between"),
        ({"longitude": -180.5}, "longitude -180.5 is not between -180 and 180"),
        ({"longitude": "east"}, "longitude 'east' is not a number"),
        ({"province": "Moon"}, "unknown province 'Moon'; known: Hills, Coast, Desert"),
        ({"province": ""}, "unknown province ''"),
        ({"province": "Coast", "province_id": 2}, "province_id 2 is not the id of 'Coast', which is 1"),
        ({"province": "Hills", "province_id": "zero"}, "province_id 'zero' is not a whole number"),
        ({"id": "train-001"}, "duplicate id 'train-001', first on line 3"),
        ({"image": "images/none.jpg"}, "images/none.jpg': no such file"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_a_bad_row_is_named_with_line_id_and_reason(country, splits, changes, words):
    row = country.rows["train"][4]
    row.update(changes)
    message = refused(splits())
    assert message.startswith(f"'{country.root / 'train.csv'}': 1 of 60 rows cannot be used:\n")
    assert f"line 6 (id '{row['id']}'): " in message and words in message
    assert message.endswith("pass datamodule.on_bad_rows=drop to leave them out.")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "truncated or not a picture"),
        (lambda path: path.write_text("hello"), "truncated or not a picture"),
    ],
    ids=["missing", "empty", "truncated", "text"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_does_not_decode_is_a_bad_row(country, splits, split, damage, why):
    path = country.picture(split, 5)
    damage(path)
    message = refused(splits(), split)
    assert f"line 7 (id '{split}-005'): image '{path}': {why}" in message
    assert len(splits(images=False).get(split)) == len(country.rows[split])  # checks.images=false looks later


def damage_many(country):
    """Fourteen bad rows of every kind, among them cell ids; returns their positions."""
    rows = country.rows["train"]
    country.columns.append("cell_id")
    country.write_cells([(0, 0, 30.1, 70.1), (1, 1, 32.1, 70.1), (2, 2, 34.1, 70.1)])
    rows[40]["latitude"], rows[41]["latitude"], rows[42]["longitude"] = 91, "NaN", "east"
    rows[43]["province"], rows[44]["id"] = "Moon", rows[0]["id"]
    rows[45]["province_id"] = (rows[45]["province_id"] + 1) % 3
    country.picture("train", 46).unlink()
    country.picture("train", 47).write_text("hello")
    rows[48]["cell_id"], rows[49]["cell_id"] = 77, (rows[49]["province_id"] + 1) % 3
    for i in range(50, 54):
        rows[i]["latitude"] = 500
    return list(range(40, 54))


def test_all_bad_rows_stand_in_one_message_ten_named_the_rest_counted(country, splits):
    bad = damage_many(country)
    message = refused(splits())
    assert "14 of 60 rows cannot be used" in message and "and 4 more" in message
    for i in bad[:10]:
        assert f"line {i + 2} (id '{country.rows['train'][i]['id']}'): " in message
    assert "line 52" not in message
    for words in ("91", "nan", "'east'", "'Moon'", "duplicate", "which is", "no such file", "not a picture", "77"):
        assert words in message
    assert "belongs to '" in message


def test_drop_leaves_out_exactly_the_bad_rows_and_reports_them(country, splits, caplog):
    bad = damage_many(country)
    with caplog.at_level(logging.WARNING):
        made = splits("drop")
        table = made.get("train")
    kept = [i for i in range(60) if i not in bad]
    assert table.line.tolist() == [i + 2 for i in kept]
    assert table.id.to_pylist() == [country.rows["train"][i]["id"] for i in kept]
    assert len(table.region) == len(table.lat_lon_deg) == len(table.image) == len(made.cell_of("train")) == 46
    assert made.geography["count"] == np.bincount(table.region).tolist()
    reports = [record.getMessage() for record in caplog.records if "rows cannot be used" in record.getMessage()]
    assert len(reports) == 1
    assert "14 of 60" in reports[0] and reports[0].endswith("They are left out (on_bad_rows=drop).")


def test_drop_refuses_a_table_of_bad_rows_only(country, splits):
    for row in country.rows["train"]:
        row["latitude"] = 91
    assert "60 of 60 rows cannot be used" in refused(splits("drop"))


def test_random_damage_is_found_row_by_row(country, splits):
    rng, kinds = np.random.default_rng(0), [("latitude", 91), ("longitude", "x"), ("province", "Moon"), ("image", "no")]
    clean = json.dumps(country.rows)
    for _ in range(8):
        country.rows = json.loads(clean)
        bad = sorted(rng.choice(60, int(rng.integers(1, 20)), replace=False).tolist())
        for i in bad:
            column, value = kinds[int(rng.integers(len(kinds)))]
            country.rows["train"][i][column] = value
        splits()
        _, _, faults = read_photo_table(country.root / "train.csv", REGIONS)
        table = splits("drop").get("train")
        assert set(faults) <= set(bad)
        assert table.line.tolist() == [i + 2 for i in range(60) if i not in bad]


def test_pictures_may_lie_in_another_folder(country, splits, tmp_path):
    shutil.move(country.root / "images", tmp_path / "elsewhere" / "images")
    assert "60 of 60 rows" in refused(splits())
    table = splits(image_root=str(tmp_path / "elsewhere")).get("train")
    assert table.image_path(0) == str(tmp_path / "elsewhere" / country.rows["train"][0]["image"])


def test_names_in_blocks_of_a_large_file_keep_their_region(tmp_path):
    """Arrow reads blocks of 1 MB, each with its own list of names."""
    path = tmp_path / "large.csv"
    lines = [f"{i},picture-{i:020d}.jpg,30,70,{REGIONS[2 - i // 20_000]},{2 - i // 20_000}" for i in range(60_000)]
    path.write_text("id,image,latitude,longitude,province,province_id\n" + "\n".join(lines) + "\n")
    assert path.stat().st_size > 2**21
    table, names, faults = read_photo_table(path, None)
    assert names == REGIONS and not faults
    assert np.array_equal(table.region, 2 - np.arange(60_000) // 20_000)


# --- regions ---


def test_the_region_list_is_read_from_the_data_in_the_order_of_the_ids(splits):
    made = splits()
    with pytest.raises(StagewiseError, match=r"not known before train.csv is read"):
        _ = made.region_names
    made.read_train()
    assert made.region_names == REGIONS


def test_one_misspelt_name_does_not_change_the_region_list(country, splits):
    country.rows["train"][4].update(province="Hlls", province_id=0)
    made = splits("drop")
    assert len(made.get("train")) == 59 and made.region_names == REGIONS


def test_gaps_in_the_ids_are_refused(country, splits):
    for row in country.rows["train"]:
        row["province_id"] = {0: 0, 1: 1, 2: 5}[row["province_id"]]
    message = refused(splits())
    assert "must number the provinces 0, 1, …, one name each; found {0: 'Hills', 1: 'Coast', 5: 'Desert'}" in message


def test_two_ids_of_one_name_and_no_id_at_all_are_refused(country, splits):
    for row in country.rows["train"]:
        row["province"] = "Hills" if row["province_id"] == 1 else row["province"]
    assert "one name each" in refused(splits())
    for row in country.rows["train"]:
        row["province_id"] = ""
    assert "must number the provinces" in refused(splits())


def test_the_region_list_comes_from_the_table_of_settings(country, splits):
    table = {"Hills": {"tau_km": 30, "offset_scale": 0.6}, "Coast": {}, "Desert": {"tau_km": 100}, "Ice": {}}
    made = splits(regions=table)
    made.read_train()
    assert made.region_names == ["Hills", "Coast", "Desert", "Ice"]
    assert made.geography["tau_km"] == [30, None, 100, None]
    assert made.geography["offset_scale"] == [0.6, 1.0, 1.0, 1.0]
    assert made.geography["count"] == [36, 15, 9, 0]
    swapped = {"Coast": {}, "Hills": {}, "Desert": {}}
    assert "province_id 0 is not the id of 'Hills', which is 1" in refused(splits(regions=swapped))
    assert "unknown province 'Desert'; known: Hills, Coast" in refused(splits(regions={"Hills": {}, "Coast": {}}))


def test_an_unknown_region_setting_is_refused():
    with pytest.raises(StagewiseError, match=r"regions.Hills has unknown key\(s\) \['quata'\]; known: quota, tau_km"):
        check_settings({"Hills": {"quata": 4}})
    check_settings({"Hills": {"quota": 4, "tau_km": 3, "offset_scale": 1.0, "max_radius_km": 60}})
    check_settings(None)


# --- quotas ---


def test_quotas_of_seven_regions_and_64_are_the_recipes():
    counts = np.array([58_697, 7_611, 4_810, 3_971, 2_141, 3_265, 967])
    assert quotas(list("abcdefg"), counts, {}, 64) == {0: 16} | dict.fromkeys(range(1, 7), 8)


def test_quotas_without_a_table_always_fill_the_batch_and_leave_empty_regions_out():
    rng = np.random.default_rng(0)
    for _ in range(100):
        counts = rng.integers(0, 50, int(rng.integers(1, 9))) * rng.integers(0, 2)
        counts[0] += 1
        size = int(rng.integers(np.count_nonzero(counts) + 1, 99))
        share = quotas([str(i) for i in range(len(counts))], counts, {}, size)
        assert sum(share.values()) == size and min(share.values()) >= 1
        assert set(share) == set(np.flatnonzero(counts).tolist())
        assert max(share, key=share.get) == int(counts.argmax()) or len(set(share.values())) == 1


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        (
            {"Hills": {"quota": 4}, "Coast": {"quota": 2}},
            8,
            "add up to 6, not to loader.batch_size=8: Hills 4, Coast 2",
        ),
        (
            {"Hills": {"quota": 4}, "Coast": {"quota": 2}, "Desert": {"quota": 2}},
            8,
            "quota of Desert cannot be met: train.csv has no row there",
        ),
        ({"Hills": {"quota": 8}}, 8, "Coast has rows but no quota while others have one"),
        ({}, 2, "loader.batch_size=2 is too small for 2 regions; take at least 3"),
    ],
)
def test_quotas_that_cannot_be_met_are_refused(settings, size, words):
    with pytest.raises(QuotaError, match=words):
        quotas(REGIONS, np.array([9, 5, 0]), settings, size)


# --- cells ---


def test_cells_are_fitted_on_train_only(country, splits):
    before = splits()
    before.get("train")
    for row in country.rows["val"]:
        row["latitude"] += 1.0
    country.rows["val"] += [{**country.rows["val"][0], "id": f"more-{i}"} for i in range(50)]
    after = splits()
    after.get("val"), after.get("test")
    assert after.geography == before.geography
    country.rows["train"].pop()
    changed = splits()
    changed.get("train")
    assert changed.geography != before.geography


def test_the_geography_holds_plain_values_and_the_statistics_of_train(country, splits):
    made = splits()
    made.get("train")
    assert json.loads(json.dumps(made.geography)) == made.geography
    places = np.array([[row["latitude"], row["longitude"]] for row in country.rows["train"]])
    region = np.array([row["province_id"] for row in country.rows["train"]])
    assert made.geography["centroid_deg"] == pytest.approx(places.mean(0).tolist(), abs=0.02)
    for r, centroid in enumerate(made.geography["region_centroid_deg"]):
        assert centroid == pytest.approx(places[region == r].mean(0).tolist(), abs=0.01)
    assert len(made.cell_table) >= 3
    assert np.bincount(made.cell_of("train"), minlength=len(made.cell_table)).min() >= 4


def test_each_row_gets_the_nearest_cell_of_its_region(splits):
    made = splits()
    for name in ("train", "val"):
        table, cells, position = made.get(name), made.cell_table, made.cell_of(name)
        assert np.array_equal(cells.region[position], table.region)
        assert np.array_equal(position, cells.assign(table.lat_lon_deg, table.region))


def test_cell_ids_of_the_csv_are_kept_and_gaps_are_filled(country, splits):
    country.columns.append("cell_id")
    country.write_cells([(10, 0, 30.0, 70.0), (11, 0, 30.3, 70.3), (20, 1, 32.1, 70.1), (30, 2, 34.1, 70.1)])
    hills = [i for i, row in enumerate(country.rows["train"]) if row["province_id"] == 0]
    for i in hills[:20]:
        country.rows["train"][i]["cell_id"] = 11
    made = splits()
    position = made.cell_of("train")
    assert made.cell_table.cell_id[position[hills[:20]]].tolist() == [11] * 20
    table = made.get("train")
    nearest = made.cell_table.assign(table.lat_lon_deg, table.region)
    rest = [i for i in range(60) if i not in hills[:20]]
    assert np.array_equal(position[rest], nearest[rest])
    assert (nearest[hills[:20]] != position[hills[:20]]).any()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("cell_id", "words"),
    [(77, "cell_id 77 is not in the cell table"), ("other", "cell_id {other} belongs to '{name}', the row to '{own}'")],
)
def test_a_cell_id_not_in_the_table_or_of_another_region_is_a_bad_row(country, splits, split, cell_id, words):
    country.columns.append("cell_id")
    country.write_cells([(10, 0, 30.1, 70.1), (11, 1, 32.1, 70.1), (12, 2, 34.1, 70.1)])
    row = country.rows[split][3]
    other = (row["province_id"] + 1) % 3
    row["cell_id"] = 10 + other if cell_id == "other" else cell_id
    message = refused(splits(), split)
    expected = words.format(other=10 + other, name=REGIONS[other], own=row["province"])
    assert f"line 5 (id '{row['id']}'): {expected}" in message
    assert len(splits("drop").get(split)) == len(country.rows[split]) - 1


def test_a_cell_table_by_path_wins_and_a_missing_one_is_refused(country, splits, tmp_path):
    path = country.write_cells([(10, 0, 30.1, 70.1), (11, 1, 32.1, 70.1), (12, 2, 34.1, 70.1)])
    path.rename(tmp_path / "mine.csv")
    made = splits(path=str(tmp_path / "mine.csv"))
    made.get("train")
    assert made.geography["cells"]["cell_id"] == [10, 11, 12]
    assert "no cell table at" in refused(splits(path=str(tmp_path / "other.csv")), error=DatasetNotFoundError)


def test_an_adopted_geography_is_used_and_nothing_is_fitted(country, splits):
    first = splits()
    first.get("train")
    country.rows["train"] = country.rows["train"][:50]
    second = splits()
    second.geography = first.geography
    second.get("train")
    assert second.geography is first.geography
    country.rows["val"][0]["province"] = "Moon"
    third = splits()
    third.geography = first.geography
    assert "unknown province 'Moon'; known: Hills, Coast, Desert" in refused(third, "val")


# --- leaks ---


def test_a_shared_place_fails_and_names_both_ids(country, splits):
    here, there = country.rows["train"][8], country.rows["val"][3]
    there.update(latitude=here["latitude"] + 0.0005, longitude=here["longitude"])  # 56 m
    made = splits()
    message = refused(made, "val", SplitLeakError)
    assert f"1 rows of '{country.root / 'train.csv'}' lie within 0.1 km of a row of" in message
    assert "'train-008' / 'val-003'" in message and "datamodule.checks.place_gap_km" in message
    assert refused(made, "val", SplitLeakError) == message  # asking again does not let it through
    assert len(splits(gap=0.05).get("val")) == len(splits(gap=0).get("val")) == 20


def test_a_place_shared_across_the_date_line_is_found(country, splits):
    country.rows["train"][8].update(longitude=179.9999)
    country.rows["val"][3].update(longitude=-179.9999, latitude=country.rows["train"][8]["latitude"])
    assert "'train-008' / 'val-003'" in refused(splits(), "val", SplitLeakError)


def test_val_and_test_may_not_share_a_place_either(country, splits):
    country.rows["test"][2].update({k: country.rows["val"][5][k] for k in ("latitude", "longitude")})
    made = splits()
    made.get("val")
    assert "'val-005' / 'test-002'" in refused(made, "test", SplitLeakError)


def test_byte_identical_pictures_in_two_splits_fail(country, splits):
    first, second = country.picture("train", 8), country.picture("val", 3)
    shutil.copy(first, second)
    message = refused(splits(), "val", SplitLeakError)
    assert message.startswith(f"1 pictures stand in two splits: '{first}' / '{second}'.")
    shutil.copy(country.picture("train", 8), country.picture("train", 9))  # twice in one split is no leak
    second.write_bytes(country.picture("val", 4).read_bytes())
    assert len(splits().get("val")) == 20
