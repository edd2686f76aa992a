import csv
import json

import pytest
import torch
from torchvision.io import decode_image

from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.geolocation.predicting import geojson


@pytest.fixture(scope="module")
def module(fitted):
    return load_module(str(fitted.path))


@pytest.fixture
def folder(pictures, tmp_path):
    source = tmp_path / "in"
    (source / "deeper").mkdir(parents=True)
    for path, name in zip(pictures, ("a.jpg", "b.JPG", "deeper/c.jpeg")):
        (source / name).write_bytes(path.read_bytes())
    (source / "broken.jpg").write_bytes(b"no picture")
    (source / "notes.txt").write_text("no picture either")
    return source


def test_a_folder_gives_a_table_a_geojson_and_a_map_each_and_survives_a_broken_picture(
    module, folder, tmp_path, caplog, fitted
):
    target = tmp_path / "out"
    answers = module.predict_folder(str(folder), str(target))
    assert [a["image"].removeprefix(f"{folder}/") for a in answers] == ["a.jpg", "b.JPG", "deeper/c.jpeg"]
    assert "broken.jpg" in caplog.text and "truncated or not a picture" in caplog.text
    for answer, expected in zip(answers, fitted.answers):
        assert answer["latitude"] == pytest.approx(expected["latitude"], abs=1e-4)

    with open(target / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "image",
        "latitude",
        "longitude",
        "province",
        "province_probability",
        "radius_90_km",
        "hypotheses",
    ]
    for row, answer in zip(rows, answers, strict=True):
        assert float(row["latitude"]) == pytest.approx(answer["latitude"], abs=1e-5)
        assert len(json.loads(row["hypotheses"])) == len(answer["hypotheses"])

    content = json.loads((target / "predictions.geojson").read_text())
    assert content["type"] == "FeatureCollection" and len(content["features"]) == 3
    for feature, answer in zip(content["features"], answers):
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Point"
        lon, lat = feature["geometry"]["coordinates"]  # RFC 7946: longitude first
        assert (lon, lat) == (pytest.approx(answer["longitude"], abs=1e-5), pytest.approx(answer["latitude"], abs=1e-5))
        assert feature["properties"]["province"] == answer["province"]

    maps = sorted(target.glob("*.png"))
    assert [path.name.split("_", 1)[1] for path in maps] == ["a.png", "b.png", "c.png"]
    for path in maps:
        image = decode_image(str(path))
        assert min(image.shape[-2:]) > 300 and image.float().std() > 10  # something is drawn


def test_one_picture_is_a_source_too_and_maps_and_pictures_can_be_limited(module, folder, tmp_path):
    assert len(module.predict_folder(str(folder / "a.jpg"), str(tmp_path / "one"), most_maps=0)) == 1
    assert not list((tmp_path / "one").glob("*.png"))
    assert len(module.predict_folder(str(folder), str(tmp_path / "two"), limit=2, most_maps=1)) == 2
    assert len(list((tmp_path / "two").glob("*.png"))) == 1


def test_an_empty_or_missing_folder_is_an_error(module, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(DatasetNotFoundError, match=rf"no picture at input='.*{name}'; pass a folder"):
            module.predict_folder(str(tmp_path / name), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_in_a_list_is_an_error_that_names_it(module, pictures, folder):
    with pytest.raises(BadRowsError, match=r"broken\.jpg"):
        module.predict_images([*pictures, folder / "broken.jpg"])


def test_answers_do_not_depend_on_the_batch_or_the_mode(module, pictures, fitted):
    module.train()
    one_by_one = [module.predict_images([path])[0] for path in pictures]
    assert module.training
    module.eval()
    for answer, expected in zip(one_by_one, fitted.answers):
        assert answer["latitude"] == pytest.approx(expected["latitude"], abs=1e-4)
        assert answer["province_probability"] == pytest.approx(expected["province_probability"], abs=1e-4)
    assert module.predict_images([]) == []


def test_the_probability_of_the_province_uses_the_temperature(module, pictures, monkeypatch):
    plain = module.predict_images(pictures[:1])[0]
    monkeypatch.setitem(module.calibration, "temperature", 1e4)
    flat = module.predict_images(pictures[:1])[0]
    assert flat["province_probability"] == pytest.approx(1 / 3, abs=1e-3)
    assert flat["latitude"] == plain["latitude"]


def test_pictures_of_any_shape_are_located(module, tmp_path):
    from torchvision.io import write_png

    for i, shape in enumerate([(3, 20, 90), (1, 200, 33), (3, 32, 32)]):
        write_png(torch.randint(0, 255, shape, dtype=torch.uint8), str(tmp_path / f"{i}.png"))
    answers = module.predict_images(sorted(tmp_path.glob("*.png")))
    assert len(answers) == 3


def test_no_answers_are_an_empty_collection():
    assert geojson([]) == {"type": "FeatureCollection", "features": []}
