"""Tests of the generated landslide areas: format, the exact rule, labels, determinism and atomic writing."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import dijkstra
from scipy.stats import spearmanr

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide import generated, generated_rule
from stagewise.datamodules.landslide import generated_terrain as terrain
from stagewise.datamodules.landslide.channels import WORLD_COVER
from stagewise.datamodules.landslide.generated import AREAS, PRACTICE_PX, write_generated_landslides
from stagewise.datamodules.landslide.generated_rule import HIGH, LOW, MEDIUM, Climate, landscape

rasterio = pytest.importorskip("rasterio")
reproject = pytest.importorskip("rasterio.warp").reproject
FILES = {"dtm.tif", "ortho.tif", "landcover.tif", "labels.tif", "truth.tif", "generated.json"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landslides") / "data"
    write_generated_landslides(folder, size_px=PRACTICE_PX)
    return folder


@pytest.fixture(scope="module")
def area() -> generated_rule.Landscape:
    return landscape(np.random.default_rng(3), 192, 10.0, Climate(unlabelled=0.3, missing_corners=0.1))


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", AREAS)
def test_the_rasters_are_metric_geotiffs_on_one_grid(root: Path, name: str) -> None:
    assert {path.name for path in (root / name).iterdir()} == FILES
    with rasterio.open(root / name / "dtm.tif") as dtm:
        assert (dtm.dtypes, dtm.shape, dtm.nodata) == (("float32",), (PRACTICE_PX, PRACTICE_PX), -9999.0)
        assert dtm.res == (10.0, 10.0)
        assert dtm.crs.is_projected and dtm.crs.linear_units == "metre"
        for file, kind, count, nodata in (("ortho", "uint8", 4, None), ("labels", "uint8", 1, 0)):
            with rasterio.open(root / name / f"{file}.tif") as other:
                assert (other.transform, other.crs, other.shape) == (dtm.transform, dtm.crs, dtm.shape)
                assert (other.dtypes, other.count, other.nodata) == ((kind,) * count, count, nodata)
    with rasterio.open(root / name / "ortho.tif") as ortho:
        assert [colour.name for colour in ortho.colorinterp] == ["red", "green", "blue", "alpha"]


def test_the_areas_lie_apart_and_differ_in_climate(root: Path) -> None:
    boxes, heights = [], []
    for name in AREAS:
        with rasterio.open(root / name / "dtm.tif") as dtm:
            boxes.append(dtm.bounds)
            heights.append(dtm.read(1, masked=True).mean())
    assert rasterio.coords.disjoint_bounds(*boxes)
    assert heights[1] - heights[0] == pytest.approx(1200, abs=60)


def test_land_cover_needs_reprojection_and_then_is_the_cover_under_each_pixel(area, tmp_path: Path) -> None:
    generated.write_rasters(tmp_path, area, 10.0, (500_000.0, 3_700_000.0))
    with rasterio.open(tmp_path / "dtm.tif") as dtm, rasterio.open(tmp_path / "landcover.tif") as cover:
        assert cover.res == (25.0, 25.0)
        assert (cover.transform.c - dtm.transform.c) % 10 and (cover.transform.f - dtm.transform.f) % 10
        (left, bottom, right, top), fine = cover.bounds, dtm.bounds
        assert left <= fine.left and right >= fine.right and bottom <= fine.bottom and top >= fine.top
        on_grid = np.zeros(dtm.shape, np.uint8)
        reproject(rasterio.band(cover, 1), on_grid, dst_transform=dtm.transform, dst_crs=dtm.crs)
    assert set(np.unique(on_grid)) <= set(WORLD_COVER)
    alike = {
        (row, column): (np.roll(on_grid, (row, column), (0, 1)) == area.landcover).mean()
        for row in range(-2, 3) for column in range(-2, 3)
    }  # fmt: skip
    assert max(alike, key=alike.__getitem__) == (0, 0)
    assert alike[0, 0] > 0.85


def test_truth_is_the_rule(root: Path) -> None:
    either, high, class_ = _read(root / "birch" / "truth.tif")
    known = ~np.isnan(either)
    assert ((_read(root / "birch" / "dtm.tif")[0] != -9999) == known).all()
    assert ((_read(root / "birch" / "ortho.tif")[3] == 255) == known).all()
    assert 0.005 < 1 - known.mean() < 0.05
    low, medium, high = 1 - either[known], (either - high)[known], high[known]
    assert min(low.min(), medium.min(), high.min()) > -1e-6
    assert (np.argmax([low, medium, high], axis=0) + 1 == class_[known]).mean() > 0.999
    rule = json.loads((root / "birch" / "generated.json").read_text(encoding="utf-8"))
    assert rule["rule"] == generated_rule.RULE
    assert rule["climate"]["mean_elevation_m"] == 2100


def test_labels_are_drawn_with_exactly_their_probabilities(area) -> None:
    whole, probabilities = Climate(missed=0.0, unlabelled=0.0), (area.p_high, area.p_medium)
    drawn = [generated_rule.draw_labels(np.random.default_rng(i), *probabilities, whole) for i in range(16)]
    for value, p in ((HIGH, area.p_high), (MEDIUM, area.p_medium)):
        share = np.mean([labels == value for labels in drawn], axis=0)
        for bottom in np.arange(0.05, 0.95, 0.1):
            like = (p >= bottom) & (p < bottom + 0.1)
            if like.sum() > 200:
                assert share[like].mean() == pytest.approx(p[like].mean(), abs=0.05)


def test_labels_have_large_gaps_and_miss_whole_objects(area) -> None:
    assert 0.29 < (area.labels[area.known] == 0).mean() < 0.33
    none = area.labels == 0
    assert (none[:, 1:] != none[:, :-1]).mean() < 0.03  # patches: few borders
    everything, mapped = (
        generated_rule.draw_labels(np.random.default_rng(1), area.p_high, area.p_medium, Climate(**settings))
        for settings in ({"missed": 0.0, "unlabelled": 0.0}, {"missed": 0.5, "unlabelled": 0.0})
    )
    objects, _ = generated_rule.label(everything > LOW)
    size = np.bincount(objects.ravel())
    kept = np.bincount(objects.ravel(), weights=(mapped == everything).ravel()) / size
    assert set(kept.tolist()) == {0.0, 1.0}
    small = size < 0.002 * objects.size
    assert kept[~small].all() and 0.3 < 1 - kept[small].mean() < 0.7  # nobody misses the largest


def test_medium_lies_below_high_and_is_rare(area) -> None:
    classes, height = area.truth, area.height_m
    assert 0.01 < (classes == MEDIUM).mean() < 0.08
    assert (classes == HIGH).mean() > 2 * (classes == MEDIUM).mean()
    uphill = terrain.highest_upslope((classes == HIGH).astype(np.float32), height, generated_rule.RUNOUT_PX)
    downhill = terrain.highest_upslope((classes == HIGH).astype(np.float32), -height, generated_rule.RUNOUT_PX)
    medium = classes == MEDIUM
    assert uphill[medium].mean() > 0.9 > 2 * downhill[medium].mean()


@pytest.mark.parametrize("cover", [10, 60])
def test_forest_protects_and_bare_ground_fails(cover: int) -> None:
    height = np.repeat(np.linspace(0, 190, 32, dtype=np.float32)[:, None], 32, axis=1)
    flat = np.zeros_like(height)
    slope = np.full_like(height, 33.0)
    scores = [
        generated_rule.failure_score(height, slope, flat, flat, np.full(height.shape, code, np.uint8), flat, 10.0)
        for code in (30, cover)
    ]
    change = generated_rule.COVER_EFFECT[cover] - generated_rule.COVER_EFFECT[30]
    assert scores[1] - scores[0] == pytest.approx(change, abs=1e-4)
    assert (change > 0) == (cover == 60)


def test_the_rock_shows_in_the_grain_and_hardly_in_a_single_pixel() -> None:
    rng = np.random.default_rng(0)
    weakness = np.tanh(2.5 * terrain.random_field(rng, 256, power=2.5, finest=16, coarsest=120))
    cover, sun = np.full(weakness.shape, 30, np.uint8), np.ones_like(weakness)
    grey = generated_rule.picture(rng, cover, weakness, sun, 1.0).mean(0)
    fine = np.abs(grey - generated_rule.gaussian_filter(grey, 1.5))
    assert spearmanr(generated_rule.gaussian_filter(fine, 5)[::5, ::5].ravel(), weakness[::5, ::5].ravel())[0] > 0.7
    assert abs(spearmanr(grey[::3, ::3].ravel(), weakness[::3, ::3].ravel())[0]) < 0.2


def test_the_steepest_path_to_the_border_is_the_lowest_pass() -> None:
    height = terrain.random_field(np.random.default_rng(0), 12, power=1.0).astype(np.float64)
    receiver, levels = terrain.drainage_tree(height)
    flat, cells = height.ravel(), np.arange(144)
    highest = flat.copy()  # highest point on the way out, along the tree
    for level in levels[1:]:
        highest[level] = np.maximum(flat[level], highest[receiver[level]])
    order = np.argsort(flat)  # independent: flood to each level, see who reaches the border
    border = {int(i) for i in cells if i // 12 in (0, 11) or i % 12 in (0, 11)}
    for cell in cells[::7]:
        for level in flat[order]:
            wet = flat <= level
            if wet[cell] and _reaches(int(cell), wet, border):
                break
        assert highest[cell] == level


def _reaches(start: int, wet: np.ndarray, goal: set[int]) -> bool:
    rows, columns = np.divmod(np.arange(wet.size), 12)
    near = (np.abs(rows[:, None] - rows) <= 1) & (np.abs(columns[:, None] - columns) <= 1) & wet & wet[:, None]
    return bool(np.isfinite(dijkstra(near.astype(float), indices=start)[list(goal)]).any())


def test_all_water_leaves_over_the_border() -> None:
    receiver, levels = terrain.drainage_tree(terrain.random_field(np.random.default_rng(1), 40, power=1.5))
    outlets = np.flatnonzero(receiver == np.arange(1600))
    assert sorted(np.concatenate(levels).tolist()) == list(range(1600)) and set(outlets) == set(levels[0])
    assert terrain.drained_area(receiver, levels)[outlets].sum() == 1600


def test_relief_is_carved(area) -> None:
    receiver, levels = terrain.drainage_tree(area.height_m)
    drained = terrain.drained_area(receiver, levels).reshape(area.height_m.shape)
    hollow = terrain.convergence(area.height_m, 10.0, 2.0)
    inner = (slice(8, -8), slice(8, -8))
    assert hollow[inner][drained[inner] > 200].mean() > 5 * abs(hollow[inner].mean())
    slope_deg = np.degrees(np.arctan(np.hypot(*terrain.gradient(area.height_m, 10.0))))
    assert np.percentile(slope_deg, 10) < 12 < 28 < np.percentile(slope_deg, 90)
    assert np.percentile(slope_deg, 99.9) < 50


def test_same_arguments_give_the_same_bytes_and_another_seed_other_ones(root: Path, tmp_path: Path) -> None:
    write_generated_landslides(tmp_path / "again", size_px=PRACTICE_PX)
    write_generated_landslides(tmp_path / "other", areas={"alder": {}}, size_px=PRACTICE_PX, seed=1)
    assert _digests(tmp_path / "again") == _digests(root)
    other = _digests(tmp_path / "other")
    assert all(_digests(root)[name] != digest for name, digest in other.items())


def test_an_interrupted_run_leaves_no_half_area_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = generated._write, []

    def stop(path: Path, *arguments: object, **settings: object) -> None:
        calls.append(path)
        if len(calls) == 8:  # in the middle of the second area
            raise KeyboardInterrupt
        write(path, *arguments, **settings)

    monkeypatch.setattr(generated, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        write_generated_landslides(tmp_path, size_px=64)
    assert [path.name for path in tmp_path.iterdir()] == ["alder"]
    before = (tmp_path / "alder").stat().st_mtime_ns
    write_generated_landslides(tmp_path, size_px=64)
    assert {path.name for path in tmp_path.iterdir()} == {"alder", "birch"}
    assert (tmp_path / "alder").stat().st_mtime_ns == before
    assert len(calls) == 8 + 5


def test_an_area_made_otherwise_is_left_alone(root: Path) -> None:
    before = _digests(root)
    with pytest.raises(StagewiseError, match="alder exists and was made otherwise; remove it"):
        write_generated_landslides(root, size_px=PRACTICE_PX, seed=5)
    assert _digests(root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 32}, "`size_px` must be at least 64"),
        ({"pixel_size_m": 0}, "`pixel_size_m` above 0"),
        ({"areas": {"alder": {"rain": 3}}}, r"unknown \['rain'\]; known: mean_elevation_m"),
        ({"areas": {"../alder": {}}}, "use a plain name"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(StagewiseError, match=message):
        write_generated_landslides(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
