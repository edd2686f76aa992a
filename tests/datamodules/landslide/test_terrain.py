"""Terrain channels: closed forms, the same whatever the block, and nodata that stays where it is."""

import numpy as np
import pytest

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide.channels import TERRAIN
from stagewise.datamodules.landslide.terrain import TerrainSettings, terrain_channels

PX = 10.0
SETTINGS = TerrainSettings(tpi_radius_m=60, tri_radius_m=30)
HALO = SETTINGS.terrain_halo_px(PX)
Y, X = np.mgrid[:40, :50] * PX


def whole(elevation, names=TERRAIN):
    return terrain_channels(names, elevation, (HALO,) * 4, PX, SETTINGS)


def fractal(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    frequency[0, 0] = 1
    height = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(rows, columns))) * frequency**-2.0, (rows, columns))
    return 1000 + 200 * height / height.std()


@pytest.mark.parametrize(("east", "south"), [(0.5, 0), (0, 0.5), (-0.3, 0.4), (0, -0.2)])
def test_a_plane_has_its_slope_and_aspect_up_to_the_edge(east, south):
    """Falls by ``east`` metres a metre eastward, by ``south`` southward."""
    made = whole(1000 - east * X - south * Y)
    steep = np.hypot(east, south)
    np.testing.assert_allclose(made["slope"], np.degrees(np.arctan(steep)), atol=1e-3)
    np.testing.assert_allclose(made["aspect_sin"], east / steep, atol=1e-4)
    np.testing.assert_allclose(made["aspect_cos"], -south / steep, atol=1e-4)
    for name in ("curvature", "plan_curvature", "profile_curvature", "tpi"):
        np.testing.assert_allclose(made[name], 0, atol=1e-6)


def test_flat_ground_is_finite_and_has_no_aspect():
    made = whole(np.full((40, 50), 731.0))
    for name in set(TERRAIN) - {"elevation", "tri"}:
        assert np.all(made[name] == 0), name
    assert made["tri"].max() < 1e-3


def test_a_bowl_is_hollow_and_a_dome_is_not():
    bowl = 1e-3 * ((X - 250) ** 2 + (Y - 200) ** 2)
    for sign in (1, -1):
        made = whole(500 + sign * bowl)
        ring = np.hypot(X - 250, Y - 200).round() == 100
        for name in ("curvature", "plan_curvature", "profile_curvature", "tpi"):
            assert np.all(np.sign(made[name][ring]) == -sign), name
    # at the bottom both principal curvatures are the second derivative, 2e-3
    assert abs(abs(made["curvature"][20, 25]) - 2e-3) < 1e-6


def test_position_and_ruggedness_agree_with_a_loop():
    height = fractal(30, 30)
    made, r = whole(height), 3
    window = height[15 - r : 16 + r, 12 - r : 13 + r]
    np.testing.assert_allclose(
        made["tri"][15, 12], np.sqrt(((window - height[15, 12]) ** 2).sum() / (window.size - 1)), rtol=1e-5
    )
    window = height[9:22, 6:19]
    np.testing.assert_allclose(made["tpi"][15, 12], height[15, 12] - window.mean(), atol=1e-4)


@pytest.mark.parametrize("block", [7, 16, 33])
def test_channels_are_the_same_whatever_the_block(block):
    height = fractal(45, 52)
    height[11:14, 20] = np.nan
    rows, columns = height.shape
    expected = whole(height)
    found = {name: np.zeros_like(expected[name]) for name in TERRAIN}
    for r in range(0, rows, block):
        for c in range(0, columns, block):
            bottom, right = min(rows, r + block), min(columns, c + block)
            beyond = (max(0, HALO - r), max(0, bottom + HALO - rows), max(0, HALO - c), max(0, right + HALO - columns))
            piece = height[max(0, r - HALO) : bottom + HALO, max(0, c - HALO) : right + HALO]
            for name, values in terrain_channels(TERRAIN, piece, beyond, PX, SETTINGS).items():
                found[name][r:bottom, c:right] = values
    for name in TERRAIN:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0, err_msg=name)


def test_nodata_stays_nodata_and_reaches_no_further_than_the_window():
    height = fractal(40, 50)
    holed = height.copy()
    holed[20, 25] = np.nan
    clean, made = whole(height), whole(holed)
    far = np.ones_like(height, bool)
    far[20 - HALO : 21 + HALO, 25 - HALO : 26 + HALO] = False
    fitted = np.zeros_like(far)
    fitted[18:23, 23:28] = True
    for name in TERRAIN:
        missing = np.isnan(made[name])
        expected = fitted if name not in ("elevation", "tpi", "tri") else np.isnan(holed)
        assert np.array_equal(missing, expected), name
        np.testing.assert_array_equal(made[name][far], clean[name][far])
    # neither 0 nor -9999 was taken for ground beside the hole
    assert np.nanmax(np.abs(made["tpi"] - clean["tpi"])) < 5
    assert np.nanmax(made["tri"]) <= 1.1 * clean["tri"].max()


def test_windows_are_metres():
    settings = TerrainSettings(tpi_radius_m=60, tri_radius_m=30)
    assert (settings.terrain_halo_px(10), settings.terrain_halo_px(5), settings.terrain_halo_px(100)) == (6, 12, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tpi_radius": 5}, r"no terrain setting \['tpi_radius'\]; there are"),
        ({"tpi_radius_m": 0}, "`tpi_radius_m` must be above 0"),
        ({"drainage_area_m2": 1e7}, "no pixel would be drainage"),
        ({"distance_cap_m": 900}, "above half of `hydrology_halo_m`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(StagewiseError, match=words):
        TerrainSettings.of(settings)
