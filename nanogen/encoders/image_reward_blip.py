"""The network of ImageReward: BLIP looks at an image while it reads a prompt; five matrices judge.

    network = open_image_reward(Path("ImageReward.pt"))
    network(images, ids, real)            # float32 [B]: the reward, about N(0, 1) on its own data

Xu et al. 2023 (arXiv 2304.05977) on BLIP, Li et al. 2022 (arXiv 2201.12086). Modules bear the names
of the published file, so it is loaded as it is. A ViT-L/16 gives the states of the image; a BERT
whose layers also attend to them reads the prompt; its state at [CLS] goes through the published
"MLP", which has no activation between its layers and so is one linear map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.encoders.weights import fill, read_tensors
from nanogen.errors import ConfigError
from nanogen.frozen import frozen

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""of the reward on the data that it was trained on: it is published as standard scores"""
HEAD = 64
"""width of a head, in both towers"""
IMAGE_EPSILON, TEXT_EPSILON = 1e-6, 1e-12
HIDDEN = (1024, 128, 64, 16, 1)
"""widths of what judges"""
UNUSED = (
    # Of BLIP's contrastive loss.
    "blip.vision_proj.",
    "blip.text_proj.",
    # Numbers 0, 1, 2, ...
    "blip.text_encoder.embeddings.position_ids",
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the network, as its weights show them."""

    side: int
    patch: int
    image_width: int
    image_depth: int
    words: int
    places: int
    text_width: int
    text_depth: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], where: str) -> Shape:
        """ConfigError, naming `where`, for weights of something else."""
        image, text = "blip.visual_encoder.", "blip.text_encoder."
        try:
            width, patch = tensors[f"{image}patch_embed.proj.weight"].shape[::3]
            patches = tensors[f"{image}pos_embed"].shape[1] - 1
            words, text_width = tensors[f"{text}embeddings.word_embeddings.weight"].shape
            return cls(
                side=round(patches**0.5) * patch,
                patch=patch,
                image_width=width,
                image_depth=_depth(tensors, f"{image}blocks."),
                words=words,
                places=len(tensors[f"{text}embeddings.position_embeddings.weight"]),
                text_width=text_width,
                text_depth=_depth(tensors, f"{text}encoder.layer."),
            )
        except (KeyError, ValueError, IndexError) as problem:
            raise ConfigError(
                f"{where} is not the file of ImageReward: {problem} is not as it is there; give "
                "the published ImageReward.pt"
            ) from problem


class RewardNetwork(nn.Module):
    """Images and prompts to rewards."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.side = shape.side
        self.blip = nn.ModuleDict(
            {"visual_encoder": ImageTower(shape), "text_encoder": TextTower(shape)}
        )
        self.mlp = Judge(shape.text_width)

    def forward(self, images: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """[B, 3, side, side] with the mean and deviation of CLIP, int64 [B, L], bool [B, L] ->
        float32 [B].
        """
        seen = self.blip["visual_encoder"](images)
        read = self.blip["text_encoder"](ids, real, seen)
        return (self.mlp(read[:, 0].float())[:, 0] - MEAN) / STD


class ImageTower(nn.Module):
    """A ViT whose norms come first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, patch = shape.image_width, shape.patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        patches = (shape.side // patch) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.blocks = nn.ModuleList(ImageBlock(width) for _ in range(shape.image_depth))
        self.norm = nn.LayerNorm(width, eps=IMAGE_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, side, side] -> states [B, 1 + N, D], the class token first."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        states = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        states = states + self.pos_embed
        for block in self.blocks:
            states = block(states)
        return self.norm(states)


class ImageBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=IMAGE_EPSILON)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.norm2 = nn.LayerNorm(width, eps=IMAGE_EPSILON)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, states: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        query, key, value = self.attn["qkv"](self.norm1(states)).chunk(3, dim=-1)
        states = states + self.attn["proj"](attend(query, key, value))
        return states + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(states))))


class TextTower(nn.Module):
    """A BERT, of words and places only, whose layers also attend to an image."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.text_width
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(shape.words, width),
                "position_embeddings": nn.Embedding(shape.places, width),
                "LayerNorm": nn.LayerNorm(width, eps=TEXT_EPSILON),
            }
        )
        self.encoder = TextLayers(shape)

    def forward(self, ids: Tensor, real: Tensor, seen: Tensor) -> Tensor:
        """int64 [B, L], bool [B, L], states of the images [B, N, E] -> [B, L, D]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        words = self.embeddings["word_embeddings"](ids)
        states = words + self.embeddings["position_embeddings"](places)
        states = self.embeddings["LayerNorm"](states)
        return self.encoder(states, real[:, None, None], seen)


class TextLayers(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        sizes = shape.text_width, shape.image_width
        self.layer = nn.ModuleList(TextLayer(*sizes) for _ in range(shape.text_depth))

    def forward(self, states: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        """See `TextLayer`."""
        for layer in self.layer:
            states = layer(states, mask, seen)
        return states


class TextLayer(nn.Module):
    def __init__(self, width: int, image_width: int) -> None:
        super().__init__()
        self.attention = Attention(width, width)
        self.crossattention = Attention(width, image_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = _back(4 * width, width)

    def forward(self, states: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        """[B, L, D], bool [B, 1, 1, L], [B, N, E] -> [B, L, D]; norms come after each sum."""
        states = self.attention(states, states, mask)
        states = self.crossattention(states, seen)
        hidden = functional.gelu(self.intermediate["dense"](states))
        return self.output["LayerNorm"](self.output["dense"](hidden) + states)


class Attention(nn.Module):
    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(source_width, width),
                "value": nn.Linear(source_width, width),
            }
        )
        self.output = _back(width, width)

    def forward(self, states: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] asks [B, N, E], of which `mask` is true where it may look -> [B, L, D]."""
        query, key, value = (
            self.self[name](given)
            for name, given in (("query", states), ("key", source), ("value", source))
        )
        found = self.output["dense"](attend(query, key, value, mask))
        return self.output["LayerNorm"](found + states)


class Judge(nn.Module):
    """The published five layers, with nothing between them: there, only dropout in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        linear = [nn.Linear(a, b) for a, b in zip((width, *HIDDEN), HIDDEN, strict=False)]
        # Dropouts take places 1, 3 and 5 in the names.
        first, second, third, fourth, last = linear
        gap = nn.Identity()
        self.layers = nn.Sequential(first, gap, second, gap, third, gap, fourth, last)

    def forward(self, states: Tensor) -> Tensor:
        """[B, D] -> [B, 1]."""
        return self.layers(states)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, L, D], [B, N, D], [B, N, D] -> [B, L, D], by heads of width 64."""
    query, key, value = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (query, key, value))
    found = functional.scaled_dot_product_attention(query, key, value, mask)
    return found.transpose(1, 2).flatten(2)


def open_image_reward(file: Path) -> RewardNetwork:
    """The network with the weights of ImageReward.pt, frozen, in float32 on the CPU.

    ConfigError unless all are there and no unknown ones.
    """
    tensors = read_tensors(file)
    with torch.device("meta"):
        network = RewardNetwork(Shape.of(tensors, str(file)))
    fill(network, tensors, UNUSED, where=str(file))
    frozen(network)
    return network


def _back(width: int, states: int) -> nn.ModuleDict:
    """What takes a layer's result back to its states, under BERT's names."""
    norm = nn.LayerNorm(states, eps=TEXT_EPSILON)
    return nn.ModuleDict({"dense": nn.Linear(width, states), "LayerNorm": norm})


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered layers there are."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
