"""mPLUG, which answers questions about images: the judge of DPG-Bench.

    judge = Mplug(folder, torch.device("cuda"), precision="bf16")
    judge.answers(image, ["is there a cat?", "what colour is it?"])     # ["yes", "black"]

`folder` holds what is published as `mplug_visual-question-answering_coco_large_en`: `config.yaml`
(image side, tower, beams), `config_bert.json` (all of BERT, how many layers there are of which
kind, and which of them connect), `vocab.txt`, and `pytorch_model.bin`. Every size is read there.

The names of weights and the order of operations follow the published definition of the network.
The published file itself could not be read while this was written: that its weights are under these
names, and nothing else than `UNUSED`, is checked whenever it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from nanogen.encoders.mplug_decoding import Rules, beam_search
from nanogen.encoders.mplug_layers import BertShape
from nanogen.encoders.mplug_network import MplugNetwork, MplugShape, Recalled
from nanogen.encoders.pillow_resize import BICUBIC, resize
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.encoders.weights import fill, read_tensors
from nanogen.encoders.wordpiece import WordPiece
from nanogen.errors import ConfigError
from nanogen.frozen import frozen

CONFIG, WEIGHTS, VOCABULARY = "config.yaml", "pytorch_model.bin", "vocab.txt"
FILES = (CONFIG, "config_bert.json", VOCABULARY, WEIGHTS)
WRAPPERS = ("model", "module")
PREFIX = "model."
HEAD_WIDTH = 64
"""of the tower of images: it has as many heads as 64 fits into its width"""
DEFAULTS: Mapping[str, Any] = {
    "bert_config": "config_bert.json",
    "image_res": 504,
    "clip_vision_layers": 24,
    "clip_vision_width": 1024,
    "clip_vision_patch_size": 14,
    "beam_size": 5,
    "min_length": 1,
    "max_length": 10,
}
"""what the published definition takes for a field that `config.yaml` leaves out"""
NEVER = 100
"""the stride where `config_bert.json` has none: no layer connects"""
UNUSED = (
    # Copies that training averages over time.
    "visual_encoder_m.",
    "visn_fc_m.",
    "visn_layer_norm_m.",
    "text_encoder_m.",
    "fusion_encoder_m.",
    "text_decoder_m.",
    # CLIP's tower of texts, and the projection that compares images with them.
    "visual_encoder.visual.proj",
    "visual_encoder.transformer.",
    "visual_encoder.token_embedding.",
    "visual_encoder.positional_embedding",
    "visual_encoder.ln_final.",
    "visual_encoder.text_projection",
    "visual_encoder.logit_scale",
    # Numbers 0, 1, 2, ..., and a second name of `predictions.bias`.
    "text_encoder.embeddings.position_ids",
    "text_decoder.bert.embeddings.position_ids",
    "text_decoder.cls.predictions.decoder.bias",
)
"""beginnings of names in the published file that answers do not depend on"""


class Mplug:
    """The network with its preprocessing and its tokenizer, frozen."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: Literal["fp32", "bf16"] = "fp32",
        limit: int = 35,
        chunk: int = 32,
    ) -> None:
        """`limit` is the number of tokens that a question is cut off at, `chunk` of questions that
        are answered at once. ConfigError where the folder does not hold such a model.
        """
        config = {**DEFAULTS, **_read(folder / CONFIG, yaml.safe_load)}
        bert = _read(folder / config["bert_config"], json.loads)
        try:
            self.shape = _shape_of(config, bert)
        except KeyError as problem:
            raise ConfigError(
                f"{folder / config['bert_config']} lacks the field {problem}; get the file anew"
            ) from problem
        self.words = WordPiece(folder / VOCABULARY)
        if len(self.words) > self.shape.bert.vocabulary:
            raise ConfigError(
                f"{folder / VOCABULARY} has {len(self.words)} entries, the network knows "
                f"{self.shape.bert.vocabulary}; get both files of the same model"
            )
        self.rules = Rules(
            self.words.start,
            self.words.end,
            config["beam_size"],
            config["min_length"],
            config["max_length"],
        )
        self.device, self.precision, self.limit, self.chunk = device, precision, limit, chunk
        self.network = _load(folder / WEIGHTS, self.shape).to(device)

    @torch.no_grad()
    def answers(self, image: Tensor, questions: Sequence[str]) -> list[str]:
        """What it says to each question about an image, uint8 [3, H, W] of any size."""
        found: list[str] = []
        with self._autocast():
            seen = self.network.see(self.prepared(image[None]))
            for first in range(0, len(questions), self.chunk):
                part = questions[first : first + self.chunk]
                tokens = self.words.encode(part, self.limit).to(self.device)
                next_logits = partial(self._next_logits, self.network.read(seen, tokens))
                rows = beam_search(next_logits, len(part), self.rules)
                found += [self.words.decode(row) for row in rows]
        return found

    def says_yes(self, image: Tensor, questions: Sequence[str]) -> list[bool]:
        """Whether each answer is "yes", to the letter."""
        return [answer == "yes" for answer in self.answers(image, questions)]

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 3, side, side] on the device: squashed, not cropped."""
        side = self.shape.side
        small = resize(images.to(self.device), (side, side), BICUBIC).float() / 255
        mean = torch.tensor(CLIP_MEAN, device=self.device)[:, None, None]
        std = torch.tensor(CLIP_STD, device=self.device)[:, None, None]
        return (small - mean) / std

    def _next_logits(self, recalled: Recalled, tokens: Tensor) -> Tensor:
        return self.network.text_decoder(tokens.to(self.device), recalled)

    def _autocast(self) -> torch.autocast:
        on = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)


def _read(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A config; ConfigError where it is missing or no mapping."""
    try:
        found = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as problem:
        reason = str(problem).splitlines()[0]
        raise ConfigError(
            f"{file} is not a readable config of mPLUG: {reason}; give the folder of the model"
        ) from problem
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no fields; give the folder of the model")
    return found


def _shape_of(config: Mapping[str, Any], bert: Mapping[str, Any]) -> MplugShape:
    if (
        bert["hidden_act"] != "gelu"
        or bert.get("position_embedding_type", "absolute") != "absolute"
    ):
        raise ConfigError(
            f"config_bert.json asks for {bert['hidden_act']} and "
            f"{bert.get('position_embedding_type', 'absolute')} positions; only gelu and absolute "
            "ones are built: give the folder of the published model"
        )
    width = config["clip_vision_width"]
    return MplugShape(
        side=config["image_res"],
        patch=config["clip_vision_patch_size"],
        tower_width=width,
        tower_depth=config["clip_vision_layers"],
        tower_heads=width // HEAD_WIDTH,
        bert=BertShape(
            width=bert["hidden_size"],
            heads=bert["num_attention_heads"],
            inner=bert["intermediate_size"],
            context=bert.get("encoder_width", bert["hidden_size"]),
            epsilon=bert["layer_norm_eps"],
            vocabulary=bert["vocab_size"],
            positions=bert["max_position_embeddings"],
            segments=bert["type_vocab_size"],
        ),
        question_layers=bert["text_encoder_layers"],
        fusion_slots=bert["num_hidden_layers"],
        fusion_layers=bert["fusion_layers"],
        stride=bert.get("stride_layer", NEVER),
        answer_layers=bert["text_decode_layers"],
    )


def _load(file: Path, shape: MplugShape) -> MplugNetwork:
    """The network with the weights of the published file, in float32, frozen."""
    with torch.device("meta"):
        network = MplugNetwork(shape)
    tensors = read_tensors(file, WRAPPERS)
    # Layers of numbers that are not used, and attention to the image where all attend to all.
    numbers = range(shape.fusion_slots)
    spare = [f"{i}." for i in numbers if i < shape.first_fusion]
    spare += [f"{i}.crossattention." for i in numbers if shape.connects(i)]
    unused = (*UNUSED, *(f"fusion_encoder.encoder.layer.{name}" for name in spare))
    named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    fill(network, named, unused, where=str(file))
    frozen(network)
    return network
