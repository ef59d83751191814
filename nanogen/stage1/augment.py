"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv 2006.10738).

    fake = diff_augment(fake, seed, "augment/fake", keys)        # [B, 3, H, W] in [-1, 1]

Translation with zero fill, then brightness, saturation and contrast, then a hole. Every draw of a
sample is a function of (seed, purpose, its key) alone. Values may leave [-1, 1].
"""

from __future__ import annotations

import chz
import torch
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError

DRAWS = 10
"""uniform numbers of a sample: three coins, then what `augmented` lists"""


@chz.chz
class Augmentation:
    """What is changed, and how often. Shares are of the side of an image."""

    probability: float = chz.field(default=1.0, doc="of each kind of change, for each sample")
    translation: float = chz.field(default=0.125, doc="furthest shift either way")
    colour: bool = chz.field(default=True, doc="brightness, saturation and contrast")
    cutout: float = chz.field(default=0.0, doc="side of the hole")

    @chz.validate
    def _ranges(self) -> None:
        for name in ("probability", "translation", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augmentation.{name}={getattr(self, name)}: must lie in [0, 1]")


PUBLISHED = Augmentation()
"""as RAE trains its decoders"""


def diff_augment(
    images: Tensor,
    seed: int,
    purpose: str,
    keys: Tensor,
    augmentation: Augmentation = PUBLISHED,
) -> Tensor:
    """[B, 3, H, W] in [-1, 1], augmented in float32; `keys` int64 [B] name the samples."""
    if augmentation.probability == 0:
        return images
    draws = rng.uniform(seed, purpose, keys, DRAWS).to(images.device)
    return augmented(images, draws, augmentation)


def augmented(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """[B, 3, H, W] changed by `draws`, uniform in (0, 1), [B, 10]:

    coins of translation, colour and hole; row and column of the shift; brightness, saturation and
    contrast; row and column of the hole.
    """
    x = images.float()
    coins = (draws[:, :3] <= augmentation.probability)[..., None, None, None]
    u = draws[:, 3:]
    if augmentation.translation:
        x = torch.where(coins[:, 0], translated(x, u[:, 0:2], augmentation.translation), x)
    if augmentation.colour:
        x = torch.where(coins[:, 1], recoloured(x, u[:, 2:5]), x)
    if augmentation.cutout:
        x = torch.where(coins[:, 2], x * kept(x, u[:, 5:7], augmentation.cutout), x)
    return x


def pixels(share: float, side: int) -> int:
    """Of a share of a side; a half counts as one, as published (Python rounds 2.5 to 2)."""
    return int(share * side + 0.5)


def translated(x: Tensor, u: Tensor, share: float) -> Tensor:
    """Shifted by whole pixels, uniform in -m ... +m with m = `pixels(share, side)`, with zero fill;
    u [B, 2] decides rows and columns.
    """
    for axis in (0, 1):
        side = x.shape[2 + axis]
        most = pixels(share, side)
        offset = (u[:, axis] * (2 * most + 1)).floor().long() - most
        source = torch.arange(side, device=x.device) + offset[:, None]  # [B, side]
        inside = (source >= 0) & (source < side)
        shape = (-1, 1, side, 1) if axis == 0 else (-1, 1, 1, side)
        index = source.clamp(0, side - 1).view(shape).expand_as(x)
        x = x.gather(2 + axis, index) * inside.view(shape)
    return x


def recoloured(x: Tensor, u: Tensor) -> Tensor:
    """Brightness +U(-1/2, 1/2), saturation times U(0, 2) about the mean of the channels, contrast
    times U(1/2, 3/2) about the mean of the image; u [B, 3].
    """
    brightness, saturation, contrast = u[..., None, None, None].unbind(1)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    level = x.mean((1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + 0.5)


def kept(x: Tensor, u: Tensor, share: float) -> Tensor:
    """[B, 1, H, W]: 0 in a hole of `share` of each side, whose middle u [B, 2] puts anywhere, so
    that it may stick out; 1 elsewhere.
    """
    covered = []
    for axis in (0, 1):
        side = x.shape[2 + axis]
        size = pixels(share, side)
        start = (u[:, axis] * (side + 1 - size % 2)).floor() - size // 2
        place = torch.arange(side, device=x.device) - start[:, None]
        covered.append((place >= 0) & (place < size))
    return 1 - (covered[0][:, None, :, None] & covered[1][:, None, None, :]).to(x.dtype)
