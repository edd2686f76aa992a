"""Layers with true nodata, colours and tags, as Cloud-Optimised GeoTIFF that are whole or not there."""

import errno

import numpy as np
import pytest

from stagewise.datamodules.landslide.rasters import Grid
from stagewise.lightning_modules.landslide.maps import LayerFiles, class_colours, layer_values, make_cog, map_layers

rasterio = pytest.importorskip("rasterio")
SIDE = 700


@pytest.fixture(scope="module")
def grid():
    crs = rasterio.crs.CRS.from_epsg(32717).to_wkt()
    return Grid(crs, (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_600_000.0), SIDE, SIDE)


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), (SIDE, SIDE)).transpose(2, 0, 1).astype(np.float32)
    p[:, :40] = np.nan
    p[:, 100:200, 100:200] = np.array([1, 0, 0], np.float32)[:, None, None]  # safe ground
    return layer_values(p, rng.random((SIDE, SIDE), np.float32), rng.random((SIDE, SIDE), np.float32))


@pytest.fixture(scope="module")
def layers():
    return {layer.name: layer for layer in map_layers(["low", "medium", "high"], "mutual information")}


@pytest.fixture(scope="module")
def finished(grid, values, layers, tmp_path_factory):
    folder, output = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("map")
    with LayerFiles(folder, grid, list(layers.values()), {"model": "test"}).writing() as files:
        for row in range(0, SIDE, 512):
            rows = min(512, SIDE - row)
            files.write((row, 0, rows, SIDE), {name: v[:, row : row + rows] for name, v in values.items()})
    for layer in layers.values():
        make_cog(folder / f"{layer.name}.tif", output / f"{layer.name}.tif", layer)
    return output


@pytest.mark.parametrize("name", [layer.name for layer in map_layers(["low", "medium", "high"], "x")])
def test_a_layer_is_a_valid_cog_with_its_values_place_and_tags(finished, layers, values, grid, name):
    from rio_cogeo import cog_validate

    path, layer = finished / f"{name}.tif", layers[name]
    valid, errors, warnings = cog_validate(str(path))
    assert valid and not errors and not warnings
    with rasterio.open(path) as raster:
        assert np.array_equal(raster.read(), values[name], equal_nan=layer.dtype == "float32")
        assert raster.crs.to_epsg() == 32717
        assert tuple(raster.transform)[:6] == grid.transform
        assert raster.descriptions == tuple(layer.bands)
        assert raster.tags().items() >= {"model": "test", **layer.tags}.items()
        assert raster.overviews(1) == [2] and raster.compression.name == "deflate"
        assert raster.dtypes[0] == layer.dtype
        np.testing.assert_equal(raster.nodata, layer.nodata)


def test_nodata_is_true_and_safe_ground_stays(finished):
    with rasterio.open(finished / "score.tif") as raster:
        score = raster.read(1, masked=True)
    assert score.mask[:40].all() and not score.mask[40:].any()
    assert (score[100:200, 100:200] == 0).all()
    with rasterio.open(finished / "class_map.tif") as raster:
        assert np.array_equal(raster.dataset_mask() == 0, score.mask)


def test_the_class_map_has_its_colours_in_overviews_too(finished):
    with rasterio.open(finished / "class_map.tif") as raster:
        colours = raster.colormap(1)
        assert [colours[i] for i in range(3)] == class_colours(3)
        assert colours[255][3] == 0
        assert raster.colorinterp[0].name == "palette"
    with rasterio.open(finished / "class_map.tif", OVERVIEW_LEVEL=0) as raster:
        assert set(np.unique(raster.read(1))) == {0, 1, 2, 255}  # nearest: no class between two


def test_overviews_of_floats_are_means_that_leave_nodata_out(finished, values):
    with rasterio.open(finished / "p_high.tif", OVERVIEW_LEVEL=0) as raster:
        small = raster.read(1)
    expected = values["p_high"][0].reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    np.testing.assert_allclose(small, expected, atol=1e-6)


def test_values_of_a_map():
    p = np.array([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4], [np.nan, np.nan, np.nan]], np.float32).T[:, :, None]
    values = layer_values(p, np.ones((3, 1), np.float32), np.full((3, 1), 2, np.float32))
    assert values["class_map"].ravel().tolist() == [1, 0, 255]
    np.testing.assert_allclose(values["score"].ravel(), [0.55, 0.4, np.nan], atol=1e-6)
    np.testing.assert_allclose(values["p_high"].ravel(), [0.3, 0.4, np.nan], atol=1e-6)
    assert np.isnan(values["uncertainty"].ravel()[2]) and np.isnan(values["novelty"].ravel()[2])
    assert values["valid"].ravel().tolist() == [1, 1, 0]


def test_the_class_is_that_of_the_largest_weighted_probability_and_the_tags_say_so():
    p = np.array([[0.6, 0.25, 0.15], [0.9, 0.05, 0.05]], np.float32).T[:, :, None]
    other = np.ones((2, 1), np.float32)
    values = layer_values(p, other, other, class_weights=[1.0, 4.0, 2.0])
    assert values["class_map"].ravel().tolist() == [1, 0]
    np.testing.assert_array_equal(values["probabilities"], p)  # they stay true
    tags = map_layers(["low", "medium", "high"], "entropy", [1.0, 4.0, 2.0])[0].tags
    assert "low 1, medium 4, high 2" in tags["rule"]


def test_two_classes_are_green_and_red():
    assert class_colours(2) == [class_colours(3)[0], class_colours(3)[2]]


def test_a_full_disk_leaves_the_old_layer_and_no_other_file(tmp_path, finished, layers, monkeypatch):
    target = tmp_path / "score.tif"
    target.write_bytes(b"old")

    def full(source, part, **_):
        with open(part, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rasterio.shutil.copy", full)
    with pytest.raises(OSError, match="No space left"):
        make_cog(finished / "score.tif", target, layers["score"])
    assert [p.name for p in tmp_path.iterdir()] == ["score.tif"]
    assert target.read_bytes() == b"old"


def test_an_intermediate_that_gdal_truncated_without_a_word_is_found(tmp_path, grid, values, layers):
    """GDAL 3.10 closes a file on a full disk without an error: its last blocks are simply not there."""
    files = LayerFiles(tmp_path, grid, [layers["score"]], {})

    def write_and_truncate():
        with files.writing():
            files.write((0, 0, SIDE, SIDE), values)
            file = files._files["score"]
            file.close()
            with open(tmp_path / "score.tif.part", "r+b") as part:
                part.truncate(tmp_path.joinpath("score.tif.part").stat().st_size - 4096)

    with pytest.raises(OSError, match="make room on the disk"):
        write_and_truncate()
    assert not list(tmp_path.iterdir())


def test_gdal_running_out_of_space_is_an_oserror_that_says_what_to_do(tmp_path, finished, layers):
    """A limit on the size of files stands for the full disk; GDAL meets a true failed write."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(OSError, match="make room on the disk and run it again"):
            make_cog(finished / "probabilities.tif", tmp_path / "probabilities.tif", layers["probabilities"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
