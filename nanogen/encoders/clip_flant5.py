"""CLIP-FlanT5: a model that sees an image and answers a question, behind the published VQAScore.

    model = ClipFlanT5(Files(checkpoint, tokenizer, vision), torch.device("cuda"), torch.bfloat16)
    likely = model(images, texts)                # uint8 [B, 3, H, W] -> float32 [B, 2]
    likely.mean(dim=1).exp()                     # VQAScore

Lin et al. 2024 (arXiv 2404.01291). The image, padded to a square, goes through CLIP ViT-L/14 at
336 px: 576 tokens of its last block but one. Two linear layers bring them to the width of FLAN-T5,
where they stand in the middle of the prompt, and the decoder is asked how likely it is to say "Yes"
and then to stop.

The checkpoint has its own tower (fine-tuned, not OpenAI's) and its own `lm_head`. transformers 5
ties the head of every T5 to its embeddings and scales what enters it; here it is neither tied nor
scaled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nanogen.encoders.pillow_resize import BICUBIC, resize
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.encoders.shards import fill_from, shards_of
from nanogen.errors import ConfigError, MissingExtra
from nanogen.frozen import frozen

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
"""the first words of every chat of LLaVA v1, on whose format the model was trained"""
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"
LONGEST = 2048
"""tokens of a prompt, in which the image counts as one; the rest is cut off"""
GROUND = (122, 116, 104)
"""CLIP's mean colour in 8 bits, cut off as published: what images are padded with"""
T5_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)
VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
PUBLISHED = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
"""how the image enters, where a checkpoint's config says so"""
EMBEDDINGS = ("shared.", "embed_tokens.", "encoder.embed_tokens.", "decoder.embed_tokens.")
"""one table of embeddings, under each of the names that files know it by"""
UNUSED = (
    # A number for each position, in old files.
    "embeddings.position_ids",
    # A table of the first T5 that no layer reads.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


@dataclass(frozen=True)
class Files:
    """What the model is made of."""

    checkpoint: Path
    """folder: config.json, and the weights in one file or several"""
    tokenizer: Path
    """tokenizer.json of FLAN-T5"""
    vision: Path
    """config.json of CLIP ViT-L/14-336"""


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the image; each part has an end of its own."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Words:
    """FLAN-T5's tokenizer, and what the model is asked in it."""

    def __init__(self, file: Path) -> None:
        """ConfigError where the answer is not one token and the end."""
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as problem:  # the library raises bare exceptions
            raise ConfigError(f"{file} is no tokenizer that can be read; get it anew") from problem
        # What a file says of lengths is for other uses.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.count = self.tokenizer.get_vocab_size(with_added_tokens=True)
        start, end = (self.tokenizer.token_to_id(token) for token in ("<pad>", "</s>"))
        answer = self.ids(ANSWER)
        if start is None or len(answer) != 2 or answer[1] != end:
            raise ConfigError(
                f"{file}: {ANSWER!r} is {answer}, not one token and the end; give the "
                "tokenizer.json of google/flan-t5-xxl"
            )
        self.start: int = start
        """what a decoder of T5 begins with"""
        self.answer = answer
        """"Yes" and the end"""

    def prompt(self, text: str) -> Prompt:
        """The question about a text, as a turn of a chat, in tokens."""
        before = self.ids(f"{SYSTEM} USER: ")
        after = self.ids(f"\n{QUESTION.format(text)} ASSISTANT: ")
        return Prompt(before, after[: LONGEST - len(before) - 1])

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text and the end."""
        return tuple(self.tokenizer.encode(text).ids)


class Network(nn.Module):
    """The parts of the model: an encoder and decoder of text, a tower of images, a projector."""

    def __init__(self, text: Any, vision: Any) -> None:
        """`text` is a T5Config, `vision` a CLIPVisionConfig; made on the meta device it is free."""
        super().__init__()
        from transformers import CLIPVisionModel, T5ForConditionalGeneration

        # What __init__ of the config forces is undone here; later it would be too late.
        text.tie_word_embeddings = False
        text.scale_decoder_outputs = False
        self.t5 = T5ForConditionalGeneration(text)
        # Nothing being tied, encoder and decoder would have tables of their own.
        self.t5.set_input_embeddings(self.t5.shared)
        tower = CLIPVisionModel(vision)
        # Older versions of transformers wrap the tower once more.
        self.tower = getattr(tower, "vision_model", tower)
        width = text.d_model
        self.projector = nn.Sequential(
            nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, pixels: Tensor, prompts: Sequence[Prompt], decoded: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] for each of the tokens `decoded`, int64 [T], of the answer.

        `pixels` float [B, 3, S, S], normalised, in the precision of the weights.
        """
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        seen = self.projector(states[-2][:, 1:])
        rows = [
            torch.cat([self._embedded(prompt.before), image, self._embedded(prompt.after)])
            for prompt, image in zip(prompts, seen, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows], device=pixels.device)
        mask = torch.arange(int(lengths.max()), device=pixels.device) < lengths[:, None]
        return self.t5(
            inputs_embeds=pad_sequence(rows, batch_first=True),
            attention_mask=mask,
            decoder_input_ids=decoded.expand(len(rows), -1),
            use_cache=False,
        ).logits

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        return self.t5.shared(torch.tensor(ids, device=self.t5.shared.weight.device))


class ClipFlanT5:
    """The published model, frozen, with its words and its preparation of images."""

    def __init__(self, files: Files, device: torch.device, dtype: torch.dtype) -> None:
        """Reads everything. ConfigError for files that are not of this model; MissingExtra."""
        self.words = Words(files.tokenizer)
        self.network, self.side = _load(files, device, dtype)
        self.device = device
        self.dtype = dtype
        vocabulary = self.network.t5.lm_head.out_features
        if vocabulary < self.words.count:
            raise ConfigError(
                f"{files.checkpoint} knows {vocabulary} tokens and {files.tokenizer} has "
                f"{self.words.count}; give files of the same model"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """float32 [B, 2]: log-probabilities of "Yes", and of the end after it.

        `images` uint8 [B, 3, H, W] of any size; the same for whatever stands in the batch beside an
        image, up to rounding.
        """
        pixels = prepared(images.to(self.device), self.side).to(self.dtype)
        prompts = [self.words.prompt(text) for text in texts]
        decoded = torch.tensor([self.words.start, self.words.answer[0]], device=self.device)
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=half):
            logits = self.network(pixels, prompts, decoded)
        # The table of a T5 is longer than its list of words; the published code cuts the rest off.
        likely = logits[..., : self.words.count].float().log_softmax(dim=-1)
        said = torch.tensor(self.words.answer, device=self.device).expand(len(texts), 2)
        return likely.gather(2, said[..., None])[..., 0]


def prepared(images: Tensor, side: int) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, side, side]: padded to squares, resized as Pillow does
    in 8 bits, and normalised as CLIP is.
    """
    square = resize(squared(images), (side, side), BICUBIC).float() / 255
    mean, std = (square.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (square - mean) / std


def squared(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, M, M] with M the longer side, the image in the middle: where the
    padding is odd, one more row or column comes after it.
    """
    height, width = images.shape[-2:]
    longer = max(height, width)
    top, left = (longer - height) // 2, (longer - width) // 2
    ground = images.new_tensor(GROUND)[:, None, None]
    canvas = ground.expand(len(images), 3, longer, longer).clone()
    canvas[..., top : top + height, left : left + width] = images
    return canvas


def own_name(name: str) -> str | None:
    """The name in `Network` of a weight of the checkpoint; None for one that nothing reads."""
    if name.endswith(UNUSED):
        return None
    if name.startswith("vision_tower."):
        return f"tower.{name.rpartition('vision_model.')[2]}"
    if name.startswith("mm_projector."):
        return name.removeprefix("mm_")
    if name.startswith(EMBEDDINGS):
        return f"t5.shared.{name.rpartition('.')[2]}"
    return f"t5.{name}"


def _load(files: Files, device: torch.device, dtype: torch.dtype) -> tuple[Network, int]:
    """The network with its weights, and the side of the images that it sees."""
    try:
        from transformers import CLIPVisionConfig, T5Config
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    text = _read(files.checkpoint / "config.json")
    vision = _read(files.vision)
    for field, value in PUBLISHED.items():
        if text.get(field, value) != value:
            raise ConfigError(
                f"{files.checkpoint} has {field}={text[field]}, not {value}: it is another model; "
                "give CLIP-FlanT5's"
            )
    seen = _chosen(vision.get("vision_config", vision), VISION_FIELDS)
    with torch.device("meta"):
        network = Network(T5Config(**_chosen(text, T5_FIELDS)), CLIPVisionConfig(**seen))
    fill_from(network, shards_of(files.checkpoint), own_name, device, dtype)
    # The one buffer that no file holds.
    embeddings: Any = network.tower.embeddings
    places = torch.arange(embeddings.position_embedding.num_embeddings, device=device)
    embeddings.register_buffer("position_ids", places[None], persistent=False)
    frozen(network)
    return network, seen["image_size"]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{file} is no config that can be read; get it anew") from problem
    return found


def _chosen(config: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: config[field] for field in fields if field in config}
