"""Turning: the aspect of the turned terrain; and light on the ortho bands only."""

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.datamodules.landslide.augmentation import TileAugmentation, change_light
from stagewise.datamodules.landslide.channels import ORTHO, RECIPE, ChannelList
from stagewise.datamodules.landslide.turning import ELEMENTS, inverse, turn


def hills(side=24, seed=0):
    """Terrain without symmetry, which is high in the north-west."""
    y, x = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(seed)
    waves = sum(
        np.sin(2 * np.pi * (rng.uniform(0, 2) * x + rng.uniform(0, 2) * y) + rng.uniform(0, 6)) for _ in range(4)
    )
    return torch.from_numpy(waves - 3 * x - 2 * y)


def aspect_of(dem):
    """Sine (to the east) and cosine (to the north) of the downslope direction, by central differences."""
    down, right = torch.gradient(dem)
    east, north = -right, down  # downslope; row 0 is in the north
    length = torch.hypot(east, north)
    return torch.stack([east / length, north / length])


def test_aspect_of_a_slope_that_falls_to_the_east_has_sine_1():
    dem = -torch.arange(5.0).expand(5, 5)
    torch.testing.assert_close(aspect_of(dem)[:, 2, 2], torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("element", ELEMENTS)
def test_turned_aspect_is_the_aspect_of_the_turned_terrain(element):
    dem = hills()
    image = torch.cat([dem[None], aspect_of(dem)])
    turned = turn(image, element, aspect=(1, 2))
    torch.testing.assert_close(turned[1:], aspect_of(turned[0]))
    if element:  # or turning the pixels alone would do
        assert (turn(image, element)[1:] - turned[1:]).abs().max() > 0.5


@pytest.mark.parametrize("element", ELEMENTS)
def test_the_inverse_undoes(element):
    image = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    there = turn(image, element, aspect=(0, 2))
    torch.testing.assert_close(turn(there, inverse(element), aspect=(0, 2)), image, rtol=0, atol=0)
    assert torch.equal(turn(turn(image[0, 0].long(), element), inverse(element)), image[0, 0].long())


def test_the_elements_are_eight_and_closed():
    square = torch.arange(9).view(3, 3)
    pictures = {tuple(turn(square, e).flatten().tolist()) for e in ELEMENTS}
    assert len(pictures) == 8
    assert {tuple(turn(turn(square, a), b).flatten().tolist()) for a in ELEMENTS for b in ELEMENTS} == pictures


def test_a_batch_turns_as_its_tiles_do_and_nothing_is_written_into_the_input():
    batch = torch.rand(3, 4, 6, 6)
    before = batch.clone()
    for element in ELEMENTS:
        one_by_one = torch.stack([turn(tile, element, (2, 1)) for tile in batch])
        assert torch.equal(turn(batch, element, (2, 1)), one_by_one)
    assert torch.equal(batch, before)


def tile(seed=0, side=16):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(len(RECIPE), side, side, generator=generator) * 200
    mask = torch.randint(-1, 3, (side, side), generator=generator)
    image[:, 2, 3] = torch.nan
    image[ChannelList(RECIPE).positions("red"), 5, 5] = torch.nan
    return image, mask


def element_of(before, after):
    return next(e for e in ELEMENTS if torch.equal(turn(before, e), after))


def test_only_ortho_changes_beside_the_turn_and_nodata_stays():
    channels = ChannelList(RECIPE)
    augment, ortho = TileAugmentation(channels), channels.positions(*ORTHO)
    image, mask = tile()
    untouched, seen = image.clone(), set()
    for seed in range(30):
        out, turned_mask = augment(image, mask, torch.Generator().manual_seed(seed))
        element = element_of(mask, turned_mask)
        seen.add(element)
        expected = turn(image, element, channels.aspect)
        others = [i for i in range(len(channels)) if i not in ortho]
        torch.testing.assert_close(out[others], expected[others], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(out.isnan(), expected.isnan())
        assert (out - expected)[ortho].nan_to_num().abs().max() > 1
    assert seen == set(ELEMENTS)
    torch.testing.assert_close(image, untouched, equal_nan=True, rtol=0, atol=0)


def test_the_generator_decides():
    augment, (image, mask) = TileAugmentation(ChannelList(RECIPE)), tile()
    a, b, c = (augment(image, mask, torch.Generator().manual_seed(seed))[0] for seed in (4, 4, 5))
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not torch.allclose(a, c, equal_nan=True)


def test_widths_of_0_only_turn():
    image, mask = tile()
    channels = ChannelList(RECIPE)
    out, turned = TileAugmentation(channels, 0, 0, 0)(image, mask, torch.Generator().manual_seed(1))
    torch.testing.assert_close(out, turn(image, element_of(mask, turned), channels.aspect), equal_nan=True)


def test_a_shift_lifts_the_whole_tile_and_nothing_but_its_height():
    channels, (image, mask) = ChannelList(RECIPE), tile()
    shifts = []
    for seed in range(60):
        out, turned = TileAugmentation(channels, 0, 0, 0, elevation_shift_m=300.0)(
            image, mask, torch.Generator().manual_seed(seed)
        )
        away = out - turn(image, element_of(mask, turned), channels.aspect)
        (at,) = channels.positions("elevation")
        lifted = away[at][~away[at].isnan()]
        torch.testing.assert_close(lifted, lifted[:1].expand_as(lifted), rtol=0, atol=1e-3)
        shifts.append(float(lifted[0]))
        rest = [i for i in range(len(channels)) if i != at]
        assert away[rest].nan_to_num().abs().max() < 1e-4
    assert 230 < np.std(shifts) < 370 and abs(np.mean(shifts)) < 120


def test_a_negative_shift_is_refused():
    with pytest.raises(StagewiseError, match="`elevation_shift_m` must be at least 0, got -5"):
        TileAugmentation(ChannelList(["elevation"]), elevation_shift_m=-5)


def test_light_means_what_it_says():
    bands, rounding = torch.rand(3, 8, 8) * 255, {"rtol": 1e-5, "atol": 1e-3}  # float32 at 255: about 3e-5
    torch.testing.assert_close(change_light(bands, 1.3, 1, 1), bands * 1.3, **rounding)
    contrasted = change_light(bands, 1, 0.6, 1)
    torch.testing.assert_close(contrasted.mean(), bands.mean(), **rounding)
    torch.testing.assert_close(contrasted.std(), bands.std() * 0.6, **rounding)
    grey = change_light(bands, 1, 1, 0)
    torch.testing.assert_close(grey[0], grey[2], **rounding)
    luma = torch.tensor([0.299, 0.587, 0.114])
    saturated = change_light(bands, 1, 1, 1.4)
    torch.testing.assert_close(
        torch.einsum("c,chw->hw", luma, saturated), torch.einsum("c,chw->hw", luma, bands), **rounding
    )
    tenfold = change_light(bands * 10, 1.2, 0.7, 1.3)
    torch.testing.assert_close(tenfold, change_light(bands, 1.2, 0.7, 1.3) * 10, **rounding)


def test_the_factors_stay_within_their_width_and_fill_it():
    augment = TileAugmentation(ChannelList(["red"]), brightness=0.4, contrast=0, saturation=0)
    image, mask = torch.ones(1, 2, 2), torch.zeros(2, 2, dtype=torch.long)
    factors = [float(augment(image, mask, torch.Generator().manual_seed(s))[0].mean()) for s in range(200)]
    assert 0.6 <= min(factors) < 0.65 and 1.35 < max(factors) <= 1.4


def test_tiles_without_aspect_or_ortho_are_turned():
    augment = TileAugmentation(ChannelList(["slope", "log_catchment"]))
    image, mask = torch.rand(2, 4, 4), torch.arange(16).view(4, 4)
    out, turned = augment(image, mask, torch.Generator().manual_seed(3))
    assert torch.equal(out, turn(image, element_of(mask, turned)))


@pytest.mark.parametrize("names", [["aspect_sin"], ["slope", "aspect"], ["aspect_sin", "aspect_cos", "aspect"]])
def test_an_aspect_that_cannot_be_turned_is_refused(names):
    with pytest.raises(StagewiseError, match="aspect_sin together with aspect_cos"):
        TileAugmentation(ChannelList(names))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_width_of_40_percent_is_040(name):
    with pytest.raises(StagewiseError, match=f"`{name}`.*40"):
        TileAugmentation(ChannelList(["red"]), **{name: 40})
