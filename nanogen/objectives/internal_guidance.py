"""Internal guidance: a second head reads an earlier block, and learns the same as the last one.

    terms.internal=on terms.internal.block=8

    loss = L(network) + weight L(head after block 8)

What the head predicts is weaker, so samplers can guide away from it without a second network: its
use is `sampling.internal`'s matter. The loss is that of the objective, on the same target: under
MeanFlow the head learns the guided mean velocity too, where diffusion-bench would teach it the
plain velocity (none of its configs does).
"""

from __future__ import annotations

import chz
from torch import Tensor

from nanogen.objectives.base import Facts, Step, Term
from nanogen.objectives.refusals import check_weight
from nanogen.registry import register

HEAD = "base"
"""name of the head in predictions"""


@register("term", "internal", summary="a head on an earlier block, to guide away from")
@chz.chz
class InternalConfig:
    weight: float = 1.0
    block: int = chz.field(default=8, doc="encoder block that the head reads, counted from 1")

    @chz.validate
    def _ranges(self) -> None:
        check_weight("internal", self.weight)

    def build(self, facts: Facts) -> Internal:
        """ConfigError where the backbone has no such block."""
        return Internal(self, facts)


class Internal(Term):
    want = (HEAD,)

    def __init__(self, config: InternalConfig, facts: Facts) -> None:
        super().__init__()
        self.weight = config.weight
        self.heads = {HEAD: facts.block(config.block, "terms.internal.block")}

    def loss(self, step: Step) -> Tensor:
        """[B]: the objective's regression loss of the image that the head predicts."""
        return step.errors({"image": step.prediction.heads[HEAD]})["image"]
