"""Corrupted images: the noise's table, what is kept and where, and that only the generator decides."""

import numpy as np
import pytest
import torch
from PIL import Image

from hialign.data.corrupt import KINDS, corrupted, cropped, grey, noised, rotated, schedule, zoomed

RNG = np.random.default_rng


@pytest.fixture
def pixels():
    return torch.from_numpy(RNG(5).standard_normal((3, 40, 40)).astype(np.float32))


@pytest.fixture
def image():
    """600 wide, 400 high; each pixel's red and green say where it is."""
    rows, columns = np.mgrid[:400, :600]
    return Image.fromarray(np.stack([rows // 2, columns // 3, rows * 0], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("step", "image", "noise"),
    [
        (0, 0.999989, 0.004728),
        (100, 0.998293, 0.058408),
        (200, 0.993879, 0.110476),
        (300, 0.980984, 0.194089),
        (400, 0.944860, 0.327476),
        (500, 0.863017, 0.505175),
        (600, 0.734247, 0.678883),
        (700, 0.592677, 0.805440),
        (800, 0.467014, 0.884250),
        (900, 0.364888, 0.931051),
        (999, 0.285043, 0.958515),
    ],
)
def test_the_shares_of_image_and_noise_are_those_of_the_table(step, image, noise):
    shares = schedule()
    assert (f"{shares[0][step]:.6f}", f"{shares[1][step]:.6f}") == (f"{image:.6f}", f"{noise:.6f}")


def test_the_schedule_is_a_slow_loops():
    kept = 1.0
    for step in range(20):
        kept *= 1 - ((5e-3 - 1e-5) / (1 + np.exp(6 - 12 * step / 999)) + 1e-5)
        assert schedule()[0][step].item() == pytest.approx(kept**0.5, rel=1e-6)
    torch.testing.assert_close(schedule()[0] ** 2 + schedule()[1] ** 2, torch.ones(1000))


def test_noise_is_the_tables_shares_of_pixels_and_of_a_normal_draw(pixels):
    drawn = torch.from_numpy(RNG(1).standard_normal((3, 40, 40), dtype=np.float32))
    torch.testing.assert_close(noised(pixels, RNG(1)), 0.863017 * pixels + 0.505175 * drawn, rtol=1e-5, atol=1e-5)
    noise = noised(torch.zeros(3, 200, 200), RNG(2), step=999)
    assert noise.std().item() == pytest.approx(0.958515, abs=0.01)
    assert abs(noise.mean().item()) < 0.01


def test_noise_after_no_step_leaves_nearly_everything(pixels):
    assert (noised(pixels, RNG(0), step=0) - pixels).abs().max() < 0.03


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_step_that_the_table_does_not_have_is_refused(pixels, step):
    with pytest.raises(ValueError, match=f"noise_step={step}: wanted 0 <= noise_step < 1000"):
        noised(pixels, RNG(0), step=step)


def test_zooming_keeps_between_a_hundredth_and_a_fifth_of_the_area_anywhere():
    """Pixels that say where they are: the range of them in the part is the part's size."""
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    shares, tops = [], []
    for seed in range(200):
        part = zoomed(torch.stack([rows, columns]), RNG(seed))
        assert part.shape == (2, 100, 100)
        sides = part.amax(dim=(1, 2)) - part.amin(dim=(1, 2)) + 1
        shares.append((sides[0] * sides[1] / 10_000).item())
        tops.append(part[0].min().item())
        assert 0.7 < (sides[0] / sides[1]).item() < 1.43  # rounded to whole pixels
    assert 0.008 < min(shares) < 0.03
    assert 0.18 < max(shares) < 0.21
    assert min(tops) < 5
    assert max(tops) > 70


def test_zooming_into_all_of_a_square_leaves_it(pixels):
    flat = torch.ones(3, 8, 8)
    torch.testing.assert_close(zoomed(flat, RNG(0), low=1, high=1), flat)
    with pytest.raises(ValueError, match=r"low=0, high=0\.2"):
        zoomed(pixels, RNG(0), low=0)


def test_grey_is_the_mean_colour_of_the_normalisation(pixels, image_processor):
    mean = tuple(round(255 * value) for value in image_processor.image_mean)
    seen = image_processor(images=[Image.new("RGB", (8, 8), mean)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(grey(seen), seen, rtol=0, atol=0.01)


def test_a_crop_is_a_part_of_the_image_as_it_is(image):
    for seed in range(10):
        part = cropped(image, RNG(seed))
        assert part.size == (240, 320)
        corner = np.asarray(part)[0, 0]
        whole = np.asarray(image)
        places = [(y, x) for y in range(81) for x in range(361) if (whole[y, x] == corner).all()]
        assert any(np.array_equal(whole[y : y + 320, x : x + 240], np.asarray(part)) for y, x in places)
    assert cropped(image.resize((600, 100)), RNG(0)).size == (240, 100)  # low and wide
    assert cropped(image.resize((20, 10)), RNG(0)).size == (20, 10)


def test_a_rotation_is_of_ten_to_eighty_degrees_in_the_same_frame(image):
    turned = rotated(image, RNG(3))
    assert turned.size == image.size
    angle = RNG(3).uniform(10, 80)
    assert 10 <= angle <= 80
    assert np.array_equal(np.asarray(turned), np.asarray(image.rotate(angle)))
    assert np.asarray(turned)[0, 0].tolist() == [0, 0, 0]
    assert not np.array_equal(np.asarray(turned), np.asarray(rotated(image, RNG(4))))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "other"])
def test_each_kind_gives_the_pixels_shape_and_the_same_for_the_same_generator(kind, image, image_processor):
    def process(picture):
        return image_processor(images=[picture], return_tensors="pt")["pixel_values"][0]

    pixels = process(image)

    def made(seed):
        return corrupted(kind, lambda: image, pixels, process, RNG(seed))

    assert made(1).shape == pixels.shape == (3, 8, 8)
    assert made(1).dtype == pixels.dtype
    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), pixels)
    assert torch.equal(made(1), made(2)) == (kind == "grey")


def test_only_what_works_on_images_asks_for_one(pixels):
    def refuse():
        raise AssertionError("the image was asked for")

    for kind in ("noise", "zoom", "grey"):
        assert corrupted(kind, refuse, pixels, lambda image: pixels, RNG(0)).shape == pixels.shape
    with pytest.raises(AssertionError, match="asked for"):
        corrupted("crop", refuse, pixels, lambda image: pixels, RNG(0))
    with pytest.raises(ValueError, match="kind='blur': wanted one of noise, zoom"):
        corrupted("blur", refuse, pixels, lambda image: pixels, RNG(0))
