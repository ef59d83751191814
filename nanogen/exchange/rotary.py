"""The tables of rotary positions that diffusion-bench stores with the weights.

    cosine, sine = tables(side=16, head_width=72, before=1, after=12)      [1 + 256 + 12, 72] each

Only the tokens of the image turn: half of a head with the row, half with the column, adjacent
channels together. Those before (REG's class token) and after (time, class, text) have angle 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def tables(side: int, head_width: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [before + side side + after, head_width].

    In float32 from the first step on, as the tables in checkpoints are: their last bits follow.
    """
    axis = head_width // 2
    frequency = 1.0 / BASE ** (torch.arange(0, axis, 2).float() / axis)
    turn = torch.arange(side).float()[:, None] * frequency
    rows, columns = turn.repeat_interleave(side, 0), turn.repeat(side, 1)
    image = torch.cat([rows, columns], dim=1)
    angle = torch.cat([image.new_zeros(before, axis), image, image.new_zeros(after, axis)])
    angle = angle.repeat_interleave(2, dim=1)
    return angle.cos(), angle.sin()


def turned_rows(cosine: Tensor, sine: Tensor) -> int:
    """Rows of two tables up to the last one that turns: all tokens of the image but the first of a
    grid turn, and none that follows them.
    """
    turns = ((cosine != 1) | (sine != 0)).any(dim=1).nonzero()
    return int(turns.max()) + 1 if len(turns) else 0
