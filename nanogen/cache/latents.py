"""Raw latents of a training set, stored: reading and checking them. `write_latents` writes them.

    cache = open_latents(folder, tokenizer, source, "fp16")
    raw = cache.raw(indices, variants)                     # [B, R, h, w], as it is stored

Raw means un-normalised: statistics may be changed without a new cache. Every variant of an image is
encoded by itself: the encoding of a mirror image is not the mirror image of the encoding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogen.cache.complete import FIX, check_fingerprints, complete
from nanogen.cache.manifest import Content, Manifest, Plan
from nanogen.cache.records import Records
from nanogen.data.base import FiniteSource, Source, finite
from nanogen.errors import DataError
from nanogen.tokenizers.raw import dtype_of, has_network, raw_latents
from nanogen.types import LatentSpec, Tokenizer, to_float

FOLDER = "latents"
"""of a cache"""
COMPARED = 4
"""images that are encoded again when a cache is opened"""
TOLERANCE = 0.02
"""most root mean square error of these, relative to their spread: above what devices and libraries
round otherwise (0.001 in TF32), below what any other preprocessing does
"""


class LatentCache:
    """An opened cache of latents. Can be sent to other processes."""

    def __init__(self, folder: Path, found: Manifest) -> None:
        """DataError where a file is missing or of another size."""
        self.plan = found.plan
        self.records = Records(folder, found)
        self._dtype = dtype_of(found.plan.precision)

    def raw(self, indices: np.ndarray, variants: np.ndarray) -> Tensor:
        """[B, R, h, w] of training samples `indices` in their `variants`, int64 [B] each."""
        rows = self.records.rows(indices * self.plan.variants + variants)
        return torch.from_numpy(rows).view(self._dtype).view(len(rows), *self.plan.shape)


def open_latents(
    folder: Path, tokenizer: Tokenizer, source: Source, precision: str, device: torch.device
) -> LatentCache:
    """The latents of a cache once it is certain that they are those of `tokenizer` and `source`.

    DataError, and nothing is changed, where the cache is unfinished, damaged, or of another
    tokenizer, data set or precision. A collective call.
    """
    images = storable(tokenizer, source)
    found = complete(folder)
    check_fingerprints(folder, found.plan, tokenizer.raw_fingerprint, images)
    _check_shape(folder, found.plan, tokenizer.spec, images)
    if found.plan.precision != precision:
        raise DataError(
            f"{folder} holds {found.plan.precision}, but train.raw_precision={precision}; set "
            f"train.raw_precision={found.plan.precision} (which makes it another run), or write "
            f"another cache with --precision {precision}"
        )
    cache = LatentCache(folder, found)
    cache.records.verify()
    _compare(cache, folder, tokenizer, images, device)
    return cache


def storable(tokenizer: Tokenizer, source: Source) -> FiniteSource:
    """The source, if its latents are worth storing; else a DataError says why not."""
    if not has_network(tokenizer):
        raise DataError(
            "this tokenizer has no network, so encoding costs nothing, and its latents are larger "
            "than the images; train without a cache of latents"
        )
    return finite(source, "latents")


def content_of(raw_channels: int, spec: LatentSpec) -> Content:
    """Whether raw latents are latents, or the moments of a posterior."""
    return "mode" if raw_channels == spec.channels else "moments"


def _check_shape(folder: Path, plan: Plan, spec: LatentSpec, source: FiniteSource) -> None:
    if (plan.items, plan.variants) != (source.count("train"), source.variants):
        raise DataError(
            f"{folder} holds {plan.items} images in {plan.variants} variants, but the data have "
            f"{source.count('train')} in {source.variants}; {FIX}"
        )
    channels = spec.channels * (1 if plan.content == "mode" else 2)
    if plan.content == "text" or plan.shape != (channels, spec.height, spec.width):
        raise DataError(f"{folder} holds {plan.content} of shape {plan.shape}; {FIX}")


def _compare(
    cache: LatentCache,
    folder: Path,
    tokenizer: Tokenizer,
    source: FiniteSource,
    device: torch.device,
) -> None:
    """Encode a few images again. A fingerprint of files by name and size can be wrong."""
    count = cache.plan.items
    indices = np.unique(np.linspace(0, count - 1, COMPARED).astype(np.int64))
    variants = np.arange(len(indices)) % source.variants
    views = [source.views(int(i))[v] for i, v in zip(indices, variants.tolist(), strict=True)]
    stored = cache.raw(indices, variants).float()
    online = raw_latents(tokenizer, to_float(torch.stack(views)).to(device)).cpu()
    error, spread = (stored - online).square().mean().sqrt(), online.std()
    if not error <= TOLERANCE * spread:
        raise DataError(
            f"{folder} does not hold what the tokenizer makes of these images (error {error:.2g} "
            f"at a spread of {spread:.2g}): the images or a library changed since; {FIX}"
        )
