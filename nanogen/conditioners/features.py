"""What frozen text encoders share: captions in, one TextCondition out, features kept by caption."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogen.errors import ConfigError
from nanogen.types import Batch, ConditionSpec, Request, TextCondition


def captions_of(given: Batch | Request, conditioner: str) -> tuple[str, ...]:
    """The captions [B] of a batch or request; ConfigError where the task gives labels."""
    if given.texts is None:
        raise ConfigError(
            f"conditioner={conditioner} needs captions, but the task gives labels; "
            "use conditioner=labels or task=text_to_image"
        )
    return given.texts


def stacked(rows: Sequence[Tensor]) -> TextCondition:
    """Features [l, D] of each caption, l >= 0, as one condition; zero and masked beyond."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    features = pad_sequence(list(rows), batch_first=True)
    places = torch.arange(features.shape[1], device=features.device)
    return TextCondition(features, places < lengths[:, None])


def no_text(count: int, width: int, device: torch.device) -> TextCondition:
    """The null condition of `count` samples: no token at all, features [count, 0, D]."""
    return TextCondition(
        torch.zeros(count, 0, width, device=device),
        torch.zeros(count, 0, dtype=torch.bool, device=device),
    )


class FeatureStore(Protocol):
    """Features that were encoded before."""

    def find(self, caption: str) -> Tensor | None:
        """[l, D] as the encoder gave them; None where the caption is not stored."""
        ...


class FeatureCache:
    """The features of the last `limit` captions used, so that a caption is encoded once.

    With a `store` those that it holds are read from there, and not encoded at all.
    """

    def __init__(self, limit: int) -> None:
        self.store: FeatureStore | None = None
        self._limit = limit
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def rows(
        self, captions: Sequence[str], encode: Callable[[list[str]], list[Tensor]]
    ) -> list[Tensor]:
        """The features [l, D] of each caption; `encode` gets those that are not here, once each."""
        wanted = dict.fromkeys(captions)
        fresh: dict[str, Tensor] = {}
        if self.store is not None:
            read = {c: self.store.find(c) for c in wanted if c not in self._rows}
            fresh = {caption: row for caption, row in read.items() if row is not None}
        missing = [c for c in wanted if c not in self._rows and c not in fresh]
        if missing:
            fresh |= zip(missing, encode(missing), strict=True)
        found = {c: fresh[c] if c in fresh else self._rows[c] for c in wanted}
        for caption, row in found.items():
            self._rows[caption] = row
            self._rows.move_to_end(caption)
        while len(self._rows) > self._limit:
            self._rows.popitem(last=False)
        return [found[caption] for caption in captions]


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen conditioner whose features can be stored."""

    spec: ConditionSpec
    fingerprint: str
    kept: FeatureCache | None
    """None where captions are encoded together, and so round otherwise than each alone"""

    def rows(self, captions: list[str]) -> list[Tensor]:
        """[l, D] of each caption, encoded alone; in main memory, in the encoder's precision."""
        ...
