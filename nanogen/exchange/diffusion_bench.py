"""The weights of diffusion-bench's diffusion transformers, to ours and back, name by name.

    weights = from_reference(torch.load("ddt.pt", weights_only=True))
    weights.architecture                      # read off names and shapes
    backbone = weights.module(base_block=8)
    tensors = to_reference(weights)           # what was read, name by name

Names are the same on both sides, except for what stands in the tables below. Theirs hold the
tables of rotary positions, which say the grid; ours are computed. Some forks fuse layers, and pad
hidden units to a multiple of what a GPU likes: both are undone exactly.

    blocks.i.attn.qkv       attn.q, attn.k, attn.v     rows in this order
    blocks.i.mlp.w12        mlp.w1, mlp.w2             rows in this order
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogen.backbones.layers import CLASS_TOKENS, TIME_TOKENS
from nanogen.errors import DataError
from nanogen.exchange.architecture import BLOCK, DDT, Architecture
from nanogen.exchange.files import tensors_of
from nanogen.exchange.inference import architecture_of
from nanogen.exchange.padding import unpadded
from nanogen.exchange.rotary import tables

FUSED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.w12": ("mlp.w1", "mlp.w2")}
"""fused layer -> the layers in it, in the order of their rows"""
PROJECTOR = "repa_projector"
"""the linear layer that REPA reads features with: no part of the backbone"""
LISTED = 3
"""names of a kind that a message holds"""


@dataclass(frozen=True)
class Weights:
    """A network of diffusion-bench in our names."""

    architecture: Architecture
    backbone: Mapping[str, Tensor]
    """every weight of the backbone, and no other"""
    projector: Mapping[str, Tensor]
    """`weight` [z, D] and `bias` [z] of REPA's projector; empty where there is none"""

    def module(self, base_block: int = BLOCK) -> nn.Module:
        """The backbone in float32, with these weights.

        `base_block` is the encoder block, from 1, that a head of internal guidance reads;
        ConfigError where there is no such block.
        """
        backbone = self.architecture.build(base_block)
        backbone.load_state_dict(dict(self.backbone), strict=True)
        return backbone

    def repa_projector(self) -> nn.Linear | None:
        """REPA's projector of the tokens after some encoder block (8 in diffusion-bench, which no
        weight tells), in float32; None where there is none.
        """
        if not self.projector:
            return None
        outputs, inputs = self.projector["weight"].shape
        projector = nn.utils.skip_init(nn.Linear, inputs, outputs)
        projector.load_state_dict(dict(self.projector), strict=True)
        return projector


def from_reference(
    tensors: Mapping[str, Tensor], where: str = "the file", mlp_ratio: float | None = None
) -> Weights:
    """The network that a state dict of diffusion-bench holds, to the last tensor.

    Everything is read off names and shapes; `mlp_ratio` is needed only where hidden units are
    padded and the ratio is not 4. DataError, in one line, where a tensor is missing, unknown or
    misshapen.
    """
    split = unfused(tensors_of(tensors, where), where)
    architecture = architecture_of(split, where, mlp_ratio)
    plain = unpadded(split, architecture)
    expected = shapes_of(architecture)
    check(expected, {name: tensor.shape for name, tensor in plain.items()}, where)
    _check_positions(architecture, plain, where)
    inner = f"{PROJECTOR}."
    return Weights(
        architecture,
        {n: t for n, t in plain.items() if not n.startswith((inner, *_rotary(architecture)))},
        {n.removeprefix(inner): t for n, t in plain.items() if n.startswith(inner)},
    )


def to_reference(weights: Weights) -> dict[str, Tensor]:
    """The state dict that diffusion-bench loads strictly."""
    found = dict(weights.backbone)
    found |= {f"{PROJECTOR}.{name}": tensor for name, tensor in weights.projector.items()}
    return found | positions(weights.architecture)


def positions(architecture: Architecture) -> dict[str, Tensor]:
    """The tables of rotary positions that a network of diffusion-bench stores, bit for bit."""
    before = 0 if architecture.leaf is None else 1
    encoder, decoder = architecture.encoder, architecture.decoder
    found = {}
    first, *second = _rotary(architecture)
    after = context_tokens(architecture)
    for name, tower, behind in ((first, encoder, after), *((n, decoder, 0) for n in second)):
        assert tower is not None
        turn = tables(architecture.side, tower.width // tower.heads, before, behind)
        found |= {f"{name}.freqs_cos": turn[0], f"{name}.freqs_sin": turn[1]}
    return found


def context_tokens(architecture: Architecture) -> int:
    """Tokens that follow those of the image: times, then the class or the longest caption."""
    times = TIME_TOKENS * (2 if architecture.interval else 1)
    condition = architecture.condition
    return times + (condition.tokens if condition.classes is None else CLASS_TOKENS)


def unfused(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same with fused layers taken apart; DataError where that does not come out even."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        fused = next((key for key in FUSED if layer.endswith(f".{key}")), None)
        if fused is None:
            pieces = {name: tensor}
        else:
            inner = FUSED[fused]
            if not tensor.ndim or len(tensor) % len(inner):
                raise DataError(
                    f"{where}: {name} is {list(tensor.shape)}, which does not part into "
                    f"{', '.join(inner)}; give the file of a fused layer as it was saved"
                )
            before = layer.removesuffix(fused)
            # Copies: views of one tensor cannot be saved as several.
            pieces = {
                f"{before}{part}.{leaf}": piece.clone()
                for part, piece in zip(inner, tensor.chunk(len(inner)), strict=True)
            }
        twice = found.keys() & pieces.keys()
        if twice:
            raise DataError(f"{where} holds {min(twice)} twice, fused and alone; give one of them")
        found |= pieces
    return found


def check(expected: Mapping[str, torch.Size], given: Mapping[str, torch.Size], where: str) -> None:
    """DataError, in one line with the first names and the counts, unless names and shapes agree."""
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys())
    other = [
        f"{name} is {list(given[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": other}
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED])}{' ...' if len(names) > LISTED else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise DataError(
            f"{where} does not hold these weights to the last tensor; {'; '.join(problems)}; give "
            "the checkpoint as diffusion-bench saved it"
        )


def shapes_of(architecture: Architecture) -> dict[str, torch.Size]:
    """Every name of a state dict of diffusion-bench, with its shape."""
    with torch.device("meta"):
        backbone = architecture.build(base_block=1)
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    shapes |= {name: tensor.shape for name, tensor in positions(architecture).items()}
    if architecture.projector is not None:
        width = architecture.projector
        shapes[f"{PROJECTOR}.weight"] = torch.Size((width, architecture.encoder.width))
        shapes[f"{PROJECTOR}.bias"] = torch.Size((width,))
    return shapes


def _check_positions(architecture: Architecture, tensors: Mapping[str, Tensor], where: str) -> None:
    """DataError where the stored positions are not those that our rotary layers compute."""
    for name, table in positions(architecture).items():
        # Half precision keeps three digits; another base or grid is far further away.
        if not torch.allclose(tensors[name].float(), table, rtol=0, atol=1e-2):
            side = architecture.side
            raise DataError(
                f"{where}: {name} holds other positions than a grid of {side}x{side} tokens has; "
                "it is of a network that this package does not have"
            )


def _rotary(architecture: Architecture) -> tuple[str, ...]:
    return ("enc_rope", "dec_rope") if architecture.kind == DDT else ("rope",)
