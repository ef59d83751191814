"""Pictures of many samples: a labelled grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER = (40, 40, 46), (255, 255, 255)


def grid(images: Tensor, captions: Sequence[str], columns: int = 10, cell: int = 96) -> Image.Image:
    """uint8 [n, 3, H, W] as one picture, each with its caption; small images are enlarged without
    smoothing.
    """
    size = max(cell, images.shape[-1])
    font = ImageFont.load_default(size=11)
    text, gap = 30, 6
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * (size + gap) + gap, rows * (size + text + gap) + gap), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        x, y = gap + column * (size + gap), gap + row * (size + text + gap)
        page.paste(picture(image).resize((size, size), Image.Resampling.NEAREST), (x, y))
        draw.rectangle((x - 1, y - 1, x + size, y + size), outline=(225, 225, 230))
        for line, words in enumerate(_wrapped(caption, font, size)[:2]):
            draw.text((x, y + size + 2 + 13 * line), words, fill=INK, font=font)
    return page


def picture(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] as a PIL image."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
