"""What a data set is: a pure function from (split, index, draw) to a sample.

`draw` is the position of the sample in the training stream. All randomness of a sample (flip,
composition) follows from it, so the stream needs no state and resumes anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

SPLITS = ("train", "validation", "held-out")


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    image: Tensor
    """uint8 [3, H, W]"""
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
