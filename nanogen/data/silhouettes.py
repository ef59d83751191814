"""The embedded images: 9,716 silhouettes of ten animals, 28 x 28, in one PNG inside the package.

    opacity, labels = load("train")     # uint8 [7216, 28, 28], int64 [7216]

A pixel is the opacity of the ink: 0 is ground, 255 is animal, zebras have stripes in between.
`assets/animals/README.md` says where they come from; `scripts/make_animals.py` made the files.
"""

from __future__ import annotations

import hashlib
import io
import json
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from PIL import Image

from nanogen.data.base import SPLITS
from nanogen.errors import DataError, suggest

ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
SIDE = 28
"""pixels of a silhouette"""
PER_ROW = 100
"""silhouettes in a row of the sheet"""


class Silhouettes(NamedTuple):
    """The silhouettes of a split."""

    opacity: np.ndarray
    """uint8 [n, 28, 28]"""
    labels: np.ndarray
    """int64 [n], positions in ANIMALS"""


def load(split: str) -> Silhouettes:
    """The silhouettes of a split, by class; read from the package once, and not writeable."""
    if split not in SPLITS:
        raise DataError(f"animals has no split {split!r}; {suggest(split, SPLITS)}")
    return _everything()[split]


def fingerprint() -> str:
    """sha256 of the sheet: the same for as long as no image, label or split changes."""
    return _description()["sha256"]


@lru_cache
def _everything() -> dict[str, Silhouettes]:
    data = _read("silhouettes.png")
    found = hashlib.sha256(data).hexdigest()
    if found != fingerprint():
        raise DataError(
            f"the embedded file animals/silhouettes.png is broken (sha256 {found[:12]}, expected "
            f"{fingerprint()[:12]}); install nanogen again"
        )
    images = _cut(np.asarray(Image.open(io.BytesIO(data))))
    # The sheet is in order of split and class, so that the counts alone tell both.
    counts = [_description()["counts"][split] for split in SPLITS]
    stops = np.cumsum([sum(of_split) for of_split in counts])
    splits = {}
    for split, of_split, opacity in zip(SPLITS, counts, np.split(images, stops), strict=False):
        labels = np.repeat(np.arange(len(ANIMALS), dtype=np.int64), of_split)
        labels.flags.writeable = False
        splits[split] = Silhouettes(opacity, labels)
    return splits


def _cut(sheet: np.ndarray) -> np.ndarray:
    """uint8 [28 R, 28 PER_ROW] -> [R PER_ROW, 28, 28]; the last row may end in blank tiles."""
    tiles = sheet.reshape(-1, SIDE, PER_ROW, SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE)
    tiles.flags.writeable = False
    return tiles


@lru_cache
def _description() -> dict:
    return json.loads(_read("animals.json"))


def _read(name: str) -> bytes:
    try:
        return files("nanogen").joinpath("assets", "animals", name).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"the embedded file animals/{name} is missing; install nanogen again"
        ) from None
