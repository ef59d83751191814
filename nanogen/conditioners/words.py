"""The simplest text conditioner: a learned vector for each word, trained with the backbone.

    "a red cow"  ->  word["a"] + place[0], word["red"] + place[1], word["cow"] + place[2]

The backbone attends to text tokens without regard to their order; the learned places say which word
came first. The vocabulary is the words of the source's evaluation captions; all others share one
vector.
"""

from __future__ import annotations

import hashlib
import re

import chz
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nanogen.conditioners.features import captions_of, no_text
from nanogen.data.base import Source
from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.types import Batch, ConditionSpec, Request, TextCondition

PADDING, UNKNOWN = 0, 1
"""rows of the table before the first word"""


@register("conditioner", "words", summary="a learned vector for each word, trained from scratch")
@chz.chz
class WordsConfig:
    """`width` of the vectors, and the most words of a caption that are read."""

    width: int = chz.field(default=128, doc="numbers of a word's vector")
    tokens: int = chz.field(default=24, doc="words after these are cut off")

    @chz.validate
    def _ranges(self) -> None:
        for name in ("width", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"conditioner.{name}={getattr(self, name)}: must be at least 1")

    def build(self, source: Source) -> Words:
        """ConfigError where the data has no evaluation captions to take the words from."""
        vocabulary = sorted({word for prompt in source.prompts() for word in words_of(prompt)})
        if not vocabulary:
            raise ConfigError(
                "conditioner=words takes its words from the evaluation captions of the data, and "
                "there are none; hold some captioned images out"
            )
        return Words(vocabulary, self.width, self.tokens)


class Words(nn.Module):
    """Captions to features [B, L, width]: about unit variance before training."""

    trainable = True

    def __init__(self, vocabulary: list[str], width: int, tokens: int) -> None:
        super().__init__()
        self.spec = ConditionSpec(width=width, tokens=tokens)
        self.rows = {word: row for row, word in enumerate(vocabulary, start=UNKNOWN + 1)}
        self.words = nn.Embedding(len(vocabulary) + UNKNOWN + 1, width)
        self.places = nn.Parameter(torch.empty(tokens, width))
        # Word and place share the variance, so that their sum has about one.
        nn.init.normal_(self.words.weight, std=0.5**0.5)
        nn.init.normal_(self.places, std=0.5**0.5)
        digest = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
        self.fingerprint = f"words-{digest[:8]}-{width}-{tokens}"

    def encode(self, given: Batch | Request) -> TextCondition:
        """The captions of a batch; one without words is the null condition."""
        device = self.places.device
        ids = [self._ids(caption) for caption in captions_of(given, "words")]
        table = pad_sequence(ids, batch_first=True, padding_value=PADDING).to(device)
        mask = table != PADDING
        features = self.words(table) + self.places[: table.shape[1]]
        return TextCondition(torch.where(mask[..., None], features, 0), mask)

    def null(self, count: int) -> TextCondition:
        """No token: features [count, 0, width]."""
        return no_text(count, self.places.shape[1], self.places.device)

    def _ids(self, caption: str) -> Tensor:
        words = words_of(caption)[: len(self.places)]
        return torch.tensor([self.rows.get(word, UNKNOWN) for word in words], dtype=torch.long)


def words_of(caption: str) -> list[str]:
    """Words and marks, in lower case: "A cow, asleep" -> a / cow / , / asleep."""
    return re.findall(r"\w+|[^\w\s]", caption.lower())
