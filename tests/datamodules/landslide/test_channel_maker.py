"""Channels on disk: what PreparedArea reads, the key, a kill, a full disk, codes, other files and bands."""

import hashlib
import json
import os
import resource

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from stagewise.datamodules.errors import DatasetNotFoundError, StagewiseError
from stagewise.datamodules.landslide import channel_maker
from stagewise.datamodules.landslide.channel_file import ChannelFile
from stagewise.datamodules.landslide.channel_maker import channels_key, make_channels
from stagewise.datamodules.landslide.channels import HYDROLOGY, RECIPE, TERRAIN, ChannelList
from stagewise.datamodules.landslide.prepared import PreparedArea

CHEAP = ChannelList(["elevation", "tpi", "red"])
SETTINGS = {"hydrology_halo_m": 300, "distance_cap_m": 150, "area_cap_m2": 20_000, "drainage_area_m2": 10_000}
ROWS, COLUMNS = 300, 530


def write(path, bands, size=10.0, names=(), **profile):
    bands = np.asarray(bands)
    bands = bands[None] if bands.ndim == 2 else bands
    transform = Affine(size, 0, 500_000, 0, -size, 3_700_000)
    shape = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32642", transform=transform, **shape, **profile) as raster:
        raster.write(bands)
        if names:
            raster.descriptions = names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("area"), np.random.default_rng(0)
    y, x = np.mgrid[:ROWS, :COLUMNS] * 10.0
    height = 1500 + 200 * np.sin(x / 600) * np.cos(y / 500) + rng.normal(0, 0.2, x.shape)
    height[:20, :30] = np.nan
    write(folder / "dtm.tif", np.where(np.isnan(height), -9999, height).astype("f4"), nodata=-9999)
    write(folder / "ortho.tif", rng.integers(1, 4000, (4, ROWS, COLUMNS)).astype("u2"), photometric="minisblack")
    write(folder / "landcover.tif", rng.choice(np.uint8([10, 40, 100]), (ROWS // 2, COLUMNS // 2)), size=20.0)
    return folder


def content(target):
    return hashlib.sha256((target / "channels.tif").read_bytes()).hexdigest()


def test_the_recipe_comes_out_as_a_prepared_area(folder, tmp_path):
    grid = make_channels(folder, ChannelList(RECIPE), tmp_path, SETTINGS, block_px=256)
    assert (grid.height, grid.width, grid.pixel_size_m) == (ROWS, COLUMNS, 10.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["channels.json", "channels.tif"]
    with PreparedArea("a", tmp_path, ChannelList(RECIPE)) as area:
        made = dict(zip(RECIPE, area.read_channels((0, 0, ROWS, COLUMNS))))
    missing = np.zeros((ROWS, COLUMNS), bool)
    missing[:20, :30] = True
    for name in (*TERRAIN, *HYDROLOGY):
        assert np.isnan(made[name][missing]).all() and np.isfinite(made[name][24:, 34:]).all(), name
    with rasterio.open(folder / "ortho.tif") as ortho:
        assert np.array_equal(made["green"], ortho.read(2))
    with rasterio.open(folder / "landcover.tif") as landcover:
        assert np.array_equal(made["landcover_40"], np.kron(landcover.read(1) == 40, np.ones((2, 2))))
    facts = json.loads((tmp_path / "channels.json").read_text())
    assert set(facts["seconds"]) == {"read dtm", "terrain", "hydrology", "ortho", "landcover", "write"}
    assert facts["terrain"]["area_cap_m2"] == 20_000 and facts["pixel_size_m"] == 10
    with rasterio.open(tmp_path / "channels.tif") as raster:
        assert raster.descriptions == ChannelList(RECIPE).stored
        assert raster.block_shapes[0] == (256, 256) and raster.profile.get("compress") is None
        assert np.isnan(raster.nodata) and raster.dtypes[0] == "float32"


def test_local_channels_do_not_depend_on_the_block(folder, tmp_path):
    channels = ChannelList(TERRAIN)
    read = []
    for block_px in (256, 1024):
        make_channels(folder, channels, tmp_path / str(block_px), block_px=block_px)
        with PreparedArea("a", tmp_path / str(block_px), channels) as area:
            read.append(area.read_channels((0, 0, ROWS, COLUMNS)))
    np.testing.assert_allclose(read[0], read[1], atol=1e-5, rtol=0)


def test_the_same_key_does_nothing_and_another_makes_anew(folder, tmp_path, monkeypatch):
    make_channels(folder, CHEAP, tmp_path)
    before = (tmp_path / "channels.tif").stat().st_mtime_ns, content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(channel_maker, "BlockMaker", None)  # it would fail
        make_channels(folder, CHEAP, tmp_path)
    assert before == ((tmp_path / "channels.tif").stat().st_mtime_ns, content(tmp_path))
    make_channels(folder, CHEAP, tmp_path, {"tpi_radius_m": 30})
    assert content(tmp_path) != before[1]
    assert json.loads((tmp_path / "channels.json").read_text())["key"] == channels_key(
        folder, CHEAP, {"tpi_radius_m": 30}
    )


def test_the_key_changes_with_every_input_and_setting(tmp_path):
    write(tmp_path / "dtm.tif", np.zeros((9, 9), "f4"))
    channels = ChannelList(["tpi"])
    keys = [
        channels_key(tmp_path, channels),
        channels_key(tmp_path, ChannelList(["tri"])),
        channels_key(tmp_path, channels, {"tpi_radius_m": 20}),
        channels_key(tmp_path, channels, block_px=256),
    ]
    os.utime(tmp_path / "dtm.tif", ns=(1, 1))
    keys.append(channels_key(tmp_path, channels))
    assert len(set(keys)) == 5 and keys[-1] == channels_key(tmp_path, channels)


@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(folder, tmp_path, monkeypatch, after, torn):
    make_channels(folder, CHEAP, tmp_path / "unbroken", block_px=256)
    target, write_block = tmp_path / "killed", ChannelFile.write

    def killed(self, window, values):
        if self.done == after:
            if torn:  # half of the block reached the disk
                with rasterio.open(self.part, "r+") as raster:
                    raster.write(
                        values[:, :20] * 3, window=((window[0], window[0] + 20), (window[1], window[1] + window[3]))
                    )
            raise KeyboardInterrupt
        write_block(self, window, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ChannelFile, "write", killed)
        make_channels(folder, CHEAP, target, block_px=256)
    assert not (target / "channels.tif").exists()
    made = []
    make = channel_maker.BlockMaker.make
    monkeypatch.setattr(
        channel_maker.BlockMaker, "make", lambda self, window: made.append(window) or make(self, window)
    )
    make_channels(folder, CHEAP, target, block_px=256)
    assert len(made) == 6 - after
    assert content(target) == content(tmp_path / "unbroken")


def test_progress_under_another_key_is_thrown_away(folder, tmp_path, monkeypatch):
    def killed(self, window):
        raise KeyboardInterrupt

    make_channels(folder, CHEAP, tmp_path / "unbroken", {"tpi_radius_m": 30}, block_px=256)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(channel_maker.BlockMaker, "make", killed)
        make_channels(folder, CHEAP, tmp_path / "killed", block_px=256)
    make_channels(folder, CHEAP, tmp_path / "killed", {"tpi_radius_m": 30}, block_px=256)
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")


def test_a_disk_without_room_is_one_clear_error_and_a_second_run_works(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(StagewiseError, match=r"channels\.tif\.part cannot be written .*disk full"):
            make_channels(folder, CHEAP, tmp_path, block_px=256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "channels.tif").exists()
    make_channels(folder, CHEAP, tmp_path, block_px=256)
    assert (tmp_path / "channels.tif").exists()


def test_a_disk_that_fills_up_half_way_is_one_clear_error_and_a_second_run_goes_on(folder, tmp_path, monkeypatch):
    from stagewise.datamodules.landslide import channel_file

    replace, calls = channel_file.write_json, []

    def full(path, facts):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        replace(path, facts)

    with monkeypatch.context() as patch, pytest.raises(StagewiseError, match=r"No space left on device.*it goes on"):
        patch.setattr(channel_file, "write_json", full)
        make_channels(folder, CHEAP, tmp_path, block_px=256)
    assert not (tmp_path / "channels.tif").exists()
    assert json.loads((tmp_path / "channels.part.json").read_text())["done"] == 2
    make_channels(folder, CHEAP, tmp_path, block_px=256)
    make_channels(folder, CHEAP, tmp_path / "unbroken", block_px=256)
    assert content(tmp_path) == content(tmp_path / "unbroken")


def test_unknown_land_cover_is_named_with_its_file(tmp_path):
    codes = np.full((40, 40), 10, "u1")
    codes[3, 4], codes[5, 6] = 11, 250
    write(tmp_path / "dtm.tif", np.zeros((40, 40), "f4"))
    write(tmp_path / "landcover.tif", codes)
    names = ["elevation", *(name for name in RECIPE if name.startswith("landcover"))]
    with pytest.raises(StagewiseError, match=r"landcover\.tif has the codes \[11\.0, 250\.0\]"):
        make_channels(tmp_path, ChannelList(names), tmp_path / "out")
    write(tmp_path / "landcover.tif", np.where(codes == 10, codes, 0), nodata=0)
    make_channels(tmp_path, ChannelList(names), tmp_path / "out")
    with PreparedArea("a", tmp_path / "out", ChannelList(names)) as area:
        assert np.isnan(area.read_channels((0, 0, 40, 40))[1:]).sum() == 2 * 11


def test_a_missing_raster_is_named_with_the_channels_that_need_it(tmp_path):
    write(tmp_path / "dtm.tif", np.zeros((9, 9), "f4"))
    with pytest.raises(DatasetNotFoundError, match=r"no .*ortho\.tif; the channels red, green, blue are made from it"):
        make_channels(tmp_path, CHEAP, tmp_path / "out")
    with pytest.raises(StagewiseError, match="multiple of 256"):
        make_channels(tmp_path, ChannelList(["tpi"]), tmp_path / "out", block_px=100)


def test_other_files_and_bands_can_be_given(tmp_path):
    values = np.random.default_rng(0).random((3, 40, 40)).astype("f4")
    write(tmp_path / "terrain.tif", values, names=("slope", "elev", "carea"))
    channels = ChannelList(["elevation", "carea", "given_slope"])
    inputs = {
        "dtm": {"path": "terrain.tif", "band": "elev"},
        "attributes": {"path": "terrain.tif", "bands": {"given_slope": "slope"}},
    }
    make_channels(tmp_path, channels, tmp_path / "out", inputs=inputs)
    with PreparedArea("a", tmp_path / "out", channels) as area:
        assert np.array_equal(area.read_channels((0, 0, 40, 40)), values[[1, 2, 0]])
    with pytest.raises(StagewiseError, match=r"terrain\.tif has no band \['height'\]; its bands: \['slope', 'elev'"):
        make_channels(
            tmp_path, channels, tmp_path / "out", inputs=inputs | {"dtm": {"path": "terrain.tif", "band": "height"}}
        )
    with pytest.raises(StagewiseError, match=r"`inputs` names \['dem'\]"):
        make_channels(tmp_path, channels, tmp_path / "out", inputs={"dem": "terrain.tif"})


def test_a_missing_library_is_named(folder, tmp_path, monkeypatch):
    from stagewise.datamodules.landslide import extras

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "whitebox_workflows" else find(name))
    with pytest.raises(StagewiseError, match=r"needs whitebox_workflows; run: pip install"):
        make_channels(folder, ChannelList(["slope"]), tmp_path)
