"""Any text encoder of the Hugging Face hub, frozen: token states after its last layer.

    conditioner=hf-text                                       Qwen3-0.6B, as the paper
    conditioner=hf-text conditioner.model=google-t5/t5-base      conditioner.dtype=float32

The caption goes in as it is: no template, no added beginning. What comes out is the state after the
final norm of every token (`last_hidden_state`). The base model is loaded, never the head that
predicts words, and only its encoder where it has a decoder too.

Captions are padded on the right, so that under causal attention no real token can see padding. An
empty caption has no token: it is the null condition, whatever the tokenizer adds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import chz
import torch
from torch import Tensor, nn

from nanogen import hub
from nanogen.conditioners.features import FeatureCache, captions_of, no_text, stacked
from nanogen.data.base import Source
from nanogen.errors import ConfigError, MissingExtra
from nanogen.frozen import frozen
from nanogen.registry import register
from nanogen.types import Batch, ConditionSpec, Request, TextCondition

SAMPLED = 64
"""values of each weight that enter the fingerprint"""


@register(
    "conditioner",
    "hf-text",
    summary="token states of a text encoder from the Hugging Face hub, frozen (Qwen3-0.6B)",
    needs="pip install 'nanogen[t2i]', and the model",
)
@chz.chz
class HfTextConfig:
    """Which model, and how it is run."""

    model: str = chz.field(default="Qwen/Qwen3-0.6B", doc="name on the hub, or a folder")
    tokens: int = chz.field(default=256, doc="most tokens of a caption; the rest is cut off")
    dtype: Literal["float32", "bfloat16", "float16"] = chz.field(
        default="bfloat16",
        doc="precision of weights and computation; float32 is faster on most CPUs",
    )
    cache: int = chz.field(
        default=0, doc="captions whose features are kept in memory; each is then encoded alone"
    )

    @chz.validate
    def _ranges(self) -> None:
        if self.tokens < 1 or self.cache < 0:
            raise ConfigError(
                "conditioner.tokens must be at least 1 and conditioner.cache at least 0"
            )

    def build(self, source: Source) -> HfText:
        """Load the model; a ConfigError says what to do where that fails."""
        return HfText(self)


class HfText(nn.Module):
    """Captions to features, float32 [B, L, D], L <= tokens."""

    trainable = False

    def __init__(self, config: HfTextConfig) -> None:
        super().__init__()
        self._tokenizer, self.encoder = _load(config)
        frozen(self)
        width = self.encoder.config.get_text_config().hidden_size
        self.spec = ConditionSpec(width=width, tokens=config.tokens)
        self.fingerprint = f"hf-text-{_digest(self.encoder)}-{config.tokens}-{config.dtype}"
        self.kept = FeatureCache(config.cache) if config.cache else None

    def encode(self, given: Batch | Request) -> TextCondition:
        """The captions of a batch, on the encoder's device."""
        captions = captions_of(given, "hf-text")
        if self.kept is None:
            return self._states(captions)
        rows = [row.float() for row in self.kept.rows(captions, self.rows)]
        return stacked(rows).to(self.encoder.device)

    def null(self, count: int) -> TextCondition:
        """No token: features [count, 0, D]."""
        assert self.spec.width is not None
        return no_text(count, self.spec.width, self.encoder.device)

    def rows(self, captions: list[str]) -> list[Tensor]:
        """[l, D] of each caption, in main memory, in the encoder's own precision: nothing is lost.

        One by one: beside other captions its features would round otherwise, and a run that is
        resumed, with an empty cache, would not continue to the same bits.
        """
        alone = (self._states([caption]).features[0] for caption in captions)
        return [row.to(self.encoder.dtype).cpu() for row in alone]

    @torch.no_grad()
    def _states(self, captions: Sequence[str]) -> TextCondition:
        ids = self._ids(captions)
        written = [row for row, caption in enumerate(ids) if caption]
        null = self.null(len(captions))
        if not written:
            return null
        # Rows without a token stay out: attention over nothing is undefined.
        table, mask = _padded([ids[row] for row in written], self.encoder.device)
        states = self.encoder(input_ids=table, attention_mask=mask.long()).last_hidden_state
        places = torch.tensor(written, device=mask.device)
        features = states.new_zeros(len(captions), *states.shape[1:], dtype=torch.float32)
        features[places] = states.float().masked_fill(~mask[..., None], 0)
        full = mask.new_zeros(len(captions), mask.shape[1])
        full[places] = mask
        return TextCondition(features, full)

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption; none for an empty one, whatever the tokenizer adds to it."""
        limit = self.spec.tokens
        found = self._tokenizer(list(captions), truncation=True, max_length=limit)["input_ids"]
        return [ids if caption else [] for ids, caption in zip(found, captions, strict=True)]


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, L] of the longest row. Padding is never read, so any id serves."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(length, device=device) < lengths[:, None]


def _load(config: HfTextConfig) -> tuple[Any, Any]:
    """The tokenizer and the base model (only the encoder of an encoder-decoder)."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    field, what = "conditioner.model", "text encoder that transformers can load"
    source = hub.locate(config.model, "", "config.json", field=field, what=what)
    # No code that comes with a model is run, and no weights but safetensors are read: others are
    # pickles.
    given: Any = {"trust_remote_code": False, "local_files_only": source.local}
    try:
        kind = AutoConfig.from_pretrained(source.model, **given)
        tokenizer = AutoTokenizer.from_pretrained(source.model, **given)
        loader = AutoModelForTextEncoding if kind.is_encoder_decoder else AutoModel
        model = loader.from_pretrained(
            source.model, dtype=getattr(torch, config.dtype), use_safetensors=True, **given
        )
        return tokenizer, model
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as problem:
        raise ConfigError(hub.advice(config.model, problem, field, what)) from problem


def _digest(model: nn.Module) -> str:
    """A hash of the architecture and of some values of every weight, wherever they came from."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
