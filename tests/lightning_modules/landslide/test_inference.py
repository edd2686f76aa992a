"""The chain from channels to a map with stub networks: what it answers, what it says of it, how it goes on."""

import dataclasses
import errno

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide.channels import ChannelList
from stagewise.datamodules.landslide.prepared import PreparedArea
from stagewise.lightning_modules.landslide import calibration, inference
from stagewise.lightning_modules.landslide.inference import Inference, map_area
from stagewise.lightning_modules.landslide.map_model import MapModel, MapSettings, guide_positions
from stagewise.lightning_modules.landslide.passes import Passes
from stagewise.lightning_modules.landslide.sliding_window import Tiling

rasterio = pytest.importorskip("rasterio")
HEIGHT, WIDTH = 150, 110
NAMES = ("elevation", "slope", "aspect_sin", "aspect_cos")
TILING = Tiling(64, 16, 1, 64)  # two blocks of three rows, with one and two windows: 9 calls
PLAIN = MapSettings(TILING, turns=False, crf=None)
HOLE = (slice(30, 60), slice(70, 110))


@pytest.fixture(scope="module")
def channels():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, (HEIGHT, WIDTH))
    found = np.stack([rng.normal(500, 100, angle.shape), rng.uniform(0, 60, angle.shape), np.sin(angle), np.cos(angle)])
    found[:, *HOLE] = np.nan
    found[0, 100, 50] = np.nan
    return found.astype(np.float32)


@pytest.fixture
def area(tmp_path, channels):
    folder = tmp_path / "north-0123"
    folder.mkdir()
    place = {"crs": "EPSG:32717", "transform": rasterio.Affine(10, 0, 6e5, 0, -10, 9.6e6), "nodata": np.nan}
    size = {"width": WIDTH, "height": HEIGHT, "count": len(NAMES), "dtype": "float32"}
    with rasterio.open(folder / "channels.tif", "w", driver="GTiff", **size, **place) as raster:
        raster.write(channels)
        raster.descriptions = NAMES
    with PreparedArea("north", folder, ChannelList(NAMES)) as prepared:
        yield prepared


def by_slope(image: torch.Tensor, sharpness: float = 0.1) -> torch.Tensor:
    """(B, 3, H, W) from the slope of the pixel alone."""
    x = sharpness * (image[:, 1:2].nan_to_num() - 30)
    return torch.cat([-x, torch.full_like(x, 0.5), x], 1).softmax(1)


class Counted:
    """A member that counts its calls and fails at one of them."""

    def __init__(self, fails_at: int | None = None, member=by_slope) -> None:
        self.calls, self.fails_at, self.member = 0, fails_at, member

    def __call__(self, image):
        if self.calls == self.fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.calls += 1
        return self.member(image)


def model_of(*members, classes=("low", "medium", "high"), **changes) -> MapModel:
    values = {"mean": [500.0, 30.0, 0.0, 0.0], "std": [100.0, 17.0, 0.7, 0.7], "key": "weights-1"}
    return MapModel(members or (by_slope,), classes, ChannelList(NAMES), **{**values, **changes})


def read(paths, name):
    with rasterio.open(paths[name]) as raster:
        return raster.read()


def read_all(paths):
    return {name: read(paths, name) for name in paths}


def same(one, other):
    return all(np.array_equal(one[n], other[n], equal_nan=one[n].dtype.kind == "f") for n in one)


def test_the_map_is_what_the_member_says_of_every_pixel_and_nothing_where_a_channel_has_no_data(
    area, channels, tmp_path
):
    paths = map_area(area, model_of(), tmp_path / "map", PLAIN, {"model": "stub"})
    expected = by_slope(torch.from_numpy(channels)[None])[0].numpy()
    valid = np.isfinite(channels).all(0)
    expected[:, ~valid] = np.nan
    np.testing.assert_allclose(read(paths, "probabilities"), expected, atol=2e-6)
    np.testing.assert_allclose(read(paths, "score")[0], expected[1] / 2 + expected[2], atol=2e-6)
    assert np.array_equal(read(paths, "valid")[0], valid)
    assert (read(paths, "class_map")[0][~valid] == 255).all()
    assert set(np.unique(read(paths, "class_map")[0][valid])) == {0, 1, 2}
    assert sorted(p.name for p in (tmp_path / "map").iterdir()) == sorted(p.name for p in paths.values())


def test_one_opinion_has_predictive_entropy_and_says_so(area, channels, tmp_path):
    paths = map_area(area, model_of(), tmp_path / "map", PLAIN)
    p = by_slope(torch.from_numpy(channels)[None])[0].numpy()
    expected = np.where(np.isfinite(channels).all(0), -(p * np.log(p)).sum(0), np.nan)
    np.testing.assert_allclose(read(paths, "uncertainty")[0], expected, atol=5e-6)
    with rasterio.open(paths["uncertainty"]) as raster:
        assert raster.tags().items() >= {"kind": "predictive entropy", "unit": "nats"}.items()


def test_an_ensemble_is_averaged_and_its_disagreement_is_the_uncertainty(area, channels, tmp_path):
    def flat(image):
        return by_slope(image, 0.02)

    paths = map_area(area, model_of(by_slope, flat), tmp_path / "map", PLAIN)
    image, valid = torch.from_numpy(channels)[None].double(), np.isfinite(channels).all(0)
    opinions = np.stack([member(image)[0].numpy() for member in (by_slope, flat)])
    mean = opinions.mean(0)
    gain = -(mean * np.log(mean)).sum(0) + (opinions * np.log(opinions)).sum(1).mean(0)
    np.testing.assert_allclose(read(paths, "probabilities")[:, valid], mean[:, valid], atol=2e-6)
    np.testing.assert_allclose(read(paths, "uncertainty")[0][valid], gain[valid], atol=5e-6)
    with rasterio.open(paths["uncertainty"]) as raster:
        assert raster.tags()["kind"] == "mutual information"


def test_the_aspect_turns_with_the_picture_in_test_time_augmentation():
    """Over the eight turns every direction looks east as often as west, so a network of the aspect cannot decide."""

    def eastness(image):
        east = (1 + image[:, 2:3]) / 2
        return torch.cat([1 - east, east], 1)

    angle = torch.rand(1, 1, 16, 16) * 6
    image = torch.cat([torch.zeros(1, 2, 16, 16), angle.sin(), angle.cos()], 1)
    found = Passes([eastness], 2, turns=True, aspect=(2, 3))(image)
    torch.testing.assert_close(found[:, :2], torch.full((1, 2, 16, 16), 0.5), atol=1e-6, rtol=0)


def test_the_mean_over_turns_commutes_with_a_turn():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Softmax(1))
    passes, image = Passes([network], 2), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(passes(image.rot90(1, (-2, -1))), passes(image).rot90(1, (-2, -1)))


def dropout_member(share):
    network = torch.nn.Sequential(torch.nn.Dropout(share), torch.nn.Conv2d(4, 3, 1), torch.nn.Softmax(1))
    torch.nn.init.normal_(network[1].weight, std=0.01, generator=torch.Generator().manual_seed(0))
    return lambda image: network(image.nan_to_num())


def test_monte_carlo_dropout_is_uncertain_repeatable_and_leaves_the_generator_alone():
    image = torch.rand(2, 4, 16, 16) * 100
    passes = Passes([dropout_member(0.4)], 3, turns=False, mc_passes=4)
    torch.manual_seed(7)
    found, drawn = passes(image), torch.rand(1)
    assert (found[:, 3] > 0).float().mean() > 0.5
    assert torch.equal(found, passes(image))
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))


def test_dropout_that_is_off_is_an_error_and_no_map_of_zeros():
    with pytest.raises(StagewiseError, match="passes are all alike"):
        Passes([dropout_member(0.0)], 3, turns=False, mc_passes=2)(torch.rand(1, 4, 8, 8))


def test_a_picture_without_data_is_not_shown_to_the_network():
    image = torch.full((2, 4, 8, 8), torch.nan)
    image[1] = 1
    member = Counted(member=lambda x: by_slope(x) if len(x) == 1 else pytest.fail("shown"))
    found = Passes([member], 3, turns=False)(image)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert member.calls == 1


@pytest.mark.parametrize("fails_at", [0, 7, 13])
def test_a_run_killed_in_the_network_goes_on_bit_for_bit(area, tmp_path, fails_at):
    settings = dataclasses.replace(PLAIN, mc_passes=2)
    noisy = dropout_member(0.4)
    whole = Counted(member=noisy)
    expected = read_all(map_area(area, model_of(whole), tmp_path / "whole", settings))
    with pytest.raises(OSError, match="No space"):
        map_area(area, model_of(Counted(fails_at, noisy)), tmp_path / "map", settings)
    assert not list((tmp_path / "map").glob("*.tif"))
    rest = Counted(member=noisy)
    assert same(read_all(map_area(area, model_of(rest), tmp_path / "map", settings)), expected)
    assert rest.calls <= whole.calls - 2 * (fails_at // 6) and not (tmp_path / "map" / ".work").exists()


def test_a_disk_that_fills_while_layers_are_written_is_gone_on_from_without_the_network(area, tmp_path, monkeypatch):
    expected = read_all(map_area(area, model_of(), tmp_path / "whole", PLAIN))
    made, make_cog = [], inference.make_cog

    def full_at_the_fourth(source, target, layer):
        if len(made) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(layer.name)
        make_cog(source, target, layer)

    with monkeypatch.context() as patch:
        patch.setattr(inference, "make_cog", full_at_the_fourth)
        with pytest.raises(OSError, match="No space"):
            map_area(area, model_of(), tmp_path / "map", PLAIN)
    assert {p.stem for p in (tmp_path / "map").glob("*.tif")} == set(made)
    assert not list((tmp_path / "map").glob("*.part*"))
    nothing = Counted(fails_at=0)
    assert same(read_all(map_area(area, model_of(nothing), tmp_path / "map", PLAIN)), expected)


def test_a_disk_that_is_full_between_the_steps_leaves_no_half_window(area, tmp_path, monkeypatch):
    def full(file, values):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("numpy.save", full)
        with pytest.raises(OSError, match="No space"):
            map_area(area, model_of(), tmp_path / "map", PLAIN)
    assert not [p for p in (tmp_path / "map").rglob("*") if p.is_file()]
    assert len(map_area(area, model_of(), tmp_path / "map", PLAIN)) == 7


def test_a_finished_map_is_not_made_again_and_another_is(area, tmp_path):
    first = read_all(map_area(area, model_of(), tmp_path / "map", PLAIN))
    nothing = Counted(fails_at=0)
    assert same(read_all(map_area(area, model_of(nothing), tmp_path / "map", PLAIN)), first)
    other = Counted(member=lambda image: by_slope(image, 0.01))
    again = read_all(map_area(area, model_of(other, key="weights-2"), tmp_path / "map", PLAIN))
    assert other.calls and not same(again, first)


@pytest.mark.parametrize("change", ["key", "turns", "calibration"])
def test_what_another_run_left_is_never_used(area, tmp_path, change):
    with pytest.raises(OSError, match="No space"):
        map_area(area, model_of(Counted(4)), tmp_path / "map", PLAIN)

    def other(image):
        return by_slope(image, 0.01)

    sharper = {"kind": "temperature", "temperature": 0.5}
    model = {"key": model_of(other, key="weights-2"), "turns": model_of(), "calibration": model_of(calibration=sharper)}
    settings = dataclasses.replace(PLAIN, turns=True) if change == "turns" else PLAIN
    found = read_all(map_area(area, model[change], tmp_path / "map", settings))
    assert same(found, read_all(map_area(area, model[change], tmp_path / "clean", settings)))


def test_probabilities_are_calibrated_last_and_can_be_had_before(area, tmp_path):
    fitted = {"kind": "temperature", "temperature": 2.0}
    chain = Inference(area, model_of(calibration=fitted), PLAIN, tmp_path / "work")
    chain.run()
    window = (5, 20, 60, 70)
    before, after = chain.probability(window, calibrated=False), chain.probability(window)
    seen = np.isfinite(before).all(0)
    np.testing.assert_allclose(after[:, seen], calibration.apply(before[:, seen], fitted), atol=1e-6)
    assert np.abs(after - before)[:, seen].max() > 0.05
    assert np.array_equal(np.isnan(after), np.isnan(before))


def test_the_crf_smooths_across_its_tiles(area, tmp_path):
    def unsure(image):
        return by_slope(image, 0.03)

    crf = {"iterations": 3, "spatial_weight": 2.0, "bilateral_xy": 5.0, "compat_bilateral": 0.1}
    maps = {}
    for tile in (64, 1024):
        settings = dataclasses.replace(PLAIN, crf={**crf, "tile": tile, "halo": 40})
        maps[tile] = read_all(map_area(area, model_of(unsure), tmp_path / f"{tile}", settings))
    plain = read_all(map_area(area, model_of(unsure), tmp_path / "plain", PLAIN))
    valid = plain["valid"][0] == 1
    steps = {n: (np.diff(m["class_map"][0].astype(int)) != 0).mean() for n, m in {**maps, "plain": plain}.items()}
    assert steps[64] < 0.7 * steps["plain"]
    assert np.array_equal(np.isfinite(maps[64]["score"][0]), valid)
    assert (maps[64]["class_map"] == maps[1024]["class_map"]).mean() > 0.99
    assert np.array_equal(maps[64]["uncertainty"], plain["uncertainty"], equal_nan=True)


def test_novelty_is_the_distance_in_units_of_its_threshold(area, channels, tmp_path):
    typical = {"positions": [0, 1], "mean": [500.0, 30.0], "precision": [[1e-4, 0.0], [0.0, 0.01]], "threshold": 4.0}
    paths = map_area(area, model_of(typical=typical), tmp_path / "map", PLAIN)
    x = channels.astype(float)
    expected = np.sqrt((((x[0] - 500) / 100) ** 2 + ((x[1] - 30) / 10) ** 2) / 4)
    np.testing.assert_allclose(read(paths, "novelty")[0], expected, rtol=1e-5)


def test_two_classes_make_a_map_too(area, tmp_path):
    def two(image):
        p = by_slope(image)
        return torch.cat([p[:, :1] + p[:, 1:2], p[:, 2:]], 1)

    paths = map_area(area, model_of(two, classes=("no", "yes")), tmp_path / "map", PLAIN)
    assert read(paths, "probabilities").shape == (2, HEIGHT, WIDTH)
    assert np.array_equal(read(paths, "score"), read(paths, "p_high"), equal_nan=True)


def test_the_guide_is_ortho_then_relief_then_anything_continuous():
    assert guide_positions(ChannelList(["slope", "red", "green", "blue"])) == [1, 2, 3]
    assert guide_positions(ChannelList(["tpi", "twi", "slope"])) == [2, 0]
    assert guide_positions(ChannelList(["a", "b", "c", "d"])) == [0, 1, 2]


def test_a_crf_without_a_guide_and_foreign_channels_are_errors(area, tmp_path):
    from stagewise.datamodules.landslide.channels import LANDCOVER

    with pytest.raises(StagewiseError, match="can guide the CRF"):
        guide_positions(ChannelList(LANDCOVER))
    other = dataclasses.replace(model_of(), channels=ChannelList(["slope", "elevation"]))
    with pytest.raises(StagewiseError, match="the model was trained on"):
        map_area(area, other, tmp_path / "map", PLAIN)
    with pytest.raises(StagewiseError, match="3 classes instead of 2"):
        map_area(area, model_of(classes=("no", "yes")), tmp_path / "map", PLAIN)
