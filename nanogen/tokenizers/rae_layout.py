"""The layout of diffusion-bench's RAE decoders, to ours and back, key for key.

weights = from_reference(read_reference(Path("decoder.pt")))
decoder = weights.module()
tensors = to_reference(decoder)             # what was read, name by name

decoder_embed                            in_proj
trainable_cls_token, decoder_pos_embed   reg_token, pos_embed
decoder_layers.i
  .layernorm_before, .layernorm_after    blocks.i.norm1, .norm2
  .attention.attention.query|key|value   blocks.i.attn.qkv, in this order
  .attention.output.dense                blocks.i.attn.proj
  .intermediate.dense, .output.dense     blocks.i.mlp.fc1, .fc2
decoder_norm, decoder_pred               norm, out_proj
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from nanogen.encoders.weights import fill, read_tensors
from nanogen.errors import ConfigError
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder

WRAPPERS = ("ema", "model", "state_dict", "weights")
"""keys of a training checkpoint and of plain files; averaged weights are what is published"""
HEADS = {768: 12, 1024: 16, 1152: 16}
"""width -> heads, which no shape tells"""
TOP = {
    "decoder_embed": "in_proj",
    "trainable_cls_token": "reg_token",
    "decoder_pos_embed": "pos_embed",
    "decoder_norm": "norm",
    "decoder_pred": "out_proj",
}
BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
JOINED = ("query", "key", "value")


@dataclass(frozen=True)
class Weights:
    """A decoder's shape and its tensors in our layout."""

    config: DecoderConfig
    tensors: Mapping[str, Tensor]
    where: str
    """what a message calls them"""

    def module(self) -> RaeDecoder:
        """The decoder, float32; ConfigError where a tensor is missing, unknown or misshapen."""
        with torch.device("meta"):
            decoder = RaeDecoder(self.config)
        fill(decoder, self.tensors, where=self.where)
        return decoder


def read_reference(file: Path) -> dict[str, Tensor]:
    """The decoder's tensors of a published file or of a whole training checkpoint, by the names of
    diffusion-bench. The encoder that a checkpoint holds is left: its own files have it.
    """
    tensors = read_tensors(file, WRAPPERS)
    inner = {n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder.")}
    if not inner:
        return tensors
    others = [name for name in tensors if not name.startswith(("decoder.", "encoder."))]
    if others:
        raise ConfigError(
            f"{file} holds {others[0]} beside a decoder and an encoder; give a checkpoint of a "
            "representation autoencoder"
        )
    return inner


def from_reference(
    tensors: Mapping[str, Tensor], where: str = "the file", heads: int | None = None
) -> Weights:
    """Our layout of a reference decoder's tensors; the shape of the decoder is read off them.

    `heads` is needed for a width without a published decoder. ConfigError for what is no decoder.
    """
    config = _config(tensors, where, heads)
    ours: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(
            r"decoder_layers\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", name
        )
        if found:
            target = f"blocks.{found[1]}.attn.qkv.{found[3]}"
            joined.setdefault(target, {})[found[2]] = tensor
        else:
            # An unknown name stays as it is, and is refused as such when the module is filled.
            ours[_translated(name)] = tensor
    for target, parts in joined.items():
        if set(parts) == set(JOINED):
            ours[target] = torch.cat([parts[part] for part in JOINED])
    return Weights(config, ours, where)


def to_reference(decoder: RaeDecoder) -> dict[str, Tensor]:
    """The tensors of a decoder by the names of diffusion-bench; loads there strictly."""
    names = {ours: theirs for theirs, ours in TOP.items()}
    inner = {ours: theirs for theirs, ours in BLOCK.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in decoder.state_dict().items():
        tensor = tensor.detach().clone()
        block = re.fullmatch(r"blocks\.(\d+)\.(.*)\.(weight|bias)", name)
        if block is None:
            head, dot, leaf = name.partition(".")
            found[f"{names[head]}{dot}{leaf}"] = tensor
        elif block[2] == "attn.qkv":
            before = f"decoder_layers.{block[1]}.attention.attention"
            for part, piece in zip(JOINED, tensor.chunk(3), strict=True):
                found[f"{before}.{part}.{block[3]}"] = piece.clone()
        else:
            found[f"decoder_layers.{block[1]}.{inner[block[2]]}.{block[3]}"] = tensor
    return found


def _translated(name: str) -> str:
    block = re.fullmatch(r"decoder_layers\.(\d+)\.(.*)\.(weight|bias)", name)
    if block and block[2] in BLOCK:
        return f"blocks.{block[1]}.{BLOCK[block[2]]}.{block[3]}"
    head, dot, leaf = name.partition(".")
    return f"{TOP[head]}{dot}{leaf}" if head in TOP else name


def _config(tensors: Mapping[str, Tensor], where: str, heads: int | None) -> DecoderConfig:
    """The shape that a reference decoder's tensors have."""
    try:
        width, channels = tensors["decoder_embed.weight"].shape
        places, patch = tensors["decoder_pos_embed"].shape[1] - 1, tensors["decoder_pred.bias"]
        hidden = len(tensors["decoder_layers.0.intermediate.dense.bias"])
        depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("decoder_layers."))
    except (KeyError, ValueError, IndexError) as problem:
        raise ConfigError(
            f"{where} is no RAE decoder of diffusion-bench ({problem} is not as it should be); "
            "give a file named decoder.pt, or a checkpoint of its training"
        ) from problem
    grid, side = isqrt(places), isqrt(len(patch) // 3)
    if grid**2 != places or 3 * side**2 != len(patch):
        raise ConfigError(
            f"{where} has {places} places and {len(patch)} values a token, neither of them a "
            "square; give a decoder of square images"
        )
    if heads is None and width not in HEADS:
        raise ConfigError(
            f"{where} is {width} wide: how many heads that has is known of "
            f"{', '.join(map(str, HEADS))} only; say it with --heads"
        )
    return DecoderConfig(
        channels=channels,
        grid=grid,
        patch=side,
        width=width,
        depth=depth,
        heads=heads or HEADS[width],
        hidden=hidden,
    )
