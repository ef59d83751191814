"""Groups of drifting: which real and generated images attract and repel each other.

pull(asked, kinds, scales, draws)      # the weights of one group, for `drift_field.drift`
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogen.objectives.base import Inputs
from nanogen.objectives.drift_field import Pull
from nanogen.types import LabelCondition

NO_CONDITION = -1
"""stands for the condition of a sample that was dropped"""


def pull(asked: Tensor, kinds: Tensor, scales: Tensor, draws: int) -> Pull:
    """Who attracts and repels whom in one group: queries are its Q = draws G generated images, draw
    by draw, targets these and then its G real images.

    `asked` [G] is what images are generated for, NO_CONDITION among it, `kinds` [G] the condition
    of each real image, `scales` [G] alpha. Real images are attractive where their condition was
    asked for, or none was. All of them repel with the weight that makes their share gamma.
    """
    asked, scales = asked.repeat(draws), scales.repeat(draws)
    peers = asked[:, None] == asked
    siblings = (peers & ~torch.eye(len(asked), dtype=torch.bool, device=asked.device)).float()
    same = ((asked[:, None] == kinds) | (asked == NO_CONDITION)[:, None]).float()
    # gamma / (1 - gamma) = alpha - 1 is the weight of the real negatives over that of the others.
    each = siblings.sum(1) * (scales - 1) / len(kinds)
    return Pull(
        torch.cat([torch.zeros_like(siblings), same], dim=1),
        torch.cat([siblings, each[:, None].expand_as(same)], dim=1),
        peers,
    )


def kinds_of(inputs: Inputs) -> Tensor:
    """int64 [B], equal where two samples have the same condition: a label, or a caption to the
    letter.
    """
    batch = inputs.batch
    if isinstance(inputs.condition, LabelCondition):
        assert batch.labels is not None
        return batch.labels
    assert batch.texts is not None
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(text, len(numbers)) for text in batch.texts]
    return torch.tensor(found, device=batch.keys.device)
