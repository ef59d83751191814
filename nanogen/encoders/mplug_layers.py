"""The layers of mPLUG: BERT's, with attention to an image, and the tower of images of CLIP.

Modules and weights have the names that they have in published files. BERT: Devlin et al. 2019
(arXiv 1810.04805); cross-attention between images and words: Li et al. 2022 (arXiv 2205.12005).
Masks are true where there is something to attend to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class BertShape:
    """Sizes of all BERT layers of a model."""

    width: int
    heads: int
    inner: int
    """width of the feed-forward layer"""
    context: int
    """width of what is attended to across"""
    epsilon: float
    vocabulary: int
    positions: int
    segments: int


@dataclass(frozen=True)
class Memory:
    """What can be attended to: keys and values [B, heads, S, D / heads] each."""

    keys: Tensor
    values: Tensor

    def beside(self, other: Memory) -> Memory:
        """This, then `other` behind it; a batch of one stands for all of the other's."""

        def joined(left: Tensor, right: Tensor) -> Tensor:
            return torch.cat([left.expand(len(right), -1, -1, -1), right], dim=2)

        return Memory(joined(self.keys, other.keys), joined(self.values, other.values))


class Residual(nn.Module):
    """A linear layer whose result is added and then normalised (the norm comes last in BERT)."""

    def __init__(self, inputs: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Projections(nn.Module):
    """Queries from states, keys and values from what they attend to."""

    def __init__(self, shape: BertShape, context: int) -> None:
        super().__init__()
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(context, shape.width)
        self.value = nn.Linear(context, shape.width)


class Attention(nn.Module):
    """Attention to oneself or, with `across`, to states of width `shape.context`."""

    def __init__(self, shape: BertShape, *, across: bool = False) -> None:
        super().__init__()
        self.heads = shape.heads
        self.self = Projections(shape, shape.context if across else shape.width)
        self.output = Residual(shape.width, shape)

    def memory(self, states: Tensor) -> Memory:
        """Keys and values of states [B, S, D]."""
        return Memory(self._split(self.self.key(states)), self._split(self.self.value(states)))

    def forward(self, x: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """`x` [B, T, D]; the mask is broadcast to [B, heads, T, S], none shows everything."""
        queries = self._split(self.self.query(x))
        keys = memory.keys.expand(len(x), -1, -1, -1)
        values = memory.values.expand(len(x), -1, -1, -1)
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.output(found.transpose(1, 2).flatten(2), x)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Intermediate(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.inner)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.dense(x))


class BertLayer(nn.Module):
    """Attention to oneself, attention to other states where `across`, feed-forward."""

    def __init__(self, shape: BertShape, *, across: bool) -> None:
        super().__init__()
        self.attention = Attention(shape)
        if across:
            self.crossattention = Attention(shape, across=True)
        self.intermediate = Intermediate(shape)
        self.output = Residual(shape.inner, shape)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Each of `x` [B, T, D] to each that the mask shows."""
        return self.attention(x, self.attention.memory(x), mask)

    def feed(self, x: Tensor) -> Tensor:
        return self.output(self.intermediate(x), x)


class Embeddings(nn.Module):
    """Words, positions, and the first of the segments; summed and normalised."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.position_embeddings = nn.Embedding(shape.positions, shape.width)
        self.token_type_embeddings = nn.Embedding(shape.segments, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, D]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        fixed = self.position_embeddings(places) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + fixed)


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x): what OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ImageBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ImageBlocks(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ImageBlock(width, heads) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ImageTower(nn.Module):
    """CLIP's vision transformer. All tokens are normed at the end, none is projected."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((side // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = ImageBlocks(width, depth, heads)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, side, side], normalised -> [B, 1 + (side / patch)^2, width]."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))
