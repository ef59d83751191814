"""P-DINO: patch tokens that a frozen encoder sees in the predicted image, where little noise was
added, against those of the image (PixelGen, arXiv 2602.02493).

    terms.pdino=on terms.pdino.encoder=animals-vit objective.prediction=x

    loss_i = 1[t_i < 0.7] mean_n d(F(x_hat_i)_n, F(image_i)_n)     d = mean square, or 1 - cosine
"""

from __future__ import annotations

from typing import ClassVar, get_args

import chz
from torch import Tensor

from nanogen.objectives.alignment import DISTANCES, Distance
from nanogen.objectives.base import Facts
from nanogen.objectives.gate import GatedTerm, GateFields
from nanogen.objectives.refusals import check_choice
from nanogen.registry import register


@register(
    "term",
    "pdino",
    summary="an encoder's tokens of the predicted image, at little noise",
    needs="the encoder's files",
)
@chz.chz
class PdinoConfig(GateFields):
    """Defaults are the released code's: mean squares of DINOv2-B's tokens, whose final norm has no
    affine.
    """

    term: ClassVar[str] = "pdino"

    weight: float = 0.01
    encoder: str = chz.field(default="dinov2-vit-b", doc="see nanogen ls encoders")
    path: str = chz.field(default="", doc="folder or file in place of the hub")
    loss: Distance = "mse"

    @chz.validate
    def _loss(self) -> None:
        check_choice("terms.pdino.loss", self.loss, get_args(Distance))

    def build(self, facts: Facts) -> Pdino:
        return Pdino(self, facts)


class Pdino(GatedTerm):
    def __init__(self, config: PdinoConfig, facts: Facts) -> None:
        super().__init__(config, facts)
        self.between = DISTANCES[config.loss]
        self.teacher = facts.known_teachers().encoder(
            config.encoder, config.path, owner="terms.pdino", sees_all=False
        )

    def distance(self, found: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        wanted = self.teacher.rows(images, rows).patches
        return self.between(self.teacher(found).patches.float(), wanted.float())
