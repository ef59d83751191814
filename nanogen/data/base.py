"""What a data set is: a pure function from (split, index, draw) to a sample.

`draw` is the position of the sample in the training stream. All randomness of a sample (flip,
composition) follows from it, so the stream needs no state and resumes anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from nanogen.errors import DataError

SPLITS = ("train", "validation", "held-out")


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    image: Tensor
    """uint8 [3, H, W]"""
    label: int | None = None
    text: str | None = None


@dataclass(frozen=True)
class Description:
    """What is known of an image, without the image."""

    label: int | None = None
    text: str | None = None


class Source(Protocol):
    """A data set that has been opened. The config class of a data set has `build() -> Source`."""

    size: int
    """H = W of the images, in pixels"""
    classes: tuple[str, ...]
    """class names by label; empty where samples have no label"""
    captioned: bool
    """whether samples have a text"""
    fingerprint: str
    """changes whenever any sample changes"""
    variants: int
    """in how many ways a training sample is shown over all draws: 1 as it is, 2 with its mirror
    image; 0 without end, where every draw makes another
    """

    def count(self, split: str) -> int:
        """Number of samples of a split; 0 where the data set has no such split."""
        ...

    def read(self, split: str, index: int, draw: int) -> Sample:
        """Sample `index` of a split, 0 <= index < count(split); `draw` seeds its augmentation."""
        ...

    def prompts(self) -> tuple[str, ...]:
        """The captions that an evaluation draws, in their fixed order; empty where there are
        none.
        """
        ...


class FiniteSource(Source, Protocol):
    """A data set whose training samples are shown in a fixed number of ways.

    `read("train", index, draw)` is `views(index)[variant(index, draw)]` with `describe(index)`.
    """

    def variant(self, index: int, draw: int) -> int:
        """Which of its `variants` training sample `index` is at `draw`."""
        ...

    def views(self, index: int) -> tuple[Tensor, ...]:
        """Training sample `index` in all its variants, uint8 [3, H, W] each."""
        ...

    def describe(self, index: int) -> Description:
        """Label and caption of training sample `index`; no image is decoded."""
        ...


def as_stored(source: Source, split: str, index: int) -> Tensor:
    """The image of a sample without augmentation, uint8 [3, H, W]: what is measured must not depend
    on what a training shows. Data without an end store none; there it is one that they draw.
    """
    if split == "train" and source.variants:
        return cast(FiniteSource, source).views(index)[0]
    return source.read(split, index, index).image


def finite(source: Source, what: str) -> FiniteSource:
    """The same source; DataError, saying that `what` cannot be stored, where it has no end."""
    if not source.variants:
        raise DataError(
            f"{what} cannot be stored: this data set makes every training image anew, so none "
            "comes twice; train without machine.cache, or on images in files (task.data=folder)"
        )
    return cast(FiniteSource, source)
