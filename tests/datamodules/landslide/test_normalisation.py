import json

import numpy as np
import pytest

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide import normalisation
from stagewise.datamodules.landslide.channels import LANDCOVER, ChannelList
from stagewise.datamodules.landslide.normalisation import describe, mahalanobis, merge, moments_of, train_pixels
from stagewise.datamodules.landslide.prepared import CHANNELS_FILE, PreparedArea
from stagewise.datamodules.landslide.spatial_splits import SpatialSplits

rasterio = pytest.importorskip("rasterio")

CELL, TILE = 4, 8
CHANNELS = ChannelList(["elevation", "slope", *LANDCOVER, "curvature", "tpi"])
CONTINUOUS = [0, 1, 13, 14]


def write_area(folder, name, bands, channels=CHANNELS):
    (folder / name).mkdir(parents=True)
    grid = {"driver": "GTiff", "crs": "EPSG:32717", "transform": rasterio.Affine(10, 0, 7e5, 0, -10, 9.5e6)}
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(folder / name / CHANNELS_FILE, "w", dtype="float32", nodata=np.nan, **grid, **shape) as file:
        file.write(bands.astype(np.float32))
    return PreparedArea(name, folder / name, channels)


def bands_of(seed, rows, columns):
    """Elevation, slope, curvature, a constant, and the land cover, with holes."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, columns))
    elevation = 2500 + 40 * seed + 0.5 * base
    slope = 20 + 5 * (base + rng.normal(size=base.shape))
    curvature = 1e-4 * rng.standard_t(5, size=base.shape)
    cover = rng.choice([10, 20, 40], base.shape)
    bands = np.stack([elevation, slope, curvature, np.full(base.shape, 0.3), cover])
    bands[rng.random(bands.shape) < 0.05] = np.nan
    return bands


@pytest.fixture(scope="session")
def bands():
    return {"a": bands_of(0, 78, 90), "b": bands_of(1, 64, 61)}


@pytest.fixture(scope="session")
def areas(bands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("normalisation")
    return {name: write_area(folder, name, values) for name, values in bands.items()}


@pytest.fixture(scope="session")
def splits(bands):
    cells = {name: (-(-b.shape[1] // CELL), -(-b.shape[2] // CELL)) for name, b in bands.items()}
    rng = np.random.default_rng(0)
    counts = {name: rng.integers(0, 3, (*shape, 2)) * (rng.random((*shape, 1)) < 0.8) for name, shape in cells.items()}
    return SpatialSplits.make(counts, CELL, TILE, 10.0, block_cells=5)


@pytest.fixture(scope="session")
def expected(bands, splits):
    """(n,C) all train pixels, in float64, read from the arrays that were written."""
    pixels = []
    for name, values in bands.items():
        channels = CHANNELS.expand(values.astype(np.float32))
        pixels.append(channels[:, splits.mask(name, (0, 0, *values.shape[1:]), "train")].T)
    return np.concatenate(pixels).astype(np.float64)


def test_mean_and_deviation_are_those_of_the_valid_train_pixels(areas, splits, expected):
    found = describe(areas, splits)
    for i in CONTINUOUS[:3]:
        assert found["mean"][i] == pytest.approx(np.nanmean(expected[:, i]), rel=1e-12)
        assert found["std"][i] == pytest.approx(np.nanstd(expected[:, i]), rel=1e-9)
    assert found["low"] == np.nanmin(expected, axis=0).tolist()
    assert found["high"] == np.nanmax(expected, axis=0).tolist()


def test_one_hot_channels_are_untouched_and_a_constant_one_does_not_explode(areas, splits):
    found = describe(areas, splits)
    assert [found["mean"][i] for i in CHANNELS.one_hot] == [0.0] * 11
    assert [found["std"][i] for i in CHANNELS.one_hot] == [1.0] * 11
    assert found["std"][14] == 1.0 and found["mean"][14] == pytest.approx(np.float32(0.3))


@pytest.mark.parametrize("read_px", [4, 20, 512])
def test_each_train_pixel_comes_once_however_it_is_read(areas, splits, expected, read_px, monkeypatch):
    monkeypatch.setattr(normalisation, "READ_PX", read_px)
    found = np.concatenate(list(train_pixels(areas, splits, 10**9)))
    inside = np.isfinite(found).any(axis=1)  # cells of the last row and column leave the raster

    def ordered(pixels):
        return np.sort(pixels[np.isfinite(pixels[:, 0]), 0])

    assert np.array_equal(ordered(found), ordered(expected)) and inside.sum() == np.isfinite(expected).any(axis=1).sum()


def test_nothing_outside_train_and_no_overlap_of_tiles_counts(areas, splits, bands, tmp_path):
    before = describe(areas, splits)
    changed = {}
    for name, values in bands.items():
        other = ~splits.mask(name, (0, 0, *values.shape[1:]), "train")
        spoiled = values.copy()
        spoiled[:4, other] = 1e9
        changed[name] = write_area(tmp_path, name, spoiled)
    assert describe(changed, splits) == before


def test_more_pixels_than_wanted_are_represented_by_cells_drawn_by_the_seed(areas, splits, expected):
    def drawn(seed, most=1200):
        return np.concatenate(list(train_pixels(areas, splits, most, seed)))

    assert np.array_equal(drawn(0), drawn(0), equal_nan=True)
    assert drawn(0).shape != drawn(1).shape or not np.array_equal(drawn(0), drawn(1), equal_nan=True)
    assert len(drawn(0)) == 1200 // CELL**2 * CELL**2 < len(expected)
    every = set(expected[np.isfinite(expected[:, 0]), 0])
    some = drawn(0)[:, 0]
    some = some[np.isfinite(some)].astype(np.float64).tolist()
    assert set(some) <= every and len(set(some)) > 0.9 * len(some)
    assert abs(np.mean(some) - np.nanmean(expected[:, 0])) < 6 * np.nanstd(expected[:, 0]) / np.sqrt(
        len(some) / CELL**2
    )


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_merged_moments_lose_nothing_to_a_large_mean(pieces):
    rng = np.random.default_rng(pieces)
    values = 1e8 + rng.normal(size=(1000, 3))
    values[rng.random(values.shape) < 0.3] = np.nan
    merged = moments_of(np.empty((0, 3)))
    for piece in np.array_split(values, pieces):
        merged = merge(merged, moments_of(piece))
    assert merged[0].tolist() == np.isfinite(values).sum(axis=0).tolist()
    assert merged[1] == pytest.approx(np.nanmean(values, axis=0), rel=1e-14)
    assert np.sqrt(merged[2] / merged[0]) == pytest.approx(np.nanstd(values, axis=0), rel=1e-7)


def test_the_distance_is_scikit_learns_and_the_threshold_a_hundredth_of_train(areas, splits, expected):
    from sklearn.covariance import LedoitWolf

    typical = describe(areas, splits)["typical"]
    three = CONTINUOUS[:3]
    train = expected[np.isfinite(expected[:, CONTINUOUS]).all(axis=1)]
    scale = np.nanstd(expected[:, three], axis=0)
    theirs = LedoitWolf().fit(np.append(train[:, three] / scale, np.zeros((len(train), 1)), axis=1))
    x = train[:200].T.reshape(15, 20, 10)
    wanted = (train[:200, three] / scale - theirs.location_[:3]) @ theirs.precision_[:3, :3]
    wanted = (wanted * (train[:200, three] / scale - theirs.location_[:3])).sum(axis=1)
    assert mahalanobis(x, typical).ravel() == pytest.approx(wanted, rel=1e-4)
    distance = mahalanobis(train.T[:, :, None], typical)
    assert (distance > typical["threshold"]).mean() == pytest.approx(0.01, abs=0.002)


def test_pixels_unlike_train_are_found_and_nodata_stays_nodata(areas, splits):
    typical = describe(areas, splits)["typical"]
    x = np.zeros((15, 1, 4), np.float32)
    x[[0, 1, 14], 0] = np.array([[2520], [20], [0.3]])
    x[0, 0, 1] = 4000  # an elevation that train never saw
    x[1, 0, 2] = np.nan
    x[14, 0, 3] = 9  # train has but one value of it: nothing to measure by
    found = mahalanobis(x, typical)[0]
    assert found[0] < typical["threshold"] < 1e4 < found[1] and np.isnan(found[2]) and found[3] == found[0]


def test_channels_that_go_together_make_an_odd_pair_stand_out():
    rng = np.random.default_rng(0)
    one = rng.normal(size=20_000)
    pixels = np.stack([one, one + 0.1 * rng.normal(size=one.size)], axis=1)
    pair = ChannelList(["slope", "tri"])
    typical = normalisation.typical_of(pixels, pixels.mean(axis=0), pixels.std(axis=0), pair)
    along, across = (
        mahalanobis(np.array([[[2.0]], [[2.0]]]), typical),
        mahalanobis(np.array([[[2.0]], [[-2.0]]]), typical),
    )
    assert along < typical["threshold"] < 50 * typical["threshold"] < across


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_distance_does_not_depend_on_a_channels_unit(unit):
    rng = np.random.default_rng(0)
    pixels = rng.multivariate_normal([3, 5], [[1, 0.6], [0.6, 1]], 3000)
    pair = ChannelList(["slope", "tri"])
    found = []
    for scale in (np.array([1, 1]), np.array([1, unit])):
        p = pixels * scale
        typical = normalisation.typical_of(p, p.mean(axis=0), p.std(axis=0), pair)
        found.append(mahalanobis(p[:50].T[:, :, None], typical).ravel())
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_the_statistics_are_plain_values(areas, splits):
    found = describe(areas, splits)
    assert json.loads(json.dumps(found)) == found
    assert found["typical"]["positions"] == CONTINUOUS and np.shape(found["typical"]["precision"]) == (4, 4)


def test_a_channel_without_data_in_train_is_named(bands, splits, tmp_path):
    empty = {name: values.copy() for name, values in bands.items()}
    for values in empty.values():
        values[1] = np.nan
    areas = {name: write_area(tmp_path, name, values) for name, values in empty.items()}
    with pytest.raises(StagewiseError, match=r"\['slope'\] have no data at any train pixel"):
        describe(areas, splits)


def test_channels_that_never_have_data_together_are_named(bands, splits, tmp_path):
    apart = {name: values.copy() for name, values in bands.items()}
    for values in apart.values():
        values[0, ::2], values[1, 1::2] = np.nan, np.nan
    areas = {name: write_area(tmp_path, name, values) for name, values in apart.items()}
    with pytest.raises(StagewiseError, match=r"0 train pixels have data in all of \['elevation', 'slope'"):
        describe(areas, splits)
