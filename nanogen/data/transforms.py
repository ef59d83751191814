"""From the bytes of an image file to a training image: decode safely, crop the centre, mirror.

    image = centre_crop(decode(data, "cat/1.jpg"), 256)      # uint8 [3, 256, 256]

Files come from anywhere. So only the formats below are tried (Pillow knows many more, and some
start other programs), sizes are checked before any pixel is decoded, and whatever goes wrong is one
DataError that names the file.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nanogen.data.order import mixed
from nanogen.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MOST_PIXELS = 80_000_000
LONGEST_SIDE_RATIO = 100
"""a thin strip becomes huge when its short side is enlarged"""


def decode(data: bytes, name: str) -> Image.Image:
    """An image file as RGB, 8 bits a channel, upright (EXIF); the first frame of an animation.

    Transparent pixels are laid over white, 16-bit grey is scaled to 8 bits, CMYK is converted.
    `name` is for messages. Raises DataError for data that is broken, truncated, too large or of
    another format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            return _rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    # Broken files make decoders raise nearly anything: OSError, SyntaxError, struct.error ...
    except Exception as problem:
        reason = "not a readable image" if "identify" in str(problem) else str(problem)
        raise DataError(
            f"{name!r} cannot be decoded: {reason}; remove it or replace it"
        ) from problem


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """RGB image to uint8 [3, size, size] as ADM prepares ImageNet (Dhariwal and Nichol 2021).

    The image is halved by box averages while its short side is at least `2 size`, scaled
    bicubically until the short side is `size` (each side rounded), and cut to the centre square.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    wide, high = round(image.width * scale), round(image.height * scale)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def is_mirrored(draw: int) -> bool:
    """Whether left and right are exchanged: so it is for half of all draws."""
    return bool(int(mixed(draw)) & 1)


def _check_size(image: Image.Image, name: str) -> None:
    wide, high = image.size
    if wide * high > MOST_PIXELS:
        raise DataError(
            f"{name!r} has {wide} x {high} pixels, more than {MOST_PIXELS:,}; "
            "shrink it or remove it"
        )
    if max(wide, high) > LONGEST_SIDE_RATIO * min(wide, high):
        raise DataError(f"{name!r} has {wide} x {high} pixels, a mere strip; crop it or remove it")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image, np.float64) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
