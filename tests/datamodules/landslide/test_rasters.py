"""What is refused before any work begins, and windows of rasters on another's grid."""

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio.transform import Affine

from stagewise.datamodules.errors import DatasetNotFoundError, StagewiseError
from stagewise.datamodules.landslide.aligned_raster import AlignedRaster
from stagewise.datamodules.landslide.rasters import Grid, check_pixel_size, read_grid

UTM, LEFT, TOP = "EPSG:32642", 500_000.0, 3_700_000.0


def write(path, bands, size=10.0, left=LEFT, top=TOP, crs=UTM, names=(), transform=None, **profile):
    bands = np.asarray(bands)
    bands = bands[None] if bands.ndim == 2 else bands
    shape = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    transform = transform or Affine(size, 0, left, 0, -size, top)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **profile) as raster:
        raster.write(bands)
        if names:
            raster.descriptions = names
    return path


def test_the_grid_is_the_rasters(tmp_path):
    grid = read_grid(write(tmp_path / "dtm.tif", np.zeros((30, 20), "f4")))
    assert (grid.height, grid.width, grid.pixel_size_m) == (30, 20, 10.0)
    assert grid.bounds == (LEFT, TOP - 300, LEFT + 200, TOP)
    assert Grid.from_plain(grid.to_plain()) == grid


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no raster .*dtm\.tif"):
        read_grid(tmp_path / "dtm.tif")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crs": None}, "has no CRS.*--crs"),
        ({"crs": "EPSG:4326", "size": 1e-4, "left": 70.0, "top": 30.0}, r"CRS EPSG:4326, in degrees; reproject"),
        ({"crs": "EPSG:2263"}, r"CRS EPSG:2263, in US survey foot; reproject"),
        ({"transform": Affine(10, 0, LEFT, 0, -5, TOP)}, "square pixels.*reproject"),
        (
            {"transform": Affine(9.4, 3.4, LEFT, 3.4, -9.4, TOP)},
            "without rotation",
        ),
        ({"transform": Affine(10, 0, LEFT, 0, 10, TOP)}, "north up"),
    ],
)
def test_a_grid_that_cannot_be_used_is_refused_with_a_remedy(tmp_path, options, words):
    path = write(tmp_path / "dtm.tif", np.zeros((30, 20), "f4"), **options)
    with pytest.raises(StagewiseError, match=f"dtm.tif.*{words}"):
        read_grid(path)


@pytest.mark.parametrize("profile", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 32, "blockysize": 32}])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_tiff_is_found_before_work_begins(tmp_path, profile, share):
    values = np.random.default_rng(0).random((100, 90)).astype("f4")
    path = write(tmp_path / "dtm.tif", values, **profile)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StagewiseError, match=r"dtm\.tif.*truncated"):
        read_grid(path)


def test_pixel_sizes_are_both_named():
    grid = Grid("", (5.0, 0.0, 0.0, 0.0, -5.0, 0.0), 1, 1)
    check_pixel_size(grid, 5.04)
    with pytest.raises(StagewiseError, match=r"pixels are 5 m, .* trained with 10 m"):
        check_pixel_size(grid, 10.0)


def test_what_does_not_overlap_or_does_not_cover_is_refused(tmp_path):
    grid = read_grid(write(tmp_path / "dtm.tif", np.zeros((30, 20), "f4")))
    far = write(tmp_path / "far.tif", np.zeros((30, 20), "f4"), left=LEFT + 5000)
    half = write(tmp_path / "half.tif", np.zeros((30, 20), "f4"), left=LEFT - 100)
    with pytest.raises(StagewiseError, match=r"far\.tif does not overlap the reference grid"):
        AlignedRaster(far, [1], grid)
    with pytest.raises(StagewiseError, match=r"half\.tif covers 5\d% of the reference grid"):
        AlignedRaster(half, [1], grid)
    with pytest.raises(StagewiseError, match=r"nowhere\.tif has no CRS; give it its own"):
        AlignedRaster(write(tmp_path / "nowhere.tif", np.zeros((30, 20), "f4"), crs=None), [1], grid)


def test_a_missing_band_is_named_beside_those_that_are_there(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((2, 9, 9), "f4"), names=("slope", "elev"))
    with pytest.raises(StagewiseError, match=r"a\.tif has no band \['twi'\]; its bands: \['slope', 'elev'\]"):
        AlignedRaster(path, ["elev", "twi"], read_grid(path))
    with pytest.raises(StagewiseError, match=r"no band \[3\]"):
        AlignedRaster(path, [3], read_grid(path))


def test_bands_are_read_by_name_and_nodata_is_nan(tmp_path):
    values = np.arange(32, dtype="f4").reshape(2, 4, 4)
    values[1, 2, 3] = -9999
    path = write(tmp_path / "a.tif", values, names=("slope", "elev"), nodata=-9999)
    found = AlignedRaster(path, ["elev", "slope"], read_grid(path)).read((1, 1, 3, 3))
    assert np.array_equal(np.isnan(found[0]), values[1, 1:, 1:] == -9999)
    assert np.array_equal(found[1], values[0, 1:, 1:])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("crs", [UTM, "EPSG:3857"])
def test_a_ramp_on_another_grid_comes_out_as_the_ramp_whatever_the_window(tmp_path, dtype, crs):
    grid = read_grid(write(tmp_path / "dtm.tif", np.zeros((40, 40), "f4")))
    left, _, right, top = rasterio.warp.transform_bounds(UTM, crs, *grid.bounds)
    left, top, size, n = left - 100, top + 100, 7.0, int((right - left + 300) / 7)
    ramp = np.broadcast_to(np.arange(n, dtype=dtype), (n, n)) if n < 250 else None
    path = write(tmp_path / "o.tif", ramp, size=size, left=left, top=top, crs=crs)
    raster = AlignedRaster(path, [1], grid)
    whole = raster.read((0, 0, 40, 40))[0]
    x = grid.transform[2] + 10 * (np.arange(40) + 0.5)
    there, _ = rasterio.warp.transform(UTM, crs, x, np.full(40, grid.transform[5] - 5))
    expected = (np.array(there) - left) / size - 0.5
    assert np.abs(whole[0] - expected).max() <= (0.1 if dtype == "float32" else 0.6)
    pieces = np.block([[raster.read((r, c, 8, 10))[0] for c in range(0, 40, 10)] for r in range(0, 40, 8)])
    assert np.abs(pieces - whole).max() == 0


def test_codes_are_never_interpolated(tmp_path):
    grid = read_grid(write(tmp_path / "dtm.tif", np.zeros((40, 40), "f4")))
    codes = np.random.default_rng(0).choice(np.uint8([10, 100]), (90, 90))
    raster = AlignedRaster(
        write(tmp_path / "l.tif", codes, size=7.3, left=LEFT - 50, top=TOP + 50), [1], grid, classes=True
    )
    assert set(np.unique(raster.read((0, 0, 40, 40)))) == {10.0, 100.0}


def test_ground_without_data_never_becomes_zero(tmp_path):
    grid = read_grid(write(tmp_path / "dtm.tif", np.zeros((40, 40), "f4")))
    path = write(tmp_path / "o.tif", np.full((20, 20), 7, "u1"), size=10.0, left=LEFT + 100, top=TOP - 100)
    found = AlignedRaster(path, [1], grid, whole=False).read((0, 0, 40, 40))[0]
    assert np.nanmin(found) == np.nanmax(found) == 7
    assert np.isnan(found).sum() == 40 * 40 - 20 * 20
