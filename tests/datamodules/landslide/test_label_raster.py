"""Labels from rasters, tables and vector files; every bad one refused with its row or value."""

import logging
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio.transform import Affine
from shapely import Point, box

from stagewise.datamodules.errors import BadRowsError, DatasetNotFoundError, StagewiseError
from stagewise.datamodules.landslide.aligned_raster import AlignedRaster
from stagewise.datamodules.landslide.channel_maker import make_channels
from stagewise.datamodules.landslide.channels import HYDROLOGY, TERRAIN, ChannelList
from stagewise.datamodules.landslide.label_raster import make_labels
from stagewise.datamodules.landslide.prepared import PreparedArea
from stagewise.datamodules.landslide.rasters import CACHE_BYTES, Grid, read_grid

LEFT, TOP, CLASSES = 500_000.0, 3_700_000.0, ["low", "medium", "high"]
GRID = Grid(rasterio.CRS.from_epsg(32642).to_wkt(), (10.0, 0.0, LEFT, 0.0, -10.0, TOP), 40, 30)


def write(path, values, size=10.0, left=LEFT, nodata=None):
    transform = Affine(size, 0, left, 0, -size, TOP)
    shape = {"height": values.shape[0], "width": values.shape[1], "dtype": values.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", count=1, crs="EPSG:32642", transform=transform, **shape) as raster:
        raster.write(values, 1)


def table(path, *rows, head="x,y,class"):
    path.write_text("\n".join([head, *rows]) + "\n")


def at(row, column):
    return f"{LEFT + 10 * column + 5},{TOP - 10 * row - 5}"


def read(folder):
    with rasterio.open(folder / "labels.tif") as raster:
        assert raster.dtypes == ("uint8",) and tuple(raster.transform)[:6] == GRID.transform
        return raster.read(1)


def test_a_raster_of_labels_is_kept_and_nodata_is_none(tmp_path):
    values = np.random.default_rng(0).integers(0, 4, (30, 40)).astype("f4")
    values[0, :5] = -1
    write(tmp_path / "labels.tif", values, nodata=-1)
    counts = make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out"), np.where(values < 0, 0, values))
    assert counts == {name: int((values == i).sum()) for i, name in enumerate(CLASSES, start=1)}


def test_channels_and_labels_are_made_with_a_bounded_cache_of_gdal(tmp_path, monkeypatch):
    limits, plain = [], AlignedRaster.read

    def read(self, window):
        limits.append(rasterio.env.getenv()["GDAL_CACHEMAX"])
        return plain(self, window)

    monkeypatch.setattr(AlignedRaster, "read", read)
    for name in ("dtm", "labels"):
        write(tmp_path / f"{name}.tif", np.ones((30, 40), "f4"))
    make_labels(tmp_path, make_channels(tmp_path, ChannelList(["elevation"]), tmp_path), CLASSES, tmp_path / "out")
    assert limits == [CACHE_BYTES] * 2 and CACHE_BYTES > 1_000_000  # rasterio takes bytes, and 128 of them are none


def test_a_raster_on_another_grid_is_taken_to_the_grid(tmp_path):
    values = np.random.default_rng(0).integers(0, 4, (10, 10)).astype("u1")
    write(tmp_path / "labels.tif", values, size=20.0, left=LEFT + 100)
    make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    expected = np.zeros((30, 40), np.uint8)
    expected[:20, 10:30] = np.kron(values, np.ones((2, 2), np.uint8))
    assert np.array_equal(read(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("value", "nodata", "words"),
    [
        (7, None, r"has the values \[7\.0\]; allowed are 0 .* 1 to 3"),
        (0, None, "labels no pixel"),
        (9, 9, "labels no pixel"),
    ],
)
def test_rasters_without_use_are_refused(tmp_path, value, nodata, words):
    write(tmp_path / "labels.tif", np.full((30, 40), value, "u1"), nodata=nodata)
    with pytest.raises(StagewiseError, match=rf"labels\.tif.*{words}"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kept", [0, 1], ids=["nothing", "a part"])
def test_a_full_disk_of_which_the_library_says_nothing_is_noticed(tmp_path, monkeypatch, kept):
    values = np.ones((30, 40), np.uint8)
    write(tmp_path / "labels.tif", values)
    whole = rasterio.io.DatasetWriter.write

    def lossy(self, codes, *args, **options):
        if kept:
            codes = np.where(np.arange(codes.shape[-1]) < 20, codes, 0).astype(codes.dtype)
            whole(self, codes, *args, **options)

    monkeypatch.setattr("rasterio.io.DatasetWriter.write", lossy)
    with pytest.raises(StagewiseError, match=r"labels\.tif.*cannot be written .*is the disk full\?"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_points_label_their_pixel_by_name_or_number_and_nothing_else(tmp_path):
    table(tmp_path / "labels.csv", f"{at(2, 3)},high", f"{at(29, 39)},1", f"{at(0, 0)},2.0")
    make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    expected = np.zeros((30, 40), np.uint8)
    expected[2, 3], expected[29, 39], expected[0, 0] = 3, 1, 2
    assert np.array_equal(read(tmp_path / "out"), expected)


def test_another_column_with_values_of_its_own(tmp_path):
    table(tmp_path / "labels.csv", f"{at(2, 3)},1", f"{at(5, 6)},0", head="x,y,landslide")
    settings = {"class_column": "landslide", "class_values": {0: "no", 1: "yes"}}
    assert make_labels(tmp_path, GRID, ["no", "yes"], tmp_path / "out", settings) == {"no": 1, "yes": 1}
    found = read(tmp_path / "out")
    assert found[2, 3] == 2 and found[5, 6] == 1


def test_points_in_another_crs_and_a_crs_column(tmp_path):
    lon, lat = rasterio.warp.transform("EPSG:32642", "EPSG:4326", [LEFT + 35], [TOP - 25])
    table(tmp_path / "labels.csv", f"{lon[0]},{lat[0]},2,EPSG:4326", f"{at(4, 4)},1,", head="x,y,class,crs")
    make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    found = read(tmp_path / "out")
    assert found[2, 3] == 2 and found[4, 4] == 1 and (found > 0).sum() == 2


def test_the_higher_class_wins_in_a_shared_pixel_and_it_is_logged(tmp_path, caplog):
    table(tmp_path / "labels.csv", f"{at(2, 3)},3", f"{at(2, 3)},1", f"{at(5, 5)},1", f"{at(5, 5)},1")
    with caplog.at_level(logging.WARNING):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    assert read(tmp_path / "out")[2, 3] == 3
    assert "1 pixels hold points of several classes" in caplog.text


def test_a_buffer_labels_a_disc(tmp_path):
    table(tmp_path / "labels.csv", f"{at(15, 20)},2")
    counts = make_labels(tmp_path, GRID, CLASSES, tmp_path / "out", {"buffer_m": 50})
    assert abs(counts["medium"] - np.pi * 25) < 12


def test_bad_rows_are_named_with_their_value(tmp_path):
    table(
        tmp_path / "labels.csv", f"{at(1, 1)},1", f"{at(2, 2)},steep", f"here,{TOP},1", f"{at(3, 3)},4", f"{at(4, 4)},"
    )
    with pytest.raises(BadRowsError) as caught:
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    for words in ("row 3:", "class=steep", "row 4: x=here", "row 5:", "class=4", "row 6:", "low"):
        assert words in str(caught.value)
    assert "row 2:" not in str(caught.value)


def test_a_missing_column_is_named(tmp_path):
    table(tmp_path / "labels.csv", f"{at(1, 1)},1", head="x,y,landslide")
    with pytest.raises(StagewiseError, match=r"no column \['class'\]; its columns: \['x', 'y', 'landslide'\]"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")


def test_places_outside_the_grid_are_refused_or_dropped(tmp_path, caplog):
    table(tmp_path / "labels.csv", f"{at(1, 1)},1", f"{at(1, 400)},2")
    with pytest.raises(BadRowsError, match=r"outside the grid.*on_outside=drop; row 3: POINT"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    assert make_labels(tmp_path, GRID, CLASSES, tmp_path / "out", {"on_outside": "drop"})["low"] == 1
    assert "1 of 2 places lie outside" in caplog.text
    table(tmp_path / "labels.csv", f"{LEFT + 400},{TOP - 5},1", f"{LEFT + 5},{TOP - 300},1")  # on the last edges
    with pytest.raises(BadRowsError, match=r"row 2.*row 3"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")


def test_polygons_and_points_of_a_vector_file(tmp_path):
    shapes = [box(LEFT + 100, TOP - 200, LEFT + 200, TOP - 100), box(LEFT + 150, TOP - 200, LEFT + 250, TOP - 100)]
    frame = geopandas.GeoDataFrame({"class": ["high", "low"]}, geometry=shapes, crs="EPSG:32642")
    frame.to_crs("EPSG:32643").to_file(tmp_path / "labels.gpkg")
    assert make_labels(tmp_path, GRID, CLASSES, tmp_path / "out") == {"low": 50, "medium": 0, "high": 100}
    points = geopandas.GeoDataFrame({"class": ["2"]}, geometry=[Point(LEFT + 5, TOP - 5)], crs="EPSG:32642")
    (tmp_path / "labels.gpkg").unlink()
    points.to_file(tmp_path / "labels.gpkg")
    make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")  # another file: made anew
    assert read(tmp_path / "out")[0, 0] == 2 and (read(tmp_path / "out") > 0).sum() == 1


def test_a_vector_file_without_the_attribute_or_with_other_values(tmp_path):
    frame = geopandas.GeoDataFrame({"kind": [1, 9]}, geometry=[Point(LEFT + 5, TOP - 5)] * 2, crs="EPSG:32642")
    frame.to_file(tmp_path / "labels.gpkg")
    with pytest.raises(StagewiseError, match=r"no attribute 'class'; its attributes: \['kind'"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    with pytest.raises(BadRowsError, match=r"labels\.gpkg: `kind` must be one of .*row 2: 9"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out", {"class_column": "kind"})


def test_no_file_and_wrong_settings(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"looked for labels\.tif, labels\.gpkg, labels\.csv"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out")
    table(tmp_path / "labels.csv", f"{at(1, 1)},1")
    with pytest.raises(StagewiseError, match=r"no label setting \['buffer'\]"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out", {"buffer": 3})
    with pytest.raises(StagewiseError, match="`on_outside` must be"):
        make_labels(tmp_path, GRID, CLASSES, tmp_path / "out", {"on_outside": "ignore"})


@pytest.mark.data
def test_the_real_points_on_the_real_grid(tmp_path):
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "ecuador"
    if not folder.is_dir():
        pytest.skip("the real data are not beside the checkout")
    settings = {"class_column": "landslide", "class_values": {"0": "no", "1": "yes"}}
    grid = read_grid(folder / "terrain_attributes.tif")
    counts = make_labels(folder, grid, ["no", "yes"], tmp_path, settings, file="landslide_points.csv")
    assert 340 <= sum(counts.values()) <= 350 and 165 <= counts["yes"] <= 175
    channels = ChannelList([*TERRAIN, *HYDROLOGY, "cplan", "log10_carea"])
    inputs = {
        "dtm": {"path": "terrain_attributes.tif", "bands": "elev"},
        "attributes": {"path": "terrain_attributes.tif"},
    }
    assert make_channels(folder, channels, tmp_path, inputs=inputs) == grid
    with PreparedArea("ecuador", tmp_path, channels) as area:
        made = dict(zip(channels.names, area.read_channels((0, 0, area.height, area.width))))
        labels = area.read_labels((0, 0, area.height, area.width))
    assert (labels >= 0).sum() == sum(counts.values())
    with rasterio.open(folder / "terrain_attributes.tif") as raster:
        given = raster.read(1)
    there = np.isfinite(given) & np.isfinite(made["slope"])
    assert there.mean() > 0.98
    assert np.corrcoef(given[there], made["slope"][there])[0, 1] > 0.95  # another library's, in a smaller window
    valid = there & np.isfinite(made["log10_carea"])
    assert np.corrcoef(made["log10_carea"][valid], made["log_flow_accumulation"][valid])[0, 1] > 0.6
