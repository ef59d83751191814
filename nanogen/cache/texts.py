"""Token features of captions, stored: reading and checking them. `write_texts` writes them.

    encoder.kept.store = open_texts(folder, encoder, source)

A record is one token. `00000.captions` lists the captions of a shard by hash, each with its number
of real tokens, which follow each other in `00000.raw`; padding is not stored, so the mask follows
from the numbers. A caption that comes twice is stored once, in the encoder's own precision: the
bits are those that encoding it alone gives.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanogen.cache.complete import check_fingerprints, complete
from nanogen.cache.manifest import Manifest
from nanogen.cache.records import Records
from nanogen.conditioners.features import TextEncoder
from nanogen.data.base import FiniteSource, Source, finite
from nanogen.errors import DataError
from nanogen.tokenizers.raw import dtype_of

FOLDER = "text"
"""of a cache"""
CAPTIONS = ".captions"
"""what the files that list captions end with"""
CAPTION: Any = np.dtype([("high", "<u8"), ("low", "<u8"), ("tokens", "<u4")])
"""an entry: the first 128 bits of the caption's SHA-256, and its real tokens"""
COMPARED = 4
TOLERANCE = 0.02
"""most root mean square error of stored features, relative to their spread"""


class TextCache:
    """An opened cache of features: a FeatureStore."""

    def __init__(self, folder: Path, found: Manifest) -> None:
        """DataError where a file is missing or of another size."""
        self.plan = found.plan
        self.records = Records(folder, found)
        self._dtype = dtype_of(found.plan.precision)
        captions = np.concatenate(
            [_captions(folder, number) for number in range(found.plan.shards)]
        )
        tokens = captions["tokens"].astype(np.int64)
        if len(captions) != found.plan.items or tokens.sum() != len(self.records):
            raise DataError(f"{folder} lists other captions than it holds; write the cache again")
        order = np.argsort(captions["high"], kind="stable")
        self._captions = captions[order]
        self._starts = (np.cumsum(tokens) - tokens)[order]

    def __len__(self) -> int:
        return len(self._captions)

    def find(self, caption: str) -> Tensor | None:
        """[l, D] in the encoder's precision; None where the caption is not stored."""
        high, low = digest(caption)
        place = int(np.searchsorted(self._captions["high"], np.uint64(high)))
        # Two captions may share half of their hash.
        while place < len(self._captions) and int(self._captions["high"][place]) == high:
            if int(self._captions["low"][place]) == low:
                return self._rows(place)
            place += 1
        return None

    def _rows(self, place: int) -> Tensor:
        count = int(self._captions["tokens"][place])
        if not count:
            # numpy's empty arrays have no strides that torch could view otherwise.
            return torch.zeros(0, *self.plan.shape, dtype=self._dtype)
        return torch.from_numpy(self.records.span(int(self._starts[place]), count)).view(
            self._dtype
        )


def open_texts(folder: Path, encoder: TextEncoder, source: Source) -> TextCache:
    """The features of a cache once it is certain that they are those of `encoder` and `source`.

    DataError, and nothing is changed, where the cache is unfinished, damaged, or of another encoder
    or data set. A collective call.
    """
    captions = storable(encoder, source)
    found = complete(folder)
    check_fingerprints(folder, found.plan, encoder.fingerprint, captions)
    cache = TextCache(folder, found)
    cache.records.verify()
    _compare(cache, folder, encoder, captions)
    return cache


def storable(encoder: TextEncoder, source: Source) -> FiniteSource:
    """The source, if features of its captions can be stored; else a DataError says why not."""
    if encoder.kept is None:
        raise DataError(
            "conditioner.cache=0 encodes the captions of a batch together, which rounds otherwise "
            "than the stored features do; set conditioner.cache to the captions to keep in memory, "
            "such as conditioner.cache=1000"
        )
    if not source.captioned:
        raise DataError("this data set has no captions to store")
    return finite(source, "text features")


def digest(caption: str) -> tuple[int, int]:
    """Two 64-bit words of a caption's hash."""
    found = hashlib.sha256(caption.encode()).digest()
    return int.from_bytes(found[:8], "big"), int.from_bytes(found[8:16], "big")


def _captions(folder: Path, number: int) -> np.ndarray:
    return np.fromfile(folder / f"{number:05d}{CAPTIONS}", CAPTION)


def _compare(cache: TextCache, folder: Path, encoder: TextEncoder, source: FiniteSource) -> None:
    """Encode a few captions again: libraries change."""
    places = np.unique(np.linspace(0, source.count("train") - 1, COMPARED).astype(np.int64))
    for place in places.tolist():
        caption = source.describe(place).text or ""
        stored, [online] = cache.find(caption), encoder.rows([caption])
        if stored is None or stored.shape != online.shape or _far(stored.float(), online.float()):
            raise DataError(
                f"{folder} does not hold what the text encoder makes of {caption!r}: the captions "
                "or a library changed since; write it again with nanogen cache --text, to another "
                "folder"
            )


def _far(stored: Tensor, online: Tensor) -> bool:
    if not len(online):
        return False
    error = (stored - online).square().mean().sqrt()
    return not bool(error <= TOLERANCE * online.square().mean().sqrt())
