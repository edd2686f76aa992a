"""The picture shows what the layers say, whatever their size."""

import numpy as np
import pytest
from matplotlib.image import imread

from stagewise.datamodules.landslide.channels import ChannelList
from stagewise.datamodules.landslide.prepared import PreparedArea
from stagewise.datamodules.landslide.rasters import Grid
from stagewise.lightning_modules.landslide import quicklook
from stagewise.lightning_modules.landslide.maps import LayerFiles, layer_values, map_layers
from stagewise.lightning_modules.landslide.quicklook import draw_quicklook

rasterio = pytest.importorskip("rasterio")
SIDE = 300
GRID = (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_600_000.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Low in the west, high in the east, nothing in the north."""
    folder = tmp_path_factory.mktemp("map")
    p = np.zeros((3, SIDE, SIDE), np.float32)
    p[0, :, :150], p[2, :, 150:] = 1, 1
    p[:, :100] = np.nan
    values = layer_values(p, np.full((SIDE, SIDE), 0.1, np.float32), np.ones((SIDE, SIDE), np.float32))
    grid = Grid(rasterio.crs.CRS.from_epsg(32717).to_wkt(), GRID, SIDE, SIDE)
    with LayerFiles(folder, grid, map_layers(["low", "medium", "high"], "mutual information"), {}).writing() as files:
        files.write((0, 0, SIDE, SIDE), values)
    return folder


def share(picture, colour, tolerance=0.06):
    return (np.abs(picture[..., :3] - np.array(colour)).max(-1) < tolerance).mean()


def test_the_picture_has_the_colours_of_classes_and_grey_for_no_data(folder, tmp_path):
    draw_quicklook(folder, tmp_path / "map.png")
    picture = imread(tmp_path / "map.png")
    shade = 0.45 + 0.55 * quicklook.UNKNOWN_LAND
    third = picture[: int(picture.shape[0] * 0.85), : picture.shape[1] // 3]
    low, high = (share(third, np.array(c) / 255 * shade) for c in ((26, 150, 65), (215, 25, 28)))
    assert 0.2 < low < 0.4 and abs(low - high) < 0.03
    assert abs(share(third, (0.8, 0.8, 0.8)) - low) < 0.06  # a third of the map, as each of the classes


@pytest.mark.parametrize("name", ["elevation", "slope"])
def test_relief_is_of_the_elevation_or_the_slope(tmp_path, name):
    size = {"width": SIDE, "height": SIDE, "count": 1, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(
        tmp_path / "channels.tif", "w", driver="GTiff", crs="EPSG:32717", transform=rasterio.Affine(*GRID), **size
    ) as raster:
        raster.write(np.random.default_rng(0).uniform(0, 80, (1, SIDE, SIDE)).astype(np.float32))
    with PreparedArea("a", tmp_path, ChannelList([name])) as area:
        grey = quicklook._relief(area, (100, 100), 30.0)
    assert grey.shape == (100, 100) and grey.std() > 0.05 and grey.min() >= 0 and grey.max() <= 1


def test_slopes_that_face_the_light_are_bright():
    """The light is in the north-west; ground that falls to the north-west rises to the south and east."""

    row, column = np.mgrid[:20, :20] * 10.0
    brightness = [quicklook.hillshade(z, 10.0).mean() for z in (row + column, 0 * row, -row - column)]
    assert brightness[0] > brightness[1] > brightness[2]


def test_large_layers_are_read_small(folder):
    values, meta = quicklook._small(folder / "class_map.tif", 100)
    assert values.shape == (100, 100) and meta["pixel_km"] == pytest.approx(0.03)
