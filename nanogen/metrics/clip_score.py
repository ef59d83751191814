"""CLIPScore: the cosine of an image and its prompt in CLIP's space, in three published variants.

    clip-score                          the cosine; as DiffusionBench reports it
    clip-score[variant=hessel]          2.5 max(cosine, 0), on a smaller CLIP and with a prefix
    clip-score[variant=torchmetrics]    100 times the cosine; the mean is at least 0

They cannot be compared with each other. CLIP reads 77 tokens: of longer prompts the rest is cut,
and `prompts_cut` among the facts is their share.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nanogen.encoders.contrastive import Contrastive, open_contrastive
from nanogen.encoders.fit_square import crop_square
from nanogen.encoders.text_tokens import Tokens, cleaned
from nanogen.metrics.alignment import NEEDS, CosineMetric, Facts
from nanogen.metrics.base import Context, Option, Score
from nanogen.metrics.uncertainty import Judged
from nanogen.registry import register
from nanogen.store import Asset, find

CLIP_L = Asset(
    "clip-vit-large-patch14",
    "CLIP ViT-L/14 of OpenAI",
    "MIT",
    hub="openai/clip-vit-large-patch14",
    files=("config.json", "tokenizer.json", "model.safetensors"),
    size="1.7 GB",
)
CLIP_B = Asset(
    "clip-vit-base-patch32",
    "CLIP ViT-B/32 of OpenAI",
    "MIT",
    hub="openai/clip-vit-base-patch32",
    # Published as pytorch_model.bin only; a converted model.safetensors is taken too.
    files=("config.json", "tokenizer.json", "*model.[bs]*"),
    size="605 MB",
)


@dataclass(frozen=True)
class Variant:
    """What makes one published CLIPScore differ from another."""

    model: Asset
    factor: float = 1.0
    prefix: str = ""
    """before each prompt"""
    original: bool = False
    """images and prompts are prepared as by OpenAI's code, not as by transformers"""
    images_from_zero: bool = False
    """negative values of images count as 0"""
    mean_from_zero: bool = False
    """a negative mean counts as 0"""
    ended: bool = True
    """a prompt that is cut still has the token that ends it"""


VARIANTS = {
    # diffusion-bench, src/eval/clipscore.py
    "cosine": Variant(CLIP_L),
    # Hessel et al. 2021 (arXiv 2104.08718), eq. 1 and section 3; clipscore.py of the authors
    "hessel": Variant(
        CLIP_B, factor=2.5, prefix="A photo depicts ", original=True, images_from_zero=True
    ),
    # torchmetrics 1.9, functional/multimodal/clip_score.py
    "torchmetrics": Variant(CLIP_L, factor=100.0, mean_from_zero=True, ended=False),
}


@register("metric", "clip-score", summary="CLIPScore, in three published variants", needs=NEEDS)
class ClipScore(CosineMetric):
    """The mean over images, each judged by its own prompt."""

    name = "clip-score"
    version = 1
    resize = "shortest side, bicubic of Pillow, centre"
    options = {"variant": Option("whose formula, model and prefix", "cosine", tuple(VARIANTS))}
    assets = (CLIP_L, CLIP_B)
    """of an instance: the one that its variant needs"""

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        self.variant = VARIANTS[self.chosen["variant"]]
        self.assets = (self.variant.model,)

    def opened(self) -> Contrastive:
        folder = find(self.variant.model).path
        fit = functools.partial(crop_square, torchvision=self.variant.original)
        device, precision = self.context.device, self.context.precision
        return open_contrastive(folder, folder / "tokenizer.json", fit, device, precision)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        asked = [self.variant.prefix + text for text in texts]
        if self.variant.original:
            asked = [cleaned(text) for text in asked]
        return self.network.tokens(asked, ended=self.variant.ended)

    def values(self, images: Tensor, tokens: Tokens) -> Tensor:
        values = self.variant.factor * super().values(images, tokens)
        return values.clamp(min=0) if self.variant.images_from_zero else values

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        scores = super().scores(judged, extra)
        if not self.variant.mean_from_zero:
            return scores
        return {n: dataclasses.replace(s, value=max(s.value, 0.0)) for n, s in scores.items()}

    def facts(self) -> Facts:
        return {
            **super().facts(),
            "variant": self.chosen["variant"],
            **({"prefix": self.variant.prefix} if self.variant.prefix else {}),
        }
