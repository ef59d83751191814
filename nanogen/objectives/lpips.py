"""LPIPS of the predicted image, where little noise was added (PixelGen, arXiv 2602.02493).

terms.lpips=on objective.prediction=x

loss_i = 1[t_i < 0.7] LPIPS(x_hat_i, image_i)
"""

from __future__ import annotations

from typing import ClassVar

import chz
from torch import Tensor

from nanogen.encoders.lpips import SMALLEST, open_lpips
from nanogen.errors import ConfigError
from nanogen.objectives.base import Facts
from nanogen.objectives.gate import GatedTerm, GateFields
from nanogen.registry import register


@register(
    "term",
    "lpips",
    summary="LPIPS of the predicted image, at little noise",
    needs="pip install 'nanogen[stage1]', and VGG16's weights",
)
@chz.chz
class LpipsConfig(GateFields):
    term: ClassVar[str] = "lpips"

    weight: float = 0.1
    path: str = chz.field(default="", doc="VGG16's weights, a file or folder; empty: the hub")

    def build(self, facts: Facts) -> LpipsTerm:
        """ConfigError for images that are too small for the network."""
        if facts.image_size < SMALLEST:
            raise ConfigError(
                f"terms.lpips needs images of at least {SMALLEST} px a side, not "
                f"{facts.image_size}; set terms.lpips=off"
            )
        return LpipsTerm(self, facts)


class LpipsTerm(GatedTerm):
    def __init__(self, config: LpipsConfig, facts: Facts) -> None:
        super().__init__(config, facts)
        self.teacher = facts.known_teachers().module(
            lambda: open_lpips(config.path, field="terms.lpips.path")
        )

    def distance(self, found: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        return self.teacher.network(found, images[rows])
