"""Class-conditional generation: draw an image of a class, as on ImageNet."""

from __future__ import annotations

from typing import Any, ClassVar

import chz
import torch

from nanogen.config import choice
from nanogen.errors import DataError
from nanogen.registry import register
from nanogen.tasks.base import Task
from nanogen.types import Request


@register("task", "class_conditional", summary="draw an image of a class")
@chz.chz
class ClassConditionalConfig:
    data: Any = choice("data")

    def build(self, seed: int) -> ClassConditional:
        return ClassConditional(self.data.build(), seed)


class ClassConditional(Task):
    kind: ClassVar[str] = "class_conditional"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source.classes:
            raise DataError(
                "the data set has no classes; put images into one folder for each class"
            )

    def request(self, start: int, stop: int) -> Request:
        indices = torch.arange(start, stop)
        return Request(indices, labels=indices % len(self.source.classes))

    def captions(self, request: Request) -> list[str]:
        assert request.labels is not None
        return [self.source.classes[int(label)] for label in request.labels]
