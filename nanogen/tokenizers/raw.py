"""Raw latents as training sees them: the same bits of an image, computed or read from a cache.

    raw = raw_latents(tokenizer, images)           # bits of an image, whatever comes beside it
    kept = raw.to(PRECISIONS["fp16"])              # what a cache stores
    latents = tokenizer.latents(kept.float(), keys)

Libraries choose their kernels by the shape of a batch, and so round the same image otherwise beside
seven others than beside one. So images go through a network in groups of one size. Kernels also
follow the order of numbers in memory, which networks may leave as they like: it is always C order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nanogen.types import Tokenizer

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: dict[Precision, torch.dtype] = dict(
    zip(get_args(Precision), (torch.float32, torch.float16, torch.bfloat16), strict=True)
)
GROUP = 8
"""images that go through a network at once"""


def dtype_of(name: str) -> torch.dtype:
    """The type behind a name; KeyError for an unknown one."""
    return {str(known): dtype for known, dtype in PRECISIONS.items()}[name]


def name_of(dtype: torch.dtype) -> Precision:
    """The name of a type; StopIteration for another than these three."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def has_network(tokenizer: Tokenizer) -> bool:
    """Whether encoding is worth storing: a tokenizer without weights only moves numbers."""
    return isinstance(tokenizer, nn.Module) and any(True for _ in tokenizer.parameters())


@torch.no_grad()
def raw_latents(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> float32 [B, R, h, w], not normalised; B >= 1.

    The bits of an image depend on its pixels, the device and the libraries, not on B or on the
    images beside it.
    """
    if not has_network(tokenizer):
        return tokenizer.raw(images).float()
    return joined([tokenizer.raw(group) for group in groups_of(images)], len(images))


def groups_of(images: Tensor) -> tuple[Tensor, ...]:
    """[B, ...] -> [GROUP, ...] each, B >= 1; the last is filled up with its own last image."""
    missing = -len(images) % GROUP
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]).split(GROUP)


def joined(parts: Sequence[Tensor], count: int) -> Tensor:
    """What a network made of each group, as float32 [count, ...]."""
    whole = torch.cat([part.float() for part in parts])[:count]
    return whole.clone(memory_format=torch.contiguous_format)
