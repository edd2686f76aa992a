"""Hydrology channels: closed forms, flat ground, and blocks that agree with the whole raster."""

import numpy as np
import pytest

from stagewise.datamodules.landslide.channels import HYDROLOGY
from stagewise.datamodules.landslide.hydrology import (
    contributing_area,
    drainage_distance,
    hydrology_channels,
    sediment_transport,
    stream_power,
    topographic_wetness,
)
from stagewise.datamodules.landslide.terrain import TerrainSettings

PX, BREACH = 10.0, 200.0


def fractal(n, seed=0):
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    frequency[0, 0] = 1
    height = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n, n))) * frequency**-1.9, (n, n))
    return 1000 + 200 * height / height.std()


def test_water_on_a_plane_runs_straight_down():
    y = np.arange(50)[:, None] * np.ones((1, 30))
    area = contributing_area(1000 - 2.0 * y, PX, BREACH)
    np.testing.assert_allclose(area[:, 5:-5], (y[:, 5:-5] + 1) * PX**2)


def test_water_on_a_cone_diverges():
    """Area through a width of one pixel, at distance r from the top: the sector's, r / 2 a metre of width."""
    y, x = np.mgrid[-60:61, -60:61] * PX
    r = np.hypot(x, y)
    area = contributing_area(3000 - 0.4 * r, PX, BREACH)
    ring = (r > 250) & (r < 500)
    ratio = area[ring] / PX / (r[ring] / 2)
    assert 0.8 < np.median(ratio) < 1.2
    assert ratio.std() < 0.15


def test_water_finds_its_way_out_of_a_small_pit_and_stays_in_a_large_one():
    y = np.arange(60)[:, None] * np.ones((1, 41))
    x = np.abs(np.arange(41) - 20)[None] * np.ones((60, 1))
    valley = 1000 - 1.0 * y + 2.0 * x
    pitted = valley.copy()
    pitted[30, 20] -= 5
    assert contributing_area(pitted, PX, BREACH)[55, 20] > 0.9 * contributing_area(valley, PX, BREACH)[55, 20]
    y, x = np.mgrid[-60:61, -60:61]
    r = np.hypot(y, x)
    crater = 1000 - 2.0 * np.abs(r - 20)  # the ground outside is lower than its floor from 40 pixels on
    flank = (r > 42) & (r < 50)
    for breach_m, leaves in ((200, False), (600, True)):
        assert (contributing_area(crater, PX, breach_m)[flank].max() > 0.5 * np.pi * 200**2) == leaves


def test_nodata_is_nodata_and_no_ground_at_minus_9999():
    height = fractal(64)
    height[30:34, 30:34] = np.nan
    area = contributing_area(height, PX, BREACH)
    assert np.array_equal(np.isnan(area), np.isnan(height))
    assert np.nanmin(area) >= PX**2 and np.nanmax(area) <= 64 * 64 * PX**2
    assert np.isnan(contributing_area(np.full((8, 8), np.nan), PX, BREACH)).all()


def test_distance_is_straight_and_capped():
    area = np.full((40, 40), PX**2)
    area[:, 7] = 1e6
    area[0, 39] = np.nan
    distance = drainage_distance(area, PX, TerrainSettings(distance_cap_m=200))
    assert distance[3, 7] == 0 and distance[20, 12] == 50 and distance[20, 39] == 200 and np.isnan(distance[0, 39])
    assert np.all(drainage_distance(np.full((5, 5), PX**2), PX, TerrainSettings()) == 500)


def test_indices_are_their_formulas():
    a, b = np.array([50.0, 400.0]), np.array([10.0, 30.0])
    tan, sin = np.tan(np.radians(b)), np.sin(np.radians(b))
    np.testing.assert_allclose(topographic_wetness(a, b), np.log(a / tan))
    np.testing.assert_allclose(np.expm1(stream_power(a, b)), a * tan)
    np.testing.assert_allclose(sediment_transport(a, b), (a / 22.13) ** 0.6 * (sin / 0.0896) ** 1.3)


def test_flat_ground_is_finite():
    flat = np.full((40, 40), 5000.0)
    block = (slice(10, 30), slice(10, 30))
    made = hydrology_channels(HYDROLOGY, flat, block, np.zeros((20, 20), "f4"), PX, TerrainSettings())
    assert set(made) == set(HYDROLOGY)
    assert all(values.shape == (20, 20) and np.isfinite(values).all() for values in made.values())


@pytest.mark.parametrize("seed", range(2))
def test_a_block_agrees_with_the_whole_raster(seed):
    """At most one pixel in 200 is off by 1 %; measured: none with these seeds, one in 5000 at the default settings."""
    settings = TerrainSettings(hydrology_halo_m=600, area_cap_m2=30_000, drainage_area_m2=15_000, distance_cap_m=300)
    height, halo = fractal(320, seed), 60  # the halo and the block are a third of the raster
    slope = np.full((320, 320), 20, "f4")
    everything = (slice(0, 320), slice(0, 320))
    whole = hydrology_channels(HYDROLOGY, height, everything, slope, PX, settings)
    area = np.exp(whole["log_flow_accumulation"])
    assert (area >= settings.drainage_area_m2 * 0.999).mean() > 0.02, "a terrain without drainage would prove nothing"
    for row, column in ((60, 196), (128, 128)):
        size, outer = 64, height[row - halo : row + 64 + halo, column - halo : column + 64 + halo]
        inner = (slice(halo, halo + size), slice(halo, halo + size))
        place = (slice(row, row + size), slice(column, column + size))
        made = hydrology_channels(HYDROLOGY, outer, inner, slope[place], PX, settings)
        for name in HYDROLOGY:
            off = np.abs(made[name] - whole[name][place]) > 0.01 * np.maximum(1, np.abs(whole[name][place]))
            assert off.mean() <= 0.005, (name, off.mean())
