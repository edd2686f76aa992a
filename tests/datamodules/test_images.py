import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from stagewise.datamodules.errors import BadRowsError
from stagewise.datamodules.images import (
    centre_box,
    crop,
    find_images,
    photometric,
    random_box,
    read_image,
    unreadable_images,
)

AREA, RATIO = (0.8, 1.0), (3 / 4, 4 / 3)
STILL = {"jitter": (0.0, 0.0, 0.0, 0.0), "gamma": (1.0, 1.0), "noise": 0.0}
LUMA = torch.tensor([0.299, 0.587, 0.114])


def pixels(height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def boxes(height, width, n=300, area=AREA, ratio=RATIO):
    return [random_box(height, width, area, ratio, (0, i)) for i in range(n)]


# --- boxes ---


@pytest.mark.parametrize(("height", "width"), [(240, 320), (300, 300), (100, 400), (400, 100), (97, 1031)])
def test_random_box_lies_inside_and_keeps_the_stated_area_and_ratio(height, width):
    square = min(height, width) ** 2
    for top, left, h, w in boxes(height, width):
        assert 0 <= top <= height - h and 0 <= left <= width - w
        assert (h + 0.5) * (w + 0.5) >= AREA[0] * square  # half a pixel for rounding
        assert (h - 0.5) * (w - 0.5) <= AREA[1] * square
        assert (w + 0.5) / (h - 0.5) >= RATIO[0] and (w - 0.5) / (h + 0.5) <= RATIO[1]


@pytest.mark.parametrize(("height", "width"), [(100, 400), (400, 100)])
def test_random_box_roams_over_the_whole_of_a_panorama(height, width):
    drawn = np.array(boxes(height, width))
    start, side = drawn[:, 0 if height > width else 1], drawn[:, 2 if height > width else 3]
    share = start / (400 - side)
    assert share.min() < 0.05 and share.max() > 0.95
    assert len(set(map(tuple, drawn.tolist()))) > 250  # never one fixed fall-back


def test_random_box_spreads_evenly_over_the_area_range():
    share = np.array([h * w for _, _, h, w in boxes(500, 500, 1000)]) / 500**2
    counts, _ = np.histogram(share, bins=4, range=AREA)
    assert counts.min() > 180  # 250 each if even


def test_random_box_exists_for_any_picture_area_and_ratio():
    rng = np.random.default_rng(0)
    for i in range(500):
        height, width = (int(x) for x in rng.integers(1, 60, 2))
        area, ratio = sorted(rng.uniform(0.01, 1, 2)), sorted(rng.uniform(0.2, 5, 2))
        top, left, h, w = random_box(height, width, tuple(area), tuple(ratio), (int(rng.integers(2**62)), i))
        assert h >= 1 and w >= 1 and 0 <= top <= height - h and 0 <= left <= width - w


def test_random_box_is_a_pure_function_of_the_key():
    first = [random_box(240, 320, AREA, RATIO, (5, i)) for i in range(100)]
    torch.manual_seed(0), np.random.seed(0)
    assert [random_box(240, 320, AREA, RATIO, (5, i)) for i in range(100)] == first
    assert len(set(first)) > 90
    assert sum(random_box(240, 320, AREA, RATIO, (6, i)) == box for i, box in enumerate(first)) < 5


@pytest.mark.parametrize(("height", "width"), [(24, 32), (32, 24), (10, 41), (7, 7)])
def test_centre_box_is_the_largest_centred_square(height, width):
    top, left, h, w = centre_box(height, width)
    assert h == w == min(height, width)
    assert abs((height - h - top) - top) <= 1 and abs((width - w - left) - left) <= 1


def test_centre_crop_of_a_panorama_is_not_squashed():
    image = torch.zeros(3, 40, 160, dtype=torch.uint8)
    image[:, :, 60:100] = 255  # the centred square
    result = crop(image, centre_box(40, 160), 20)
    assert result.shape == (3, 20, 20) and result.dtype == torch.uint8
    assert (result == 255).all()


# --- photometry ---


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_photometry_is_a_function_of_the_generator_and_differs_between_samples():
    same = torch.rand(1, 3, 8, 8).repeat(6, 1, 1, 1)
    first, again = photometric(same, generator()), photometric(same, generator())
    assert torch.equal(first, again)
    assert not torch.allclose(first, photometric(same, generator(1)), atol=0.01)
    means = photometric(same, generator(), noise=0.0).mean((1, 2, 3))
    assert len(means.unique()) == 6


def test_photometry_stays_in_range_and_finite_at_the_extremes():
    extreme = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.eye(8).expand(3, 8, 8)] * 10)
    result = photometric(extreme, generator(), jitter=(0.9, 0.9, 0.9, 0.5), gamma=(0.2, 3.0), noise=0.5)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
    assert result.shape == extreme.shape and result.dtype == extreme.dtype


def test_photometry_with_nothing_to_do_is_the_identity():
    images = torch.rand(4, 3, 8, 8, generator=generator())
    assert (photometric(images, generator(), **STILL) - images).abs().max() < 2e-4


@pytest.mark.parametrize("jitter", [(0, 0, 0.5, 0), (0, 0, 0, 0.5)])
def test_saturation_and_hue_change_colour_but_neither_grey_nor_luma(jitter):
    options = STILL | {"jitter": jitter}
    grey = torch.rand(5, 1, 8, 8, generator=generator()).expand(5, 3, 8, 8)
    assert (photometric(grey, generator(), **options) - grey).abs().max() < 1e-3
    muted = 0.4 + 0.2 * torch.rand(5, 3, 8, 8, generator=generator())  # far from black and white: nothing is cut
    result = photometric(muted, generator(), **options)
    assert (result - muted).abs().max() > 0.02
    gap = torch.einsum("c,bchw->bhw", LUMA, result - muted)
    assert gap.abs().max() < 1e-3


def test_brightness_scales_and_contrast_spreads():
    images = 0.3 + 0.2 * torch.rand(5, 3, 8, 8, generator=generator())
    brighter = photometric(images, generator(), **STILL | {"jitter": (0.3, 0, 0, 0)}) / images
    assert (brighter.amax((1, 2, 3)) - brighter.amin((1, 2, 3))).max() < 2e-3
    assert len(brighter.mean((1, 2, 3)).unique()) == 5
    assert 0.7 <= brighter.min() and brighter.max() <= 1.301
    spread = photometric(images, generator(), **STILL | {"jitter": (0, 0.3, 0, 0)})
    assert (spread.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs().max() < 1e-3
    assert (spread.std((1, 2, 3)) / images.std((1, 2, 3)) - 1).abs().max() > 0.05


def test_noise_has_the_stated_deviation():
    grey = torch.full((4, 3, 64, 64), 0.5)
    assert photometric(grey, generator(), **STILL | {"noise": 0.05}).std().item() == pytest.approx(0.05, rel=0.05)


def test_draws_do_not_depend_on_dtype():
    images = torch.rand(4, 3, 8, 8, generator=generator())
    single, double = photometric(images, generator()), photometric(images.double(), generator())
    assert (single - double).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_draws_do_not_depend_on_the_device():
    images = torch.rand(4, 3, 8, 8, generator=generator())
    assert (photometric(images, generator()) - photometric(images.cuda(), generator()).cpu()).abs().max() < 1e-4


# --- files ---


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(np.kron(pixels(3, 4), np.ones((8, 8, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened)).astype(int)
    read = read_image(tmp_path / "a.jpg").permute(1, 2, 0).numpy().astype(int)
    assert read.shape == expected.shape
    assert np.abs(read - expected).mean() < 4  # decoders may round differently


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_every_png_mode_reads_as_rgb(tmp_path, mode):
    image = Image.fromarray(pixels()).convert(mode)
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == torch.uint8
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read.permute(1, 2, 0).numpy(), expected)


def test_a_16_bit_png_reads_as_8_bits(tmp_path):
    grey = pixels()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    read = read_image(tmp_path / "deep.png")
    assert read.dtype == torch.uint8 and read.shape == (3, 24, 32)
    assert np.abs(read[0].numpy().astype(int) - grey).max() <= 1


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_an_animation_reads_as_its_first_picture(tmp_path, suffix):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=suffix == "gif", append_images=frames[1:])
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.shape == (3, 24, 32)
    assert read[0].float().mean() > 240 and read[2].float().mean() < 15


def broken(folder):
    """path by kind of damage."""
    Image.fromarray(pixels()).save(folder / "good.jpg")
    Image.fromarray(pixels()).save(folder / "good.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture", encoding="utf-8")
    for suffix in ("jpg", "png"):
        data = (folder / f"good.{suffix}").read_bytes()
        (folder / f"half.{suffix}").write_bytes(data[: len(data) // 2])
        (folder / f"nearly.{suffix}").write_bytes(data[: len(data) * 97 // 100])
    why = dict.fromkeys(["text.jpg", "half.jpg", "half.png", "nearly.jpg", "nearly.png"], "truncated or not a picture")
    return why | {"empty.jpg": "empty file", "missing.jpg": "no such file"}


def test_a_file_that_is_no_picture_is_named_with_the_reason(tmp_path):
    for name, why in broken(tmp_path).items():
        with pytest.raises(BadRowsError) as error:
            read_image(tmp_path / name)
        assert str(error.value) == f"'{tmp_path / name}': {why}; replace or remove the file."


def test_unreadable_images_lists_exactly_the_bad_ones(tmp_path):
    why = broken(tmp_path)
    names = ["good.jpg", *why, "good.png"]
    found = unreadable_images([str(tmp_path / name) for name in names], progress=False)
    assert {names[i]: reason for i, reason in found.items()} == why


def test_find_images_is_sorted_and_takes_any_case(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.webp", "notes.txt", "b/deep/x.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.webp", "b/1.png", "b/2.JPG", "b/deep/x.gif"]
    assert find_images(tmp_path / "b" / "?.*") == [tmp_path / "b" / "1.png", tmp_path / "b" / "2.JPG"]
    assert find_images(tmp_path / "a.webp") == [tmp_path / "a.webp"]
    assert find_images(tmp_path / "none") == find_images(tmp_path / "no" / "such*") == []
