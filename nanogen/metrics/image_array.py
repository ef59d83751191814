"""Real images in an npz as a data set of one split, so that their features can be cached like any.

source = ImageArray(Path("imagenet-256-val.npz"), fingerprint, "held-out")
source.read("held-out", 7, 0).image         # uint8 [3, 256, 256]
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from nanogen.data.base import Sample
from nanogen.errors import DataError
from nanogen.images.arrays import Arrays


class ImageArray:
    """See `Source`. Opened on first use; images are read from their place, one by one."""

    classes: tuple[str, ...] = ()
    captioned = False
    variants = 1

    def __init__(self, path: Path, fingerprint: str, split: str) -> None:
        """`fingerprint` changes whenever an image does; `split` is the name of all images."""
        self.path = path
        self.fingerprint = fingerprint
        self.split = split

    @cached_property
    def _images(self) -> Arrays:
        """DataError for a file of another layout."""
        return Arrays(self.path, batch=1)

    @property
    def size(self) -> int:
        return self._images.header.shape[1]

    def count(self, split: str) -> int:
        return self._images.count() if split == self.split else 0

    def read(self, split: str, index: int, draw: int) -> Sample:
        """Without augmentation: `draw` has no effect."""
        if not 0 <= index < self.count(split):
            raise DataError(f"{self.path} has no image {index} of a {split} split")
        ((_, images),) = self._images.read(index, index + 1)
        return Sample(images[0])

    def prompts(self) -> tuple[str, ...]:
        return ()
