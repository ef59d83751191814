"""Text-to-image generation: draw what a caption says."""

from __future__ import annotations

from typing import Any, ClassVar

import chz
import torch

from nanogen.config import choice
from nanogen.errors import DataError
from nanogen.registry import register
from nanogen.tasks.base import Task
from nanogen.types import Request


@register("task", "text_to_image", summary="draw what a caption says")
@chz.chz
class TextToImageConfig:
    data: Any = choice("data")

    def build(self, seed: int) -> TextToImage:
        return TextToImage(self.data.build(), seed)


class TextToImage(Task):
    kind: ClassVar[str] = "text_to_image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source.captioned:
            raise DataError(
                "the data set has no captions; put a .txt file beside each image, "
                "or a captions.jsonl in the folder"
            )

    def request(self, start: int, stop: int) -> Request:
        prompts = self.source.prompts()
        if not prompts:
            raise DataError(
                "the data set offers no evaluation prompts; hold out some captioned images"
            )
        indices = torch.arange(start, stop)
        return Request(
            indices, texts=tuple(prompts[int(index) % len(prompts)] for index in indices)
        )

    def captions(self, request: Request) -> list[str]:
        return list(request.texts or ())
