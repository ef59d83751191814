"""Decoding of image files, and the centre crop of ADM."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.data.transforms import centre_crop, decode, is_mirrored
from nanogen.errors import DataError

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(wide: int, high: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (high, wide, 3), dtype=np.uint8))


def box_halved(pixels: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, for even sides."""
    high, wide, _ = pixels.shape
    return pixels.reshape(high // 2, 2, wide // 2, 2, 3).mean((1, 3))


def test_an_image_of_the_right_size_is_left_alone():
    image = noise(32, 32)
    assert np.array_equal(centre_crop(image, 32).permute(1, 2, 0), np.asarray(image))


def test_a_wide_image_is_cut_to_its_centre():
    image = noise(37, 32)
    # An odd remainder of 5 leaves floor(5 / 2) columns on the left.
    assert np.array_equal(centre_crop(image, 32).permute(1, 2, 0), np.asarray(image)[:, 2:34])


def test_powers_of_two_are_reached_by_box_means_alone():
    image = noise(128, 128)
    expected = box_halved(np.asarray(image, np.float64))
    found = centre_crop(image, 64).permute(1, 2, 0).numpy()
    # Pillow rounds after each of its two passes, one a direction.
    assert np.abs(found - expected).max() <= 1
    twice = centre_crop(image, 32).permute(1, 2, 0).numpy()
    assert np.abs(twice - box_halved(expected)).max() <= 2


@pytest.mark.parametrize(("wide", "high", "size"), [(500, 375, 256), (375, 500, 64), (101, 57, 32)])
def test_general_sizes_follow_the_published_procedure(wide, high, size):
    """ADM: halve by BOX while the short side is twice the size or more, BICUBIC, crop."""
    image = noise(wide, high)
    reference = image
    while min(*reference.size) >= 2 * size:
        reference = reference.resize(tuple(s // 2 for s in reference.size), resample=Image.BOX)
    scale = size / min(*reference.size)
    sides = tuple(round(s * scale) for s in reference.size)
    pixels = np.array(reference.resize(sides, resample=Image.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    expected = pixels[top : top + size, left : left + size]
    found = centre_crop(image, size)
    assert found.dtype == torch.uint8 and found.shape == (3, size, size)
    assert np.array_equal(found.permute(1, 2, 0), expected)


def test_half_of_all_draws_are_mirrored():
    found = [is_mirrored(draw) for draw in range(1000)]
    assert 450 < sum(found) < 550
    assert found == [is_mirrored(draw) for draw in range(1000)]


def test_transparent_pixels_are_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear), "a").getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert decode(encoded(half), "a").getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    data = encoded(palette, transparency=0)
    assert decode(data, "a").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(levels)), "a")
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_cmyk_and_grey_become_rgb():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = decode(encoded(cyan, "JPEG", quality=95), "a").getpixel((4, 4))
    assert red < 10 and green > 245 and blue > 245
    assert decode(encoded(Image.new("L", (2, 2), 77)), "a").getpixel((0, 0)) == (77, 77, 77)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image = Image.new("RGB", (8, 4), "white")
    image.paste((0, 0, 0), (0, 0, 4, 4))
    upright = decode(encoded(image, "PNG", exif=exif), "a")
    assert upright.size == (4, 8)
    assert upright.getpixel((1, 1)) == (0, 0, 0) and upright.getpixel((1, 6)) == (255, 255, 255)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "a").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_truncated_files_are_refused_by_name(kind):
    data = encoded(noise(64, 64), kind)
    with pytest.raises(DataError, match="'broken.png' .*remove it"):
        decode(data[: len(data) // 2], "broken.png")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a"])
def test_files_that_are_no_images_are_refused(data):
    with pytest.raises(DataError, match="x.jpg"):
        decode(data, "x.jpg")


def test_formats_beyond_the_list_are_not_tried():
    tiff = encoded(noise(8, 8), "TIFF")
    with pytest.raises(DataError, match="not a readable image"):
        decode(tiff, "x.jpg")


def test_decompression_bombs_are_refused_before_decoding():
    bomb = encoded(Image.new("1", (9000, 9000)))
    assert len(bomb) < 20_000
    with pytest.raises(DataError, match="9000 x 9000 pixels"):
        decode(bomb, "bomb.png")
    with pytest.raises(DataError, match="a mere strip"):
        decode(encoded(Image.new("L", (5000, 1))), "strip.png")
