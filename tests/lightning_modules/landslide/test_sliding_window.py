"""Windows that cover any raster, blend without seams, and are taken up after a kill bit for bit."""

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide.sliding_window import Tiling, finished_units, predict_tiled
from stagewise.lightning_modules.landslide.windows import Axis

SIZES = [  # height, width, tiling: window, overlap, batch, block
    (70, 50, Tiling(32, 8, 4, 32)),
    (300, 500, Tiling(64, 16, 3, 200)),
    (20, 33, Tiling(32, 16, 1, 32)),  # lower than a window, one pixel wider
    (5, 7, Tiling(32, 16, 4, 64)),
    (64, 65, Tiling(64, 0, 3, 64)),
    (129, 64, Tiling(64, 32, 3, 64)),
    (128, 128, Tiling(64, 32, 2, 4096)),
]


class Raster:
    """A field that is read and written by windows; NaN outside, and before it is written."""

    def __init__(self, field: np.ndarray, bands: int) -> None:
        self.field = field.astype(np.float32)
        self.found = np.full((bands, *field.shape[1:]), np.nan, np.float32)
        self.units: list[tuple[int, int, int, int]] = []

    def read(self, window, pixels):
        row, column, rows, columns = window
        inside = self.field[:, row : row + rows, column : column + columns]
        pixels[:] = np.nan
        pixels[:, : inside.shape[1], : inside.shape[2]] = inside

    def write(self, window, values):
        row, column, rows, columns = window
        place = self.found[:, row : row + rows, column : column + columns]
        assert np.isnan(place).all(), "written twice"
        place[:] = values
        self.units.append(window)


def predict(field: np.ndarray, tiling: Tiling, infer=lambda image: image, **options) -> Raster:
    raster = Raster(field, len(field))
    predict_tiled(infer, raster.read, len(field), *field.shape[1:], raster.write, tiling, **options)
    return raster


@pytest.mark.parametrize(("height", "width", "tiling"), SIZES)
def test_a_constant_field_comes_out_constant(height, width, tiling):
    found = predict(np.full((2, height, width), 0.7), tiling).found
    assert np.abs(found - np.float32(0.7)).max() <= 1e-6


@pytest.mark.parametrize(("height", "width", "tiling"), SIZES)
def test_a_linear_field_comes_out_as_it_went_in(height, width, tiling):
    field = np.add.outer(np.arange(height) / height, np.arange(width) / width)[None]
    assert np.abs(predict(field, tiling).found - field).max() <= 1e-6


@pytest.mark.parametrize(("height", "width", "tiling"), SIZES)
def test_units_cover_the_raster_once_and_are_those_announced(height, width, tiling):
    raster = predict(np.zeros((1, height, width)), tiling)
    assert raster.units == finished_units(height, width, tiling)
    assert not np.isnan(raster.found).any()


@pytest.mark.parametrize(("length", "window", "overlap"), [(1000, 512, 128), (513, 512, 256), (97, 32, 8), (9, 16, 4)])
def test_weights_are_positive_and_add_up_to_1(length, window, overlap):
    axis = Axis(length, window, overlap)
    total = np.zeros(max(length, window))
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        total[start : start + window] += weight
        assert weight.min() > 0
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_network_that_differs_from_window_to_window_leaves_no_step():
    """Each window answers with another constant: neighbouring pixels differ by a ramp's slope, not by a seam."""
    count = iter(range(10_000))

    def infer(image):
        return torch.stack([torch.full_like(one, next(count) % 2) for one in image])

    found = predict(np.zeros((1, 256, 256)), Tiling(64, 32, 1), infer).found[0]
    steepest = np.pi / 2 / 32  # of sin² over 32 pixels
    assert max(np.abs(np.diff(found, axis=0)).max(), np.abs(np.diff(found, axis=1)).max()) < 2 * steepest
    assert found.min() < 0.1 and found.max() > 0.9


def test_the_map_does_not_depend_on_batch_and_block():
    field = np.random.default_rng(0).random((3, 200, 330))

    def infer(image):
        return image * image.mean((2, 3), keepdim=True)  # every window another factor

    one = predict(field, Tiling(64, 16, 1, 4096), infer).found
    other = predict(field, Tiling(64, 16, 5, 128), infer).found
    assert np.abs(one - other).max() < 1e-6


@pytest.mark.parametrize("written", [0, 1, 5, 11])
def test_a_run_killed_while_it_writes_goes_on_bit_for_bit(written):
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 5, padding=2)
    torch.nn.init.normal_(network.weight, generator=generator)
    field, tiling = np.random.default_rng(0).random((3, 150, 260)), Tiling(64, 24, 3, 100)
    whole = predict(field, tiling, network)
    assert len(whole.units) > 11
    raster, seen = Raster(field, 3), []

    def write(window, values):
        if len(seen) == written:
            raise OSError("killed")
        raster.write(window, values)
        seen.append(window)

    with pytest.raises(OSError, match="killed"):
        predict_tiled(network, raster.read, 3, 150, 260, write, tiling)
    predict_tiled(network, raster.read, 3, 150, 260, raster.write, tiling, done=set(seen))
    assert np.array_equal(raster.found, whole.found)


def test_any_unit_can_be_missing_and_comes_out_the_same():
    field, tiling = np.random.default_rng(0).random((1, 150, 100)), Tiling(32, 16, 4, 64)
    whole = predict(field, tiling)
    for missing in whole.units[::3]:
        raster = predict(field, tiling, done=set(whole.units) - {missing})
        row, column, rows, columns = missing
        place = (slice(None), slice(row, row + rows), slice(column, column + columns))
        assert raster.units == [missing]
        assert np.array_equal(raster.found[place], whole.found[place])


def test_a_finished_map_reads_nothing():
    def read(window, pixels):
        raise AssertionError

    predict_tiled(lambda image: image, read, 1, 100, 100, lambda *_: None, done=set(finished_units(100, 100)))


def test_an_error_of_the_reader_is_raised():
    def read(window, pixels):
        raise OSError("truncated")

    with pytest.raises(OSError, match="truncated"):
        predict_tiled(lambda image: image, read, 1, 100, 100, lambda *_: None)


@pytest.mark.parametrize(
    ("tiling", "words"), [(Tiling(64, 33), "half of the window 64"), (Tiling(64, 16, batch=0), "at least 1")]
)
def test_a_tiling_that_cannot_be_is_refused(tiling, words):
    with pytest.raises(StagewiseError, match=words):
        predict(np.zeros((1, 10, 10)), tiling)


def test_a_network_that_changes_the_size_is_refused():
    with pytest.raises(StagewiseError, match="it must keep B, H, W"):
        predict(np.zeros((1, 100, 100)), Tiling(64, 16), lambda image: image[..., ::2])
