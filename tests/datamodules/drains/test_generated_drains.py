"""Generated embankments: the true format, the proportions, and what gives a condition away."""

import csv
import hashlib
import itertools

import numpy as np
import pytest
import yaml
from PIL import Image

from stagewise.datamodules.drains.boxes import box_features
from stagewise.datamodules.drains.ceiling import whole_picture_ceiling
from stagewise.datamodules.drains.generated import draw_embankments, write_generated_drains
from stagewise.datamodules.drains.generated_captions import caption_pairs
from stagewise.datamodules.drains.generated_layout import (
    REAL_COUNTS,
    Thing,
    draw_conditions,
    draw_terraces,
    draw_things,
)
from stagewise.datamodules.drains.generated_objects import Brush, paint
from stagewise.datamodules.drains.generated_scene import draw_ground, draw_look
from stagewise.datamodules.drains.vocabulary import CLASSES, TYPES, class_of, parse_class
from stagewise.datamodules.errors import StagewiseError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drains") / "data"
    write_generated_drains(folder, pictures=24, px=160, locations=4)
    return folder


@pytest.fixture(scope="module")
def layouts():
    """Things of many pictures without a pixel, and the location of each picture."""
    looks = [draw_look(np.random.default_rng((0, place))) for place in range(10)]
    rngs = [np.random.default_rng((1, i)) for i in range(600)]
    where = [i % 10 for i in range(600)]
    bare = [draw_things(rng, draw_terraces(rng, looks[p].crest, looks[p].two)) for rng, p in zip(rngs, where)]
    return draw_conditions(np.random.default_rng(2), bare, [looks[p].habits for p in where]), where


def rows_of(root):
    return {
        path.stem: [[float(x) for x in line.split()] for line in path.read_text().splitlines()]
        for path in sorted((root / "labels").glob("*.txt"))
    }


def test_the_folder_is_a_yolo_data_set(root):
    described = yaml.safe_load((root / "data.yaml").read_text())
    assert described["nc"] == 9 and [parse_class(described["names"][i]) for i in range(9)] == list(range(9))
    pictures, rows = {path.stem for path in (root / described["train"]).glob("*.jpg")}, rows_of(root)
    assert len(pictures) == 24 and set(rows) == pictures
    with (root / "locations.csv").open() as file:
        places = {row["stem"]: row["location"] for row in csv.DictReader(file)}
    assert set(places) == pictures and len(set(places.values())) == 4
    assert Image.open(next((root / "images").glob("*.jpg"))).size == (160, 160)


def test_boxes_and_polygons_lie_in_the_picture_and_are_large_enough(root):
    every = list(itertools.chain(*rows_of(root).values()))
    polygons = [row for row in every if len(row) != 5]
    assert 0.1 < len(polygons) / len(every) < 0.45 and all(len(row) in (9, 25) for row in polygons)
    for row in every:
        assert row[0] in range(9) and all(0 <= value <= 1 for value in row[1:])
        if len(row) == 5:
            assert min(row[3:]) * 160 >= 4
            assert all(side / 2 - 1e-5 <= centre <= 1 - side / 2 + 1e-5 for centre, side in zip(row[1:3], row[3:]))


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(root, tmp_path):
    def digests(folder):
        return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}

    write_generated_drains(tmp_path / "again", pictures=24, px=160, locations=4)
    assert digests(tmp_path / "again") == digests(root)
    first, second = (next(draw_embankments(1, px=160, seed=seed)).pixels for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_a_folder_that_holds_something_is_refused(root):
    with pytest.raises(StagewiseError, match="not an empty folder"):
        write_generated_drains(root, pictures=1)


@pytest.mark.parametrize("wrong", [{"px": 100}, {"locations": 0}, {"difficulty": 1.5}])
def test_arguments_out_of_range_are_refused_and_leave_nothing(tmp_path, wrong):
    with pytest.raises(StagewiseError, match="generated pictures need px"):
        write_generated_drains(tmp_path / "data", pictures=1, **wrong)
    assert not list(tmp_path.iterdir())


def test_outlines_have_the_box_as_their_bounds(layouts):
    for thing in itertools.chain(*layouts[0][:60]):
        outline, (cx, cy, w, h) = thing.outline(), thing.box
        np.testing.assert_allclose(outline.min(0), (cx - w / 2, cy - h / 2), atol=1e-9)
        np.testing.assert_allclose(outline.max(0), (cx + w / 2, cy + h / 2), atol=1e-9)
        assert outline.min() > -1e-9 and outline.max() < 1 + 1e-9


def test_classes_have_the_real_proportions(layouts):
    drawn = np.array([class_of(thing.type, thing.condition) for thing in itertools.chain(*layouts[0])])
    counts, real = np.bincount(drawn, minlength=9), np.array([REAL_COUNTS[one] for one in CLASSES])
    shares = counts / counts.sum() / (real / real.sum())
    assert len(drawn) / 600 == pytest.approx(5, abs=0.6)
    assert (0.7 < shares).all() and (shares < 1.35).all()
    assert 5 < counts[class_of("rock_toe", "damaged")] / counts[class_of("toe_drain", "normal")] < 10


def test_things_are_long_and_thin(layouts):
    sides = np.array([(t.box[2], t.box[3]) for t in itertools.chain(*layouts[0])]) * 320
    kinds = np.array([t.type for t in itertools.chain(*layouts[0])])
    slope, toe = np.median(sides[kinds == "slope_drain"], axis=0), np.median(sides[kinds == "toe_drain"], axis=0)
    assert 10 < slope[0] < 25 and 90 < slope[1] < 140 and toe[0] > 220 and 20 < toe[1] < 38
    assert np.mean(sides.min(1) / sides.max(1) < 0.25) > 0.5


def test_surroundings_say_something_about_the_condition_and_a_picture_holds_several(layouts):
    from sklearn.ensemble import RandomForestClassifier

    things, where = layouts
    features, labels, types, pictures = [], [], [], []
    for number, there in enumerate(things):
        kinds = [TYPES.index(t.type) for t in there]
        features.extend(box_features([t.box for t in there], kinds, (320, 320)) if there else [])
        labels += [class_of(t.type, t.condition) for t in there]
        types += kinds
        pictures += [number] * len(there)
    features, labels, types, pictures = map(np.array, (features, labels, types, pictures))
    train = np.array(where)[pictures] < 7
    majority = np.array([np.bincount(labels[train & (types == t)]).argmax() for t in range(4)])[types]
    model = RandomForestClassifier(60, min_samples_leaf=5, random_state=0, n_jobs=1)
    guess = model.fit(features[train], labels[train]).predict(features[~train])
    forest, constant = np.mean(guess == labels[~train]), np.mean((majority == labels)[~train])
    assert constant + 0.02 < forest < 0.85
    assert 0.35 < whole_picture_ceiling(labels, pictures) < 0.55
    assert whole_picture_ceiling(labels, pictures, types) < 0.9


@pytest.mark.parametrize(
    ("kind", "box"),
    [("slope_drain", (0.5, 0.5, 0.06, 0.4)), ("toe_drain", (0.5, 0.7, 0.8, 0.1)), ("rock_toe", (0.5, 0.7, 0.8, 0.14))],
)
def test_a_condition_shows_inside_the_box_only(kind, box):
    def painted(condition):
        rng = np.random.default_rng(5)
        look, terraces = draw_look(rng), draw_terraces(rng, 0.2, 0.0)
        ground = draw_ground(rng, look, terraces, 320)
        picture = ground.copy()
        paint(picture, Thing(kind, box, 0.01, condition), Brush(rng, look, 0.4, 1.0))
        return ground, picture

    ground, normal = painted("normal")
    _, damaged = painted("damaged")
    left, right, top, bottom = (
        round(320 * (box[i] + sign * box[i + 2] / 2)) for i, sign in ((0, -1), (0, 1), (1, -1), (1, 1))
    )
    inside = np.zeros((320, 320), bool)
    inside[top:bottom, left:right] = True
    assert np.array_equal(ground[~inside], damaged[~inside])
    assert np.mean(np.abs(damaged - normal).max(-1)[inside] > 0.08) > 0.05


def test_an_easier_world_shows_conditions_more_plainly():
    def change(difficulty):
        look = draw_look(np.random.default_rng(1))
        ground = np.broadcast_to(look.ground, (320, 320, 3))
        found = []
        for i in range(20):
            pictures = []
            for condition in ("normal", "blocked"):
                picture = ground.copy()
                thing = Thing("slope_drain", (0.5, 0.5, 0.06, 0.4), 0.0, condition)
                paint(picture, thing, Brush(np.random.default_rng(i), look, difficulty, 1.0))
                pictures.append(picture)
            found.append(np.abs(pictures[1] - pictures[0]).mean())
        return np.mean(found)

    assert change(0.0) > 1.15 * change(1.0)


def test_a_location_is_known_by_its_look():
    drawn = list(draw_embankments(48, px=160, locations=6))
    colours = np.array([one.pixels.reshape(-1, 3).mean(0) for one in drawn])
    places = np.array([one.location for one in drawn])
    centres = np.array([colours[:24][places[:24] == place].mean(0) for place in range(6)])
    nearest = np.linalg.norm(colours[24:, None] - centres, axis=-1).argmin(1)
    assert np.mean(nearest == places[24:]) > 0.5  # one in six by chance


def test_captions_name_the_type_and_now_and_then_the_condition():
    pictures, captions = caption_pairs(150, seed=0, px=24)
    again = caption_pairs(6, seed=0, px=24), caption_pairs(6, seed=0, px=24)
    assert np.array_equal(again[0][0], again[1][0]) and again[0][1] == again[1][1]
    assert pictures.shape == (150, 3, 24, 24) and pictures.dtype == np.uint8 and len(captions) == 150
    names = [kind.replace("_", " ") for kind in TYPES]
    assert all(any(name in text for name in names) for text in captions)
    said = np.mean([any(word in text for word in ("normal", "damaged", "blocked")) for text in captions])
    assert 0.25 < said < 0.6
    assert not any("rock toe blocked" in text or "blocked rock toe" in text for text in captions)
    with pytest.raises(StagewiseError, match="count >= 1"):
        caption_pairs(0)


def test_captions_come_from_another_world_than_the_data():
    data = next(draw_embankments(1, px=160, seed=0)).pixels
    captions = next(draw_embankments(1, px=160, seed=0, stream=1)).pixels
    assert not np.array_equal(data, captions)


def test_ceiling_of_a_model_that_never_sees_the_box():
    labels, pictures = [0, 0, 1, 5, 5, 6], [7, 7, 7, 9, 9, 9]
    assert whole_picture_ceiling(labels, pictures) == pytest.approx(4 / 6)
    assert whole_picture_ceiling(labels, pictures, types=[2, 2, 2, 1, 1, 1]) == pytest.approx(4 / 6)
    assert whole_picture_ceiling(labels, range(6)) == 1
    assert np.isnan(whole_picture_ceiling([], []))
    with pytest.raises(StagewiseError, match="one picture and type a label"):
        whole_picture_ceiling(labels, [1])
