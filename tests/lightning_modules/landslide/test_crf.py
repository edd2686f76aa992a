import itertools

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.landslide.crf import DenseCRF
from stagewise.lightning_modules.landslide.mean_field import MIN_PROBABILITY
from stagewise.lightning_modules.landslide.permutohedral import PermutohedralLattice
from stagewise.lightning_modules.landslide.pieces import PIECE


def blurred_noise(shape, deviation, generator):
    """White noise low-pass filtered to a deviation in pixels, of unit variance."""
    frequencies = [torch.fft.fftfreq(n) for n in shape[-2:]]
    square = frequencies[0][:, None] ** 2 + frequencies[1] ** 2
    spectrum = torch.fft.fft2(torch.randn(shape, generator=generator)) * torch.exp(
        -2 * (torch.pi * deviation) ** 2 * square
    )
    noise = torch.fft.ifft2(spectrum).real
    return noise / noise.std(dim=(-2, -1), keepdim=True)


def scene(classes=3, size=96, guide_noise=6.0, seed=0, channels=3):
    """A class field, a noisy softmax of it, and a guide of whole numbers that follows it."""
    generator = torch.Generator().manual_seed(seed)
    field = blurred_noise((size, size), size / 12, generator)
    cuts = torch.quantile(field, torch.linspace(0.3, 0.9, classes - 1))
    truth = torch.bucketize(field, cuts)
    logits = 1.5 * torch.nn.functional.one_hot(truth, classes).permute(2, 0, 1)
    logits = logits + 0.8 * blurred_noise((classes, size, size), 3, generator)
    logits = logits + 0.7 * torch.randn((classes, size, size), generator=generator)
    guide = 120 + 30 * field + guide_noise * torch.randn((channels, size, size), generator=generator)
    return logits.softmax(0), guide.round().clamp(0, 255), truth


def exact_mean_field(probability, guide, crf):
    """The same energy with all N^2 pairs of pixels: no lattice."""
    classes, height, width = probability.shape
    unary = -probability.double().clamp_min(MIN_PROBABILITY).log().reshape(classes, -1)
    rows, columns = (
        x.double().reshape(-1) for x in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    position = torch.stack([columns, rows], 1)
    value = guide.double().reshape(len(guide), -1).T / crf.bilateral_value
    interaction = 0.0
    for weight, features in (
        (crf.compat_spatial, position / crf.spatial_weight),
        (crf.compat_bilateral, torch.cat([position / crf.bilateral_xy, value], 1)),
    ):
        kernel = torch.exp(-0.5 * torch.cdist(features, features).square())
        root = kernel.sum(1).rsqrt()
        interaction = interaction + weight * root[:, None] * kernel * root
    marginal = (-unary).softmax(0)
    for _ in range(crf.iterations):
        marginal = (-unary + marginal @ interaction).softmax(0)
    return marginal.reshape(classes, height, width)


def refine_with_peer(probability, guide, crf):
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="the extra crf-peer (pydensecrf2) is not installed")
    classes, height, width = probability.shape
    peer = densecrf.DenseCRF2D(width, height, classes)
    unary = -probability.clamp_min(MIN_PROBABILITY).log().reshape(classes, -1)
    peer.setUnaryEnergy(np.ascontiguousarray(unary.numpy()))
    peer.addPairwiseGaussian(sxy=crf.spatial_weight, compat=crf.compat_spatial)
    image = np.ascontiguousarray(guide.permute(1, 2, 0).numpy().astype(np.uint8))
    peer.addPairwiseBilateral(sxy=crf.bilateral_xy, srgb=crf.bilateral_value, rgbim=image, compat=crf.compat_bilateral)
    return torch.from_numpy(np.array(peer.inference(crf.iterations)).reshape(classes, height, width))


def agreement(a, b):
    return (a.argmax(0) == b.argmax(0)).float().mean().item()


@pytest.mark.parametrize("guide_noise", [0.0, 6.0, 25.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_the_crf_of_pydensecrf(classes, guide_noise):
    probability, guide, _ = scene(classes, guide_noise=guide_noise)
    ours, theirs = DenseCRF().refine(probability, guide), refine_with_peer(probability, guide, DenseCRF())
    assert agreement(ours, theirs) >= 0.9995
    assert (ours - theirs).abs().max() < 1e-3


def test_it_is_the_crf_of_pydensecrf_with_other_settings():
    crf = DenseCRF(
        3, spatial_weight=2.0, compat_spatial=1.5, compat_bilateral=3.0, bilateral_xy=20.0, bilateral_value=7.0
    )
    probability, guide, _ = scene(seed=1)
    assert (crf.refine(probability, guide) - refine_with_peer(probability, guide, crf)).abs().max() < 1e-3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_it_approximates_the_sum_over_all_pairs_of_pixels(channels):
    """The lattice is an approximation: the classes agree at 97 % of the pixels, far more than they changed."""
    crf = DenseCRF(spatial_weight=2.0, bilateral_xy=10.0, compat_spatial=2.0, compat_bilateral=4.0)
    probability, guide, _ = scene(size=24, guide_noise=3.0, channels=channels)
    exact, ours = exact_mean_field(probability, guide, crf), crf.refine(probability, guide)
    assert agreement(exact, ours) >= 0.97
    assert agreement(exact, probability) < 0.9


def test_a_lattice_filters_as_the_gaussian_does():
    """Weights normalised symmetrically; the shape of the lattice's kernel is known to be rough, its width is right."""
    x = torch.linspace(0, 20, 2001)
    kernel = torch.exp(-0.5 * (x[:, None] - x).square())
    root = kernel.sum(1).rsqrt()
    values = torch.stack([torch.sin(x / 2), torch.cos(x / 4)])
    expected = values @ (root[:, None] * kernel * root)
    torch.testing.assert_close(PermutohedralLattice(x[None]).filter(values), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 6])
def test_a_lattice_is_linear_and_leaves_no_weight_out(d):
    generator = torch.Generator().manual_seed(d)
    lattice = PermutohedralLattice(3 * torch.randn(d, 300, generator=generator))
    matrix = lattice.filter(torch.eye(300))
    values = torch.randn(2, 300, generator=generator)
    torch.testing.assert_close(lattice.filter(values), values @ matrix, atol=1e-5, rtol=1e-4)
    assert matrix.min() >= 0
    assert torch.linalg.eigvals(matrix.double()).abs().max() == pytest.approx(1, abs=0.05)  # neither grows nor fades


def test_threads_share_the_work_and_change_nothing(monkeypatch):
    probability, guide, _ = scene()
    alone = DenseCRF().refine(probability, guide)
    monkeypatch.setitem(PIECE, "cpu", 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.inference_mode():
            together = DenseCRF().refine(probability.requires_grad_(), guide)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_noise_goes_and_edges_of_the_guide_stay():
    probability, _, truth = scene(seed=2)
    guide = (60.0 * truth + 40)[None]
    refined = DenseCRF().refine(probability, guide)
    accuracy = [(p.argmax(0) == truth).float().mean().item() for p in (probability, refined)]
    assert accuracy[0] < 0.8 < 0.97 < accuracy[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (33, 70)])
def test_a_constant_field_stays_constant(shape):
    probability = torch.tensor([0.2, 0.5, 0.3])[:, None, None].expand(3, *shape)
    refined = DenseCRF().refine(probability, torch.full((3, *shape), 80.0))
    assert (refined.argmax(0) == 1).all()
    torch.testing.assert_close(refined.sum(0), torch.ones(shape))
    assert refined[1].min() > 0.5


def test_classes_may_change_places():
    probability, guide, _ = scene()
    order = [2, 0, 1]
    torch.testing.assert_close(
        DenseCRF().refine(probability[order], guide), DenseCRF().refine(probability, guide)[order], atol=1e-4, rtol=0
    )


def test_without_iterations_nothing_changes():
    probability, guide, _ = scene(size=16)
    assert torch.equal(DenseCRF(iterations=0).refine(probability, guide), probability)


def test_without_weights_nothing_changes():
    probability, guide, _ = scene(size=16)
    refined = DenseCRF(compat_spatial=0, compat_bilateral=0).refine(probability, guide)
    torch.testing.assert_close(refined, probability)


def test_invalid_pixels_are_nan_and_influence_no_other():
    probability, guide, _ = scene(size=48)
    valid = torch.ones(48, 48, dtype=torch.bool)
    valid[10:30, 20:] = False
    refined = []
    for seed in (3, 4):
        other, other_guide, _ = scene(size=48, seed=seed)
        refined.append(
            DenseCRF().refine(torch.where(valid, probability, other), torch.where(valid, guide, other_guide), valid)
        )
    torch.testing.assert_close(refined[0], refined[1], equal_nan=True, rtol=0, atol=0)
    assert refined[0].isnan().all(0).equal(~valid)
    assert refined[0][:, valid].isfinite().all()


def test_pixels_that_are_not_finite_are_invalid():
    probability, guide, _ = scene(size=24)
    probability[1, 3, 4], guide[0, 5, 6] = torch.nan, torch.inf
    valid = torch.ones(24, 24, dtype=torch.bool)
    valid[3, 4] = valid[5, 6] = False
    refined = DenseCRF().refine(probability, guide)
    torch.testing.assert_close(refined, DenseCRF().refine(*scene(size=24)[:2], valid), equal_nan=True, rtol=0, atol=0)
    assert int(refined.isnan().all(0).sum()) == 2


def test_nothing_valid_at_all():
    probability, guide, _ = scene(size=8)
    assert DenseCRF().refine(probability, guide, torch.zeros(8, 8, dtype=torch.bool)).isnan().all()


def in_tiles(crf, probability, guide, valid=None):
    height, width = probability.shape[1:]
    out = torch.full_like(probability, -1.0)

    def read(window):
        row, column, rows, columns = window
        assert min(row, column) >= 0 and row + rows <= height and column + columns <= width
        here = slice(row, row + rows), slice(column, column + columns)
        return probability[:, *here], guide[:, *here], None if valid is None else valid[here]

    def write(window, refined):
        row, column, rows, columns = window
        assert (out[:, row : row + rows, column : column + columns] == -1).all(), "no pixel is written twice"
        out[:, row : row + rows, column : column + columns] = refined

    crf.refine_tiled(read, write, height, width)
    return out


def test_tiles_agree_with_the_whole():
    """With a halo of four deviations; their lattices line up, or the difference would be some percent."""
    probability, guide, _ = scene(size=100)
    settings = {"bilateral_xy": 8.0, "spatial_weight": 3.0, "compat_bilateral": 5.0}
    whole = DenseCRF(**settings).refine(probability, guide)
    tiled = in_tiles(DenseCRF(**settings, tile=50), probability, guide)
    assert agreement(whole, tiled) >= 0.999
    assert (whole - tiled).abs().mean() < 1e-3


def test_a_halo_that_sees_everything_gives_the_whole():
    probability, guide, _ = scene(size=60)
    whole = DenseCRF().refine(probability, guide)
    torch.testing.assert_close(in_tiles(DenseCRF(tile=32, halo=60), probability, guide), whole, rtol=0, atol=0)


@pytest.mark.parametrize(("axis", "period"), [(0, 3.0), (1, 3.0**0.5)])
def test_the_place_in_the_raster_sets_the_lattice(axis, period):
    """It repeats itself: a window a hundred thousand periods away is refined as the same pixels here, not otherwise."""
    probability, guide, _ = scene(size=48)
    crf = DenseCRF(spatial_weight=12 / period, bilateral_xy=36 / period)
    here, far, between = (
        crf.refine(probability, guide, origin=(5, 5 + shift) if axis else (5 + shift, 5)) for shift in (0, 3_600_000, 5)
    )
    torch.testing.assert_close(here, far, atol=1e-4, rtol=0)
    assert (here - between).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width", "tile"), [(100, 70, 32), (32, 32, 32), (1, 5, 2)])
def test_windows_cover_each_pixel_once(height, width, tile):
    seen = np.zeros((height, width), int)
    for row, column, rows, columns in DenseCRF(tile=tile).windows(height, width):
        assert rows <= tile and columns <= tile
        seen[row : row + rows, column : column + columns] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["spatial_weight", "bilateral_xy", "bilateral_value", "tile"], [0, -1]),
        ("bilateral_xy", float("nan")),
    ]
    + [(name, -1) for name in ("iterations", "compat_spatial", "compat_bilateral", "halo")],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(StagewiseError, match=f"`{name}` must be .* 0, got {value}"):
        DenseCRF(**{name: value})


@pytest.mark.parametrize(
    ("probability", "guide", "valid"),
    [
        ((1, 4, 4), (3, 4, 4), None),
        ((3, 4, 4), (3, 4, 5), None),
        ((3, 4, 4), (4, 4), None),
        ((3, 4, 4), (3, 4, 4), (4, 5)),
    ],
)
def test_shapes_that_do_not_fit_are_named(probability, guide, valid):
    mask = None if valid is None else torch.ones(valid, dtype=torch.bool)
    with pytest.raises(StagewiseError, match="the CRF takes probability"):
        DenseCRF().refine(torch.rand(probability), torch.rand(guide), mask)


def test_a_guide_too_wide_to_number_is_an_error():
    guide = torch.zeros(4, 2, 2)
    guide[:, 0, 0] = 1e9
    with pytest.raises(StagewiseError, match="too many to number"):
        DenseCRF().refine(torch.full((2, 2, 2), 0.5), guide)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu_as_on_the_cpu():
    probability, guide, _ = scene()
    torch.testing.assert_close(
        DenseCRF().refine(probability.cuda(), guide.cuda()).cpu(),
        DenseCRF().refine(probability, guide),
        atol=1e-3,
        rtol=0,
    )
