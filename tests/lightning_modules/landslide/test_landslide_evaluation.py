"""The score of an exported map: over labelled pixels of the split, read in blocks, with everything said that is missing."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn import metrics as sk

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide.channels import ChannelList
from stagewise.datamodules.landslide.prepared import PreparedArea
from stagewise.lightning_modules.landslide import evaluation
from stagewise.lightning_modules.landslide.evaluation import evaluate_maps
from stagewise.lightning_modules.landslide.labelled_pixels import LabelledPixels

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
CHANNELS, CLASSES = ["slope", "twi"], ["low", "medium", "high"]
SCHEMA = {"channels": CHANNELS, "classes": CLASSES, "tile_px": 16}
SIDE = 120


class Columns:
    """Splits that are vertical strips with gaps."""

    def __init__(self, test=(80, 200)):
        self.strips = {"train": (0, 50), "val": (55, 65), "calibration": (68, 72), "test": test}

    def mask(self, area, window, split):
        _, column, rows, columns = window
        at, (first, last) = np.arange(column, column + columns), self.strips[split]
        return np.broadcast_to((at >= first) & (at < last), (rows, columns))


def write(path, bands, nodata, names=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    grid = {"crs": "EPSG:32717", "transform": rasterio.Affine(10, 0, 7e5, 0, -10, 9.6e6)}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **shape, **grid) as raster:
        raster.write(bands)
        for i, name in enumerate(names, 1):
            raster.set_band_description(i, name)


def make_area(folder, seed, side=SIDE):
    """An area with labels that have gaps, and a map of it that is good but not perfect."""
    rng = np.random.default_rng(seed)
    slope, twi, hidden = (gaussian_filter(rng.normal(size=(side, side)), s) for s in (5, 4, 3))
    slope, twi, hidden = (field / field.std() for field in (slope, twi, hidden))
    truth = slope + 0.5 * twi + 0.5 * hidden
    label = (np.digitize(truth, [0.8, 1.2]) + 1).astype(np.uint8)
    label[gaussian_filter(rng.normal(size=(side, side)), 4) > 0.03] = 0
    z = np.stack([-3 * np.abs(truth - centre) for centre in (0.0, 1.0, 2.0)]) + rng.normal(size=(3, side, side))
    p = (np.exp(z) / np.exp(z).sum(0)).astype(np.float32)
    write(folder / "channels.tif", np.stack([20 + 10 * slope, twi]).astype(np.float32), np.nan, CHANNELS)
    write(folder / "labels.tif", label[None], 0)
    write(folder / "map" / "probabilities.tif", p, np.nan)
    write(folder / "map" / "class_map.tif", p.argmax(0)[None].astype(np.uint8), 255)


def areas_of(root, names=("wet", "dry")):
    return {name: PreparedArea(name, root / name, ChannelList(CHANNELS)) for name in names}


def truth_and_map(root, name, split="test"):
    with rasterio.open(root / name / "labels.tif") as raster:
        label = raster.read(1).astype(int) - 1
    with rasterio.open(root / name / "map" / "probabilities.tif") as raster:
        p = raster.read()
    inside = Columns().mask(name, (0, 0, *label.shape), split) & (label >= 0)
    return label[inside], p[:, inside].T


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("areas")
    for seed, name in enumerate(("wet", "dry")):
        make_area(folder / name, seed)
    return folder


def evaluate(root, folder, names=("wet", "dry"), **given):
    maps = {name: root / name / "map" for name in names}
    given = {"areas": areas_of(root, names), "splits": Columns(), "schema": SCHEMA, "baselines": False} | given
    return evaluate_maps(maps, folder=folder, **given)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Fewer draws, and pictures that are only names: test_curves looks at real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "intervals", partial(evaluation.intervals, draws=100))
        patch.setattr(evaluation, "leads", partial(evaluation.leads, draws=100))
        for name in ("draw_rates", "draw_reliability", "draw_confusion"):
            patch.setattr(evaluation, name, lambda *given: next(g for g in given if isinstance(g, Path)).touch())
        yield


@pytest.fixture(scope="module")
def evaluated(root, quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return (*evaluate(root, folder, baselines=True, train_pixels=1000, trees=6), folder)


def test_figures_are_those_of_all_labelled_test_pixels_of_all_areas(root, evaluated):
    metrics, _, _ = evaluated
    y, p = (np.concatenate(both) for both in zip(*(truth_and_map(root, name) for name in ("wet", "dry"))))
    assert metrics["test/pixels"] == len(y)
    assert metrics["test/quadratic_kappa"] == pytest.approx(sk.cohen_kappa_score(y, p.argmax(1), weights="quadratic"))
    assert metrics["test/auroc/high"] == pytest.approx(sk.roc_auc_score(y == 2, p[:, 2]), abs=1e-3)
    for name in ("wet", "dry"):
        y, p = truth_and_map(root, name)
        assert metrics[f"test/area/{name}/kappa"] == pytest.approx(sk.cohen_kappa_score(y, p.argmax(1)))
    assert metrics["test/kappa/ci_low"] < metrics["test/kappa"] < metrics["test/kappa/ci_high"]


def test_baselines_stand_on_the_same_pixels_with_their_leads_and_the_leak(evaluated):
    metrics, text, _ = evaluated
    for model in ("majority", "slope_threshold", "logistic_regression", "random_forest"):
        ours, theirs = metrics["test/quadratic_kappa"], metrics[f"test/baseline/{model}/quadratic_kappa"]
        assert metrics[f"test/baseline/{model}/pixels"] == metrics["test/pixels"]
        assert metrics[f"test/baseline/{model}/lead/quadratic_kappa"] == pytest.approx(ours - theirs)
        assert model.replace("_", " ") in text
    assert metrics["test/baseline/majority/auroc/high"] == 0.5
    assert metrics["test/baseline/majority/average_precision/medium"] == pytest.approx(
        metrics["test/prevalence/medium"]
    )
    leaky, buffered, gap = (metrics[f"test/leak/{kind}/auroc/high"] for kind in ("leaky", "buffered", "gap"))
    assert gap == pytest.approx(leaky - buffered) and metrics["test/leak/test_pixels_in_train"] > 0.5
    assert "random tiles, overlapped by half" in text


def test_the_report_names_prevalence_and_lift_and_names_its_pictures(evaluated):
    _, text, folder = evaluated
    header = next(line for line in text.splitlines() if "precision" in line)
    assert header.index("prevalence") < header.index("precision") < header.index("lift")
    wanted = {f"{kind}{end}.png" for kind in ("rates", "reliability", "confusion") for end in ("", "_wet", "_dry")}
    assert {path.name for path in folder.iterdir()} == wanted


def test_what_the_map_says_where_nobody_looked_changes_no_score(root, tmp_path):
    make_area(tmp_path / "wet", 0)
    before, _ = evaluate(tmp_path, tmp_path / "a", ["wet"])
    with rasterio.open(tmp_path / "wet" / "labels.tif") as raster:
        unlabelled = raster.read(1) == 0
    with rasterio.open(tmp_path / "wet" / "map" / "probabilities.tif", "r+") as raster:
        p = raster.read()
        p[:, unlabelled] = np.array([0.0, 0.0, 1.0])[:, None]
        raster.write(p)
    after, _ = evaluate(tmp_path, tmp_path / "b", ["wet"])
    rates = {name for name in before if name.endswith("_rate_area")}  # these rank all ground, labelled or not
    assert rates and all(after[name] != before[name] for name in rates)
    same = set(before) - rates
    assert {k: str(after[k]) for k in same} == {k: str(before[k]) for k in same}


def test_labels_of_other_splits_change_no_score_without_baselines(tmp_path):
    make_area(tmp_path / "wet", 0)
    before, _ = evaluate(tmp_path, tmp_path / "a", ["wet"])
    with rasterio.open(tmp_path / "wet" / "labels.tif", "r+") as raster:
        label = raster.read(1)
        label[:, 50:80] = 3
        raster.write(label, 1)
    after, _ = evaluate(tmp_path, tmp_path / "b", ["wet"])
    assert after["test/kappa"] == before["test/kappa"] and after["test/pixels"] == before["test/pixels"]


def test_cut_points_and_baselines_do_not_see_test_truth(root, tmp_path):
    make_area(tmp_path / "wet", 0)
    options = {"baselines": True, "train_pixels": 500, "trees": 3}
    before, _ = evaluate(tmp_path, tmp_path / "a", ["wet"], **options)
    with rasterio.open(tmp_path / "wet" / "labels.tif", "r+") as raster:
        label = raster.read(1)
        label[:, 80:] = np.where(label[:, 80:] > 0, 4 - label[:, 80:], 0)  # the opposite is true
        raster.write(label, 1)
    after, _ = evaluate(tmp_path, tmp_path / "b", ["wet"], **options)
    flipped = [before[f"test/baseline/slope_threshold/{k}"] for k in ("precision/high", "prevalence/high")]
    assert after["test/baseline/slope_threshold/exponent"] == before["test/baseline/slope_threshold/exponent"] == 0
    assert after["test/baseline/slope_threshold/quadratic_kappa"] < 0 < before["test/baseline/slope_threshold/kappa"]
    assert flipped[0] > flipped[1]


def test_labelled_pixels_without_a_prediction_are_counted_and_said(tmp_path):
    make_area(tmp_path / "wet", 0)
    y, _ = truth_and_map(tmp_path, "wet")
    with rasterio.open(tmp_path / "wet" / "map" / "probabilities.tif", "r+") as raster:
        p = raster.read()
        p[:, :40] = np.nan
        raster.write(p)
    _, p = truth_and_map(tmp_path, "wet")
    metrics, text = evaluate(tmp_path, tmp_path / "a", ["wet"])
    gone = np.isnan(p[:, 0]).sum()
    assert metrics["test/missing"] == gone > 0 and metrics["test/pixels"] == len(y) - gone
    assert f"{gone} in 'wet'" in text


def test_the_side_of_the_blocks_moves_intervals_only(root, tmp_path):
    small, _ = evaluate(root, tmp_path / "a", ["wet"], block_px=16)
    large, _ = evaluate(root, tmp_path / "b", ["wet"], block_px=40)
    assert small["test/blocks"] > large["test/blocks"]
    for name in ("kappa", "auroc/high", "ece", "prediction_rate_area"):
        assert small[f"test/{name}"] == pytest.approx(large[f"test/{name}"])
    assert math.isnan(large["test/kappa/ci_low"]) and not math.isnan(small["test/kappa/ci_low"])


def test_a_sample_is_stratified_weighted_and_repeatable(root):
    pixels = LabelledPixels(areas_of(root), Columns(), 3, block_px=32)
    there = pixels.counts("train")
    read = lambda name, window: areas_of(root)[name].read_channels(window)  # noqa: E731
    sample = pixels.sample("train", read, 600, balanced=True, seed=1)
    taken = np.bincount(sample.y)
    assert taken.tolist() == np.minimum(200, there).tolist()
    assert np.bincount(sample.y, sample.weight) == pytest.approx(there)
    assert len(np.unique(np.column_stack([sample.area, sample.place]), axis=0)) == len(sample.y)
    again, other = (pixels.sample("train", read, 600, True, seed).place for seed in (1, 2))
    assert np.array_equal(sample.place, again) and not np.array_equal(sample.place, other)
    label = areas_of(root)["wet"].read_labels((0, 0, SIDE, SIDE))
    wet = sample.area == 0
    assert (label[tuple(sample.place[wet].T)] == sample.y[wet]).all() and sample.place[:, 1].max() < 50


def test_many_small_blocks_are_put_together(root, monkeypatch):
    monkeypatch.setattr("stagewise.lightning_modules.landslide.labelled_pixels.MOST_BLOCKS", 16)
    pixels = LabelledPixels(areas_of(root), Columns(), 3, block_px=10)
    numbers = {}
    for number, window in pixels.windows("wet"):
        numbers.setdefault(number, []).append(window)
    assert len(numbers) == 16
    for windows in numbers.values():  # 3 x 3 neighbours
        assert len(windows) == 9 and max(w[0] for w in windows) - min(w[0] for w in windows) == 20


def test_metrics_are_json(evaluated):
    assert json.loads(json.dumps(evaluated[0]))["test/pixels"] == evaluated[0]["test/pixels"]


def test_maps_that_do_not_fit_are_refused(root, tmp_path):
    with pytest.raises(StagewiseError, match=r"export area 'wet' with predict\.py first"):
        evaluate_maps({"wet": tmp_path}, areas_of(root), Columns(), SCHEMA, tmp_path)
    with pytest.raises(StagewiseError, match="area 'dry' has labelled pixels of the split 'test' and no map"):
        evaluate_maps({"wet": root / "wet" / "map"}, areas_of(root), Columns(), SCHEMA, tmp_path)
    with pytest.raises(StagewiseError, match=r"maps of \['north'\], but the data has the areas"):
        evaluate_maps({"north": tmp_path}, areas_of(root), Columns(), SCHEMA, tmp_path)
    write(tmp_path / "probabilities.tif", np.full((3, 50, 60), 1 / 3, np.float32), np.nan)
    with pytest.raises(StagewiseError, match=r"\(50 x 60\) lies on another grid than area 'wet' \(120 x 120\)"):
        evaluate_maps({"wet": tmp_path}, areas_of(root, ["wet"]), Columns(), SCHEMA, tmp_path)
    two = {**SCHEMA, "classes": ["low", "high"]}
    with pytest.raises(StagewiseError, match="has 3 bands, the model has 2 classes"):
        evaluate_maps({"wet": root / "wet" / "map"}, areas_of(root, ["wet"]), Columns(), two, tmp_path)
    write(tmp_path / "probabilities.tif", np.full((3, SIDE, SIDE), 0.5, np.float32), np.nan)
    with pytest.raises(StagewiseError, match=r"no classes '.*class_map\.tif' beside the probabilities"):
        evaluate_maps({"wet": tmp_path}, areas_of(root, ["wet"]), Columns(), SCHEMA, tmp_path)
    write(tmp_path / "class_map.tif", np.zeros((1, 50, 60), np.uint8), 255)
    with pytest.raises(StagewiseError, match=r"class_map\.tif' has another size than '.*probabilities\.tif'"):
        evaluate_maps({"wet": tmp_path}, areas_of(root, ["wet"]), Columns(), SCHEMA, tmp_path)
    write(tmp_path / "class_map.tif", np.zeros((1, SIDE, SIDE), np.uint8), 255)
    with pytest.raises(StagewiseError, match=r"add up to 1 ± 0\.50"):
        evaluate_maps({"wet": tmp_path}, areas_of(root, ["wet"]), Columns(), SCHEMA, tmp_path)


def test_nothing_labelled_is_an_error(root, tmp_path):
    with pytest.raises(StagewiseError, match="nothing to score"):
        evaluate(root, tmp_path, ["wet"], splits=Columns(test=(0, 0)))


def test_the_answers_are_those_of_the_exported_classes(tmp_path):
    make_area(tmp_path / "wet", 0)
    label, p = truth_and_map(tmp_path, "wet")
    weights = np.array([1.0, 3.0, 1.0])
    with rasterio.open(tmp_path / "wet" / "map" / "probabilities.tif") as raster:
        classes = (raster.read() * weights[:, None, None]).argmax(0).astype(np.uint8)
    write(tmp_path / "wet" / "map" / "class_map.tif", classes[None], 255)
    with areas_of(tmp_path, ["wet"])["wet"] as area:
        options = {"baselines": False, "block_px": 16}
        args = {"wet": tmp_path / "wet" / "map"}, {"wet": area}, Columns(), SCHEMA, tmp_path / "figures"
        metrics, _ = evaluate_maps(*args, **options)
        expected = sk.cohen_kappa_score(label, (p * weights).argmax(1), weights="quadratic")
        assert metrics["test/quadratic_kappa"] == pytest.approx(expected)
        classes[:, 100] = 255
        write(tmp_path / "wet" / "map" / "class_map.tif", classes[None], 255)
        with pytest.raises(StagewiseError, match=r"class_map\.tif' lacks a class where there is a probability"):
            evaluate_maps(*args, **options)
