"""What a caller wants of a backbone besides its prediction: features by block, and further heads.

wanted = Wanted.of(("block8", "base"), depth=28, heads={"base": 8})
after = encode(..., keep=wanted.blocks)                 # {8: tokens}
Prediction(state, wanted.features(after), ...)          # {"block8": tokens}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nanogen.errors import ConfigError


@dataclass(frozen=True)
class Wanted:
    numbers: tuple[int, ...]
    """encoder blocks, from 1, whose tokens are asked for as features"""
    heads: Mapping[str, int]
    """further heads that are asked for, and the block that each reads"""

    @classmethod
    def of(cls, want: Iterable[str], depth: int, heads: Mapping[str, int]) -> Wanted:
        """Names of features (`block3`) and of heads; ConfigError for one that is not there."""
        numbers = {f"block{number}": number for number in range(1, depth + 1)}
        asked = tuple(dict.fromkeys(want))
        for name in asked:
            if name not in numbers and name not in heads:
                further = f", and the heads {', '.join(heads)}" if heads else ""
                raise ConfigError(
                    f"this backbone has no feature {name!r}; it has block1 to block{depth}{further}"
                )
        return cls(
            tuple(numbers[name] for name in asked if name in numbers),
            {name: heads[name] for name in asked if name in heads},
        )

    @property
    def blocks(self) -> frozenset[int]:
        """The blocks whose tokens must be kept."""
        return frozenset((*self.numbers, *self.heads.values()))

    def features(self, after: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Features by name, from the tokens after each block."""
        return {f"block{number}": after[number] for number in self.numbers}
