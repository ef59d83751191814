"""Prompts that were encoded once, before anything is drawn for them.

An evaluation draws many images for few prompts. Each is encoded alone, so that a sample does not
depend on the batch it is drawn in, and the encoder's memory is free for the rest of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogen.conditioners.features import TextEncoder, captions_of, stacked
from nanogen.types import Batch, Condition, Conditioner, Request

AT_ONCE = 64


class EncodedPrompts:
    """Stands in for a frozen text encoder; knows the prompts that it was made with, no others."""

    def __init__(self, encoder: TextEncoder, prompts: Sequence[str]) -> None:
        self.spec, self.fingerprint = encoder.spec, encoder.fingerprint
        self._rows: dict[str, Tensor] = {}
        wanted = list(dict.fromkeys(prompts))
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            self._rows |= zip(some, _rows(encoder, some), strict=True)
        self._encoder = encoder

    @classmethod
    def of(cls, conditioner: Conditioner, prompts: Sequence[str]) -> Conditioner:
        """The conditioner itself where it encodes no text, or learns to."""
        frozen = isinstance(conditioner, TextEncoder) and not getattr(
            conditioner, "trainable", False
        )
        return cls(conditioner, prompts) if frozen and prompts else conditioner

    def encode(self, given: Batch | Request) -> Condition:
        return stacked([self._rows[text].float() for text in captions_of(given, "encoded")])

    def null(self, count: int) -> Condition:
        return self._encoder.null(count)  # ty: ignore[missing-attribute]

    def free(self) -> None:
        """Move the encoder to main memory."""
        if isinstance(self._encoder, torch.nn.Module):
            self._encoder.to("cpu")


def _rows(encoder: TextEncoder, prompts: list[str]) -> list[Tensor]:
    kept = encoder.kept
    return encoder.rows(prompts) if kept is None else kept.rows(prompts, encoder.rows)
