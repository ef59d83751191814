"""A network of the CLIP family whose images and texts meet in one space, opened from local files.

    clip = open_contrastive(folder, folder / "tokenizer.json", crop_square, device)
    clip.images(images)                 # uint8 [B, 3, H, W] -> float32 [B, D], of length one
    clip.texts(clip.tokens(["a red cow"]))    # -> float32 [1, D], of length one
    clip.scale                          # what cosines are multiplied with in training

Radford et al. 2021 (arXiv 2103.00020). The network is that of transformers; resizing, tokens and
projections are called here one by one, so that no processor and no version of one decides a score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from nanogen import hub
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.encoders.shards import shards_of
from nanogen.encoders.text_tokens import TextTokens, Tokens
from nanogen.encoders.weights import fill, read_tensors
from nanogen.errors import ConfigError, MissingExtra
from nanogen.frozen import frozen

Fit = Callable[[Tensor, int], Tensor]
"""uint8 [B, 3, H, W] and a side -> float32 [B, 3, side, side] in [0, 1]"""
UNUSED = tuple(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
"""numbers 0, 1, 2, ... that old files hold beside the weights"""


class Contrastive:
    """The two towers, frozen; neither gradients nor batches change what they say."""

    def __init__(
        self,
        network: Any,
        tokenizer: Path,
        fit: Fit,
        device: torch.device,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """`network` is a `transformers.CLIPModel`; `tokenizer` its tokenizer.json."""
        self.network: Any = frozen(network).to(device)
        self.tokenizer = TextTokens(tokenizer, network.config.text_config.max_position_embeddings)
        self.fit = fit
        self.device = device
        self.side = int(network.config.vision_config.image_size)
        self.scale = float(network.logit_scale.detach().double().exp())
        self._mean = torch.tensor(CLIP_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(CLIP_STD, device=device)[:, None, None]
        # Matrix products alone are in half precision, as with the published scorers: norms,
        # softmax and weights stay float32.
        self._half = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
        )

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, D]."""
        fed = (self.fit(images.to(self.device), self.side) - self._mean) / self._std
        with self._half:
            pooled = self.network.vision_model(pixel_values=fed).pooler_output
            return unit(self.network.visual_projection(pooled))

    @torch.no_grad()
    def texts(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] -> float32 [B, D].

        A text is read at its end and sees what is before it only: padding needs no mask.
        """
        with self._half:
            pooled = self.network.text_model(input_ids=tokens.ids.to(self.device)).pooler_output
            return unit(self.network.text_projection(pooled))

    def tokens(self, texts: Sequence[str], *, ended: bool = True) -> Tokens:
        """See `TextTokens`."""
        return self.tokenizer(texts, ended=ended)


def open_contrastive(
    folder: Path,
    tokenizer: Path,
    fit: Fit,
    device: torch.device,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Contrastive:
    """The CLIP model that transformers would open from a folder: config.json and weights.

    ConfigError where something is missing or unknown.
    """
    clip = _transformers()
    try:
        config = clip.CLIPConfig.from_json_file(folder / "config.json")
    except Exception as problem:  # a foreign file can break a parser in any way
        why = hub.reason(problem)
        raise ConfigError(f"{folder} holds no readable config.json: {why}; {hub.ANEW}") from problem
    tensors = {n: t for file in shards_of(folder) for n, t in read_tensors(file).items()}
    network = filled(config, tensors, where=str(folder))
    return Contrastive(network, tokenizer, fit, device, precision)


def filled(config: Any, tensors: Mapping[str, Tensor], *, where: str) -> Any:
    """A `transformers.CLIPModel` of a config, with exactly these weights, in float32 on the CPU.

    ConfigError, which names `where` they are from, unless they are all there and no others.
    """
    with torch.device("meta"):
        network = _transformers().CLIPModel(config)
    fill(network, tensors, UNUSED, where=where)
    for embeddings in (network.text_model.embeddings, network.vision_model.embeddings):
        # In no file, so not filled.
        places = embeddings.position_embedding.num_embeddings
        embeddings.position_ids = torch.arange(places)[None]
    return network


def unit(vectors: Tensor) -> Tensor:
    """[B, D] -> float32 [B, D], each of length one."""
    return functional.normalize(vectors.float(), dim=-1)


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """float64 [B]: of each image with its own text, both [B, D] and of length one."""
    return (images.double() * texts.double()).sum(dim=-1).cpu()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    return transformers
