"""Counter-based randomness: every draw is a pure function of (seed, purpose, counters).

Nothing here has a state, so no result depends on rank, world size, batch size, or on what was
drawn before, and a resumed run needs no stored generator. The generator is Philox4x32-10 (Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written in integer tensor
operations so that it runs on any device, and the same 32-bit words come out on all of them.

    noise = normal(seed, "noise", keys, (4, 32, 32))    # [B, 4, 32, 32]; row i is of keys[i] alone
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

SEEDS = 2**63
"""seeds below it fit into the 64-bit integers that carry them"""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit words (broadcastable) -> four of random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps in int64 as two's complement; masking restores both
        # halves.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def stream_key(seed: int, purpose: str) -> tuple[int, int]:
    """Two 32-bit words that name an independent stream for each (seed, purpose)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def uniform(seed: int, purpose: str, keys: Tensor, count: int) -> Tensor:
    """float32 [B, count] in (0, 1): row i is a function of (seed, purpose, keys[i]); keys int64
    [B].
    """
    # 23 bits and a half are exact in float32; with 24 the largest would round to 1.
    return (_words(seed, purpose, keys, count) >> 1).float().add_(0.5).mul_(2.0**-23)


def normal(seed: int, purpose: str, keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 [B, *shape] of independent N(0, 1) (Box-Muller); row i depends on keys[i] only."""
    count = math.prod(shape)
    pairs = (count + 1) // 2
    u = uniform(seed, purpose, keys, 2 * pairs)
    radius = u[:, :pairs].log().mul_(-2).sqrt_()
    angle = u[:, pairs:].mul(2 * math.pi)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return both[:, :count].reshape(len(keys), *shape)


def _words(seed: int, purpose: str, keys: Tensor, count: int) -> Tensor:
    """int64 [B, count] of 24-bit words: what a float32 mantissa holds exactly."""
    blocks = -(-count // 4)
    block = torch.arange(blocks, device=keys.device)[None, :]
    low, high = (keys & _MASK)[:, None], ((keys >> 32) & _MASK)[:, None]
    words = philox((block, low, high, torch.zeros_like(low)), stream_key(seed, purpose))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :count] >> 8
