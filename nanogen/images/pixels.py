"""From the bytes of an image file to uint8 RGB, and what had to be changed on the way.

pixels = rgb(data, "a.png", size=256)        # uint8 [3, 256, 256]
look(data)                                   # Look(256, 256, ("grey",)), from the head alone
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanogen.data.transforms import FORMATS, centre_crop, decode
from nanogen.errors import DataError

ORIENTATION = 0x0112
"""the EXIF tag that says which way is up; 1 is upright"""
QUARTER_TURNS = (5, 6, 7, 8)
"""its values that exchange width and height"""


@dataclass(frozen=True)
class Look:
    """What the head of an image file says."""

    width: int
    height: int
    notes: tuple[str, ...]
    """grey, palette, alpha, 16_bit, cmyk, rotated, animated, jpeg: why the pixels that are measured
    are not simply those of the file, or not those that were drawn
    """


def rgb(data: bytes, name: str, size: int | None = None) -> Tensor:
    """An image file as uint8 [3, H, W]: RGB, upright, transparent pixels over white.

    With `size`, an image of another size becomes size x size by ADM's centre crop. DataError, which
    names the file, where it is broken or too large.
    """
    image = decode(data, name)
    if size is not None and image.size != (size, size):
        return centre_crop(image, size)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def sized(pixels: Tensor, size: int | None) -> Tensor:
    """uint8 [3, H, W] as it is, or by ADM's centre crop to [3, size, size]."""
    if size is None or pixels.shape[1:] == (size, size):
        return pixels
    return centre_crop(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), size)


def look(head: bytes) -> Look:
    """Size (upright) and notes of an image file from its beginning; no pixel is decoded.

    DataError where that is not enough of an image.
    """
    try:
        with Image.open(io.BytesIO(head), formats=FORMATS) as image:
            notes = tuple(_notes(image))
            width, height = image.size
            turned = _orientation(image) in QUARTER_TURNS
    except Exception as problem:  # see nanogen.data.transforms.decode
        raise DataError(f"no readable image: {problem}") from problem
    return Look(height, width, notes) if turned else Look(width, height, notes)


def _notes(image: Image.Image) -> Iterator[str]:
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        yield "grey"
    if image.mode.startswith("P"):
        yield "palette"
    if image.has_transparency_data:
        yield "alpha"
    if image.mode.startswith("I") or _deep(image):
        yield "16_bit"
    if image.mode == "CMYK":
        yield "cmyk"
    if _orientation(image) != 1:
        yield "rotated"
    if getattr(image, "is_animated", False):
        yield "animated"
    if image.format == "JPEG":
        yield "jpeg"


def _deep(image: Image.Image) -> bool:
    """Whether Pillow will keep the upper 8 of 16 bits a channel: only its raw mode tells."""
    return any(
        re.search(r";16[BLN]", str(part))
        for tile in getattr(image, "tile", ())
        for part in tile[3:]
    )


def _orientation(image: Image.Image) -> int:
    # Of a PNG, Pillow would decode every pixel in search of EXIF data behind them.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1
