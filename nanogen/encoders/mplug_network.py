"""The network of mPLUG that answers questions about images.

Li et al. 2022, "mPLUG: Effective and Efficient Vision-Language Learning by Cross-modal
Skip-connections" (arXiv 2205.12005). An image becomes tokens once; each question reads them in the
fusion layers; the decoder writes an answer while it looks at both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.encoders.mplug_layers import (
    Attention,
    BertLayer,
    BertShape,
    Embeddings,
    ImageTower,
    Memory,
)
from nanogen.encoders.wordpiece import Tokens


@dataclass(frozen=True)
class MplugShape:
    """Sizes of an mPLUG, as its two configs say."""

    side: int
    """pixels of the square that images are squashed to"""
    patch: int
    tower_width: int
    tower_depth: int
    tower_heads: int
    bert: BertShape
    question_layers: int
    fusion_slots: int
    """numbered places for fusion layers, of which the last `fusion_layers` are used"""
    fusion_layers: int
    stride: int
    """each such fusion layer but the first connects: image and words attend to all of both"""
    answer_layers: int

    @property
    def first_fusion(self) -> int:
        """The number of the first fusion layer that is used."""
        return max(0, self.fusion_slots - self.fusion_layers)

    def connects(self, number: int) -> bool:
        """Whether the fusion layer of that number connects image and words."""
        place = number - self.first_fusion
        return place != 0 and place % self.stride == 0


class Layers(nn.Module):
    """BERT layers under their published numbers, which need not begin at 0."""

    def __init__(self, layers: Mapping[int, BertLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleDict({str(number): layer for number, layer in layers.items()})

    @property
    def ordered(self) -> list[BertLayer]:
        return [cast(BertLayer, layer) for layer in self.layer.values()]


class Bert(nn.Module):
    """Words and `depth` layers: the encoder of questions, or the trunk of the decoder."""

    def __init__(self, shape: BertShape, depth: int, *, across: bool) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder = Layers({i: BertLayer(shape, across=across) for i in range(depth)})

    def forward(self, tokens: Tokens) -> Tensor:
        """Questions [Q, L] -> [Q, L, D]; padding is not attended to."""
        x, mask = self.embeddings(tokens.ids), tokens.mask[:, None, None, :]
        for layer in self.encoder.ordered:
            x = layer.feed(layer.attend(x, mask))
        return x


@dataclass(frozen=True)
class Fused:
    """An image and the questions about it, having seen each other."""

    image: Tensor
    """[1 or Q, N, D]: one for all questions unless a layer connected them"""
    words: Tensor
    """[Q, L, D]"""
    mask: Tensor
    """bool [Q, L]"""


class FusionEncoder(nn.Module):
    """Words attend to words, then to the image; in connecting layers all to all (section 3.2)."""

    def __init__(self, shape: MplugShape) -> None:
        super().__init__()
        self.shape = shape
        used = range(shape.first_fusion, shape.fusion_slots)
        self.encoder = Layers(
            {i: BertLayer(shape.bert, across=not shape.connects(i)) for i in used}
        )

    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> Fused:
        """`image` [1, N, D], `words` [Q, L, D] with their mask [Q, L]."""
        seen = mask[:, None, None, :]
        for number, layer in enumerate(self.encoder.ordered, self.shape.first_fusion):
            if self.shape.connects(number):
                image = image.expand(len(words), -1, -1)
                both = torch.cat([image, words], dim=1)
                shown = functional.pad(seen, (image.shape[1], 0), value=True)
                both = layer.feed(layer.attend(both, shown))
                change, words = both.split([image.shape[1], words.shape[1]], dim=1)
                image = image + change
            else:
                words = layer.attend(words, seen)
                words = layer.crossattention(words, layer.crossattention.memory(image), None)
                words = layer.feed(words)
        return Fused(image, words, mask)


class Transform(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(functional.gelu(self.dense(x)))


class Predictions(nn.Module):
    """From states to logits of the vocabulary."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.transform = Transform(shape)
        self.decoder = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.bias = nn.Parameter(torch.empty(shape.vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x)) + self.bias


@dataclass(frozen=True)
class Recalled:
    """What the decoder attends to across, layer by layer, prepared once for all its steps.

    Image and words are kept apart: joined for all layers and questions, the image's keys and values
    would be repeated for each question.
    """

    images: tuple[Memory, ...]
    words: tuple[Memory, ...]
    mask: Tensor
    """bool [Q, 1, 1, N + L]"""


class AnswerDecoder(nn.Module):
    """Words attend to earlier words, then to image and question."""

    def __init__(self, shape: BertShape, depth: int) -> None:
        super().__init__()
        self.bert = Bert(shape, depth, across=True)
        self.cls = nn.ModuleDict({"predictions": Predictions(shape)})

    def recall(self, fused: Fused) -> Recalled:
        across: list[Attention] = [layer.crossattention for layer in self.bert.encoder.ordered]
        mask = functional.pad(fused.mask, (fused.image.shape[1], 0), value=True)
        return Recalled(
            tuple(layer.memory(fused.image) for layer in across),
            tuple(layer.memory(fused.words) for layer in across),
            mask[:, None, None, :],
        )

    def forward(self, tokens: Tensor, recalled: Recalled) -> Tensor:
        """K beginnings of answers to each question, int64 [Q, K, T] -> logits [Q, K, V] of what
        comes next.
        """
        questions, beams, length = tokens.shape
        x = self.bert.embeddings(tokens.flatten(0, 1))
        earlier = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for layer, image, words in zip(
            self.bert.encoder.ordered, recalled.images, recalled.words, strict=True
        ):
            x = layer.attend(x, earlier)
            # The beams of a question look at the same things: they are but more queries.
            x = x.view(questions, beams * length, -1)
            x = layer.crossattention(x, image.beside(words), recalled.mask)
            x = layer.feed(x).view(questions * beams, length, -1)
        return self.cls["predictions"](x[:, -1]).unflatten(0, (questions, beams))


class MplugNetwork(nn.Module):
    """Modules and weights have the names that they have in published files."""

    def __init__(self, shape: MplugShape) -> None:
        super().__init__()
        tower = ImageTower(
            shape.side, shape.patch, shape.tower_width, shape.tower_depth, shape.tower_heads
        )
        self.visual_encoder = nn.ModuleDict({"visual": tower})
        self.narrowed = shape.tower_width != shape.bert.width
        if self.narrowed:
            self.visn_fc = nn.Linear(shape.tower_width, shape.bert.width)
            self.visn_layer_norm = nn.LayerNorm(shape.bert.width, eps=1e-12)
        self.text_encoder = Bert(shape.bert, shape.question_layers, across=False)
        self.fusion_encoder = FusionEncoder(shape)
        self.text_decoder = AnswerDecoder(shape.bert, shape.answer_layers)

    def see(self, images: Tensor) -> Tensor:
        """float [B, 3, side, side], normalised -> [B, N, D]."""
        seen = self.visual_encoder["visual"](images)
        return self.visn_layer_norm(self.visn_fc(seen)) if self.narrowed else seen

    def read(self, image: Tensor, questions: Tokens) -> Recalled:
        """Questions about one image [1, N, D] -> what their answers are written from."""
        words = self.text_encoder(questions)
        return self.text_decoder.recall(self.fusion_encoder(image, words, questions.mask))
