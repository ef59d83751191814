"""ImageReward: what a network that saw 137,000 comparisons by experts says of an image.

Xu et al. 2023 (arXiv 2304.05977). Unlike the scores of two towers it looks at the image while it
reads the prompt. It is published as a standard score: 0 is the mean of its own data, 1 is one
deviation above. It reads 35 tokens; of longer prompts the rest is cut, and `prompts_cut` among the
facts is their share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogen.encoders.fit_square import crop_square
from nanogen.encoders.image_reward_blip import RewardNetwork, open_image_reward
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.encoders.text_tokens import TextTokens, Tokens
from nanogen.metrics.alignment import AlignmentMetric
from nanogen.metrics.base import Context
from nanogen.registry import register
from nanogen.store import Asset, find

MODEL = Asset(
    "image-reward",
    "ImageReward v1.0",
    "Apache-2.0",
    hub="THUDM/ImageReward",
    files=("ImageReward.pt",),
    size="1.8 GB",
)
TOKENIZER = Asset(
    "bert-base-uncased-tokenizer",
    "tokenizer of BERT, lower case",
    "Apache-2.0",
    hub="google-bert/bert-base-uncased",
    files=("tokenizer.json",),
    size="0.5 MB",
)
LONGEST = 35
"""tokens of a prompt"""


class Reader:
    """The network with what prepares images and prompts for it."""

    def __init__(self, network: RewardNetwork, tokens: TextTokens, context: Context) -> None:
        device = context.device
        self.network = network.to(device)
        self.tokens = tokens
        self._mean = torch.tensor(CLIP_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(CLIP_STD, device=device)[:, None, None]
        self._half = torch.autocast(
            device.type, torch.bfloat16, enabled=context.precision == "bf16", cache_enabled=False
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, tokens: Tokens) -> Tensor:
        """uint8 [B, 3, H, W] and tokens [B, L] -> float32 [B]."""
        fed = (crop_square(images, self.network.side, torchvision=True) - self._mean) / self._std
        with self._half:
            return self.network(fed, tokens.ids.to(fed.device), tokens.real.to(fed.device))


@register(
    "metric", "image-reward", summary="ImageReward, a model of human preference", needs="the model"
)
class ImageReward(AlignmentMetric):
    """The mean over images, each judged by its own prompt."""

    name = "image-reward"
    version = 1
    resize = "shortest side, bicubic of Pillow, centre"
    assets = (MODEL, TOKENIZER)

    def opened(self) -> Reader:
        file, tokenizer = (find(asset).path for asset in self.assets)
        return Reader(open_image_reward(file), TextTokens(tokenizer, LONGEST), self.context)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        return self.network.tokens(texts)

    def values(self, images: Tensor, tokens: Tokens) -> Tensor:
        return self.network(images, tokens).double().cpu()
