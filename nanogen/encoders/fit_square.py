"""How published scorers bring an image of any size to the square that their network was made for.

    fed = crop_square(images, 224)        # uint8 [B, 3, H, W] -> float32 [B, 3, 224, 224] in [0, 1]

Scores move with the rule, so each of those in use is here:

    crop_square                      transformers: shortest side, by Pillow's filter on bytes; then
                                     the centre
    crop_square(torchvision=True)    torchvision: the same, another centre where the rest is odd
    pad_square                       HPS: longest side, on floats; what is missing is black
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from nanogen.encoders.pillow_resize import BICUBIC, resize


def crop_square(images: Tensor, side: int, *, torchvision: bool = False) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, side, side] in [0, 1].

    Pillow's bicubic filter takes the shortest side to `side`, the other to the whole number below;
    along rows first, as in all versions before 13, which chooses the order by the shape.
    Where an odd number of rows or columns is cut off, transformers leaves the smaller half before
    the centre, and torchvision rounds half of that number to the nearest even one.
    """
    height, width = images.shape[-2:]
    shortest = min(height, width)
    tall, wide = int(side * height / shortest), int(side * width / shortest)
    top, left = (round((n - side) / 2) if torchvision else (n - side) // 2 for n in (tall, wide))
    centre = slice(top, top + side), slice(left, left + side)
    return resize(images, (tall, wide), BICUBIC, centre) / 255


def pad_square(images: Tensor, side: int, *, antialias: bool = True) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, side, side].

    The longest side goes to `side` by torch's bicubic filter, which may leave [0, 1] beside edges;
    with `antialias` it widens where it shrinks. What is missing is added in black on both sides,
    the larger half after the image.
    """
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    tall, wide = round(height * scale), round(width * scale)
    fitted = images / 255
    if (tall, wide) != (height, width):
        size = (tall, wide)
        fitted = functional.interpolate(fitted, size, mode="bicubic", antialias=antialias)
    top, left = (side - tall) // 2, (side - wide) // 2
    return functional.pad(fitted, (left, side - wide - left, top, side - tall - top))
