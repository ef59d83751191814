"""What all data sets of image files share: splits, decoding, mirroring, prompts.

A subclass lists its samples by name and says how to get the bytes, label and caption of each. A
sample's split follows from a hash of its name alone, so it never changes when others are added or
removed.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import chz
import numpy as np
from torch import Tensor

from nanogen.data.base import SPLITS, Description, Sample
from nanogen.data.transforms import centre_crop, decode, is_mirrored
from nanogen.errors import ConfigError, DataError

MOST_PROMPTS = 1_000


@chz.chz
class CatalogueOptions:
    """Fields of every data set of image files."""

    path: str = chz.field(default="", doc="where the images are")
    size: int = chz.field(default=256, doc="height and width of the images in pixels")
    flip: bool = chz.field(default=True, doc="mirror training images at random")
    captions: bool = chz.field(default=True, doc="read captions where the data has them")
    validation: float = chz.field(default=0.01, doc="share of the samples kept for validation")
    held_out: float = chz.field(default=0.05, doc="share of the samples kept for evaluation")

    @chz.validate
    def _check(self) -> None:
        if not self.path:
            raise ConfigError("the data has no place; set its path to where the images are")
        if self.size < 1:
            raise ConfigError(f"size={self.size} of the data must be at least 1 pixel")
        if min(self.validation, self.held_out) < 0 or self.validation + self.held_out >= 1:
            raise ConfigError(
                f"validation={self.validation} and held_out={self.held_out} of the data "
                "must be shares of at least 0, with a sum below 1, so that some remain to train on"
            )


class Catalogue(ABC):
    """A Source over samples that are listed by name.

    A subclass sets `classes`, `captioned` and `fingerprint`, and implements the four methods below.
    """

    classes: tuple[str, ...]
    captioned: bool
    fingerprint: str

    def __init__(self, options: CatalogueOptions, names: Sequence[str]) -> None:
        """`names` in the order of the sample numbers; DataError if none is left to train on."""
        self.size = options.size
        self.variants = 2 if options.flip else 1
        self._chances = np.array([_chance(name) for name in names], np.float64)
        edges = [options.held_out, options.held_out + options.validation]
        places = dict(zip(("held-out", "validation", "train"), range(3), strict=True))
        found = np.digitize(self._chances, edges)
        self._numbers = {split: np.flatnonzero(found == places[split]) for split in SPLITS}
        if not self.count("train"):
            raise DataError(
                f"none of the {len(names)} images is left to train on; add images, or lower "
                "held_out and validation of the data"
            )

    @abstractmethod
    def name(self, number: int) -> str:
        """Where sample `number` lies, for messages."""

    @abstractmethod
    def data(self, number: int) -> bytes:
        """The image file of a sample."""

    @abstractmethod
    def label(self, number: int) -> int | None:
        """The class of a sample; None where there are no classes."""

    @abstractmethod
    def text(self, number: int) -> str:
        """The caption of a sample; asked for only where `captioned`."""

    def count(self, split: str) -> int:
        """Number of samples of a split; 0 where there is no such split."""
        return len(self._numbers.get(split, ()))

    def read(self, split: str, index: int, draw: int) -> Sample:
        """Sample `index` of a split; training images are mirrored for half of all draws."""
        image = self._image(split, index)
        if split == "train" and self.variant(index, draw):
            image = image.flip(-1)
        known = self._known(split, index)
        return Sample(image, known.label, known.text)

    def variant(self, index: int, draw: int) -> int:
        """1 where the draw shows the mirror image."""
        return int(self.variants == 2 and is_mirrored(draw))

    def views(self, index: int) -> tuple[Tensor, ...]:
        """As it is, and with `flip` its mirror image."""
        image = self._image("train", index)
        return (image, image.flip(-1))[: self.variants]

    def describe(self, index: int) -> Description:
        return self._known("train", index)

    def prompts(self) -> tuple[str, ...]:
        """The captions of the first 1,000 held-out samples by hash, sorted, without repeats."""
        if not self.captioned:
            return ()
        held_out = self._numbers["held-out"]
        first = held_out[np.argsort(self._chances[held_out], kind="stable")][:MOST_PROMPTS]
        return tuple(sorted({self.text(int(number)) for number in first} - {""}))

    def _image(self, split: str, index: int) -> Tensor:
        number = int(self._numbers[split][index])
        return centre_crop(decode(self.data(number), self.name(number)), self.size)

    def _known(self, split: str, index: int) -> Description:
        number = int(self._numbers[split][index])
        return Description(self.label(number), self.text(number) if self.captioned else None)


def fingerprint(options: CatalogueOptions, files: Iterable[tuple[str, int | str]]) -> str:
    """A hash of the options and of (name, size or hash) of every file, wherever the data lies."""
    fields = {name: value for name, value in chz.asdict(options).items() if name != "path"}
    digest = hashlib.sha256(repr(sorted(fields.items())).encode())
    for name, content in files:
        digest.update(repr((name, content)).encode())
    return digest.hexdigest()[:16]


def clean_caption(value: object, where: str) -> str:
    """A caption without surrounding blanks; DataError, naming `where`, if it is no valid text."""
    if not isinstance(value, str):
        raise DataError(f"{where}: the caption is {value!r}, not a text; correct it")
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{where}: the caption {value!r} is not valid Unicode; correct it"
        ) from problem
    return value.strip()


def decode_text(data: bytes, where: str) -> str:
    """Text from UTF-8 with or without a byte order mark; anything else is a DataError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{where} is not UTF-8 text ({problem.reason}); save it as UTF-8"
        ) from problem


def _chance(name: str) -> float:
    """A fixed number in [0, 1) for a name, which decides its split."""
    # File names that are not UTF-8 reach Python with surrogates.
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
