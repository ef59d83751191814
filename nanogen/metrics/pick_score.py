"""PickScore: what people who compared images for their own prompts would rather have.

Kirstain et al. 2023 (arXiv 2305.01569), eq. 2: a CLIP ViT-H/14 tuned on Pick-a-Pic; the score is
`exp(logit_scale) cos(image, prompt)`, about 18 to 24 for images of today. Some report it divided by
100 or 26: here it is as published.
"""

from __future__ import annotations

from torch import Tensor

from nanogen.encoders.contrastive import Contrastive, open_contrastive
from nanogen.encoders.fit_square import crop_square
from nanogen.encoders.text_tokens import Tokens
from nanogen.metrics.alignment import NEEDS, CosineMetric
from nanogen.registry import register
from nanogen.store import Asset, find

MODEL = Asset(
    "pick-score",
    "PickScore v1",
    "not stated (code: MIT)",
    hub="yuvalkirstain/PickScore_v1",
    files=("config.json", "model.safetensors"),
    size="3.9 GB",
)
TOKENIZER = Asset(
    "clip-vit-h-14-tokenizer",
    "tokenizer of CLIP ViT-H/14",
    "MIT",
    hub="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    files=("tokenizer.json",),
    size="2 MB",
)


@register("metric", "pick-score", summary="PickScore, a model of human preference", needs=NEEDS)
class PickScore(CosineMetric):
    """The mean over images, each judged by its own prompt."""

    name = "pick-score"
    version = 1
    resize = "shortest side, bicubic of Pillow, centre"
    assets = (MODEL, TOKENIZER)

    def opened(self) -> Contrastive:
        folder, tokenizer = (find(asset).path for asset in self.assets)
        device, precision = self.context.device, self.context.precision
        return open_contrastive(folder, tokenizer, crop_square, device, precision)

    def values(self, images: Tensor, tokens: Tokens) -> Tensor:
        return self.network.scale * super().values(images, tokens)
