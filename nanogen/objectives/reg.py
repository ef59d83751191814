"""REG: the class token of a frozen encoder is diffused along with the image (arXiv 2507.01467).

    terms.reg=on terms.reg.encoder=animals-vit

    cls_t = (1 - t) cls + t e',   loss = L(image) + weight L(cls)      at the same t as the image

The leaf `cls` is one more token of the state, [B, D] with the encoder's D. Objectives regress it,
samplers draw it along with the image, and it is dropped in the end; none of them knows what it is.
"""

from __future__ import annotations

import chz

from nanogen.objectives.base import Facts, Term
from nanogen.objectives.refusals import check_weight
from nanogen.registry import register
from nanogen.types import Batch, State

LEAF = "cls"
"""name of the leaf in states"""


@register(
    "term",
    "reg",
    summary="an encoder's class token is diffused along (REG)",
    needs="the encoder's files",
)
@chz.chz
class RegConfig:
    """The default encoder is the published one: DINOv2-B, whose final norm has no affine."""

    weight: float = 0.03
    encoder: str = chz.field(default="dinov2-vit-b", doc="see nanogen ls encoders")
    path: str = chz.field(default="", doc="folder or file in place of the hub")

    @chz.validate
    def _ranges(self) -> None:
        check_weight("reg", self.weight)

    def build(self, facts: Facts) -> Reg:
        return Reg(self, facts)


class Reg(Term):
    needs_images = True

    def __init__(self, config: RegConfig, facts: Facts) -> None:
        super().__init__()
        self.weight = config.weight
        self.teacher = facts.known_teachers().encoder(
            config.encoder, config.path, owner="terms.reg"
        )
        self.teacher.require_class_token("terms.reg")
        self.leaves = {LEAF: self.teacher.width}

    def clean_leaves(self, batch: Batch) -> State:
        """The class token of each image, [B, D], without a gradient."""
        cls = self.teacher(batch.images).cls
        assert cls is not None
        return {LEAF: cls.float()}
