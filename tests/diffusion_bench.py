"""Transformers of diffusion-bench as their checkpoints hold them: random weights by name and shape.

Written from the description of the layout; it shares no line with the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A transformer; `text` is (width, tokens) in place of classes, `decoder` None LightningDiT."""

    encoder: tuple[int, int, int] = (3, 32, 2)
    """blocks, width, heads"""
    decoder: tuple[int, int, int] | None = (1, 48, 2)
    channels: int = 4
    patch: int = 2
    side: int = 4
    """patches a side"""
    classes: int = 10
    text: tuple[int, int] | None = None
    cls: int | None = None
    meanflow: bool = False
    guidance: bool = False
    repa: int | None = None
    ratio: float = 4.0

    @property
    def names(self) -> tuple[str, ...]:
        return ("enc", "dec") if self.decoder else ("",)


PLAIN = Shape()
LIGHT = replace(PLAIN, decoder=None)
VARIANTS = {
    "ddt_label": PLAIN,
    "ddt_text": replace(PLAIN, text=(32, 16)),
    "ddt_reg": replace(PLAIN, cls=24),
    "ddt_meanflow": replace(PLAIN, meanflow=True),
    "ddt_ig": replace(PLAIN, guidance=True),
    "ddt_repa": replace(PLAIN, repa=24),
    "light_label": LIGHT,
    "light_ig": replace(LIGHT, guidance=True),
    "ddt_everything": replace(PLAIN, cls=24, meanflow=True, guidance=True, repa=24),
    "light_everything": replace(LIGHT, text=(20, 6), cls=24, meanflow=True, guidance=True, repa=24),
    "equal_widths": replace(PLAIN, decoder=(2, 32, 4), side=3, patch=1, channels=5),
}
"""the eight published ones, and more"""


def published(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a transformer with random weights, tables of positions included."""
    drawn = Drawn(torch.Generator().manual_seed(seed))
    drawn.embeddings(shape)
    depth, width, _ = shape.encoder
    drawn.blocks(shape, 0, shape.encoder, False)
    if shape.decoder:
        drawn.blocks(shape, depth, shape.decoder, True)
    drawn.heads(shape)
    if shape.repa:
        drawn.linear("repa_projector", shape.repa, width)
    told = 4 * (1 + shape.meanflow) + (shape.text[1] if shape.text else 8)
    for side, stack in zip(shape.names, (shape.encoder, shape.decoder), strict=False):
        assert stack is not None
        name = f"{side}_rope" if side else "rope"
        angles = positions(shape, stack[1] // stack[2], 0 if side == "dec" else told)
        drawn.weights |= {f"{name}.freqs_cos": angles.cos(), f"{name}.freqs_sin": angles.sin()}
    return drawn.weights


class Drawn:
    """Random weights, group by group."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.weights: dict[str, Tensor] = {}

    def draw(self, name: str, *size: int, scale: float = 0.3) -> None:
        self.weights[name] = torch.randn(size, generator=self.generator) * scale

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.draw(f"{name}.weight", outputs, inputs)
        self.draw(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self.draw(f"{name}.weight", width)
        self.weights[f"{name}.weight"] += 1

    def embeddings(self, shape: Shape) -> None:
        width, wide = shape.encoder[1], (shape.decoder or shape.encoder)[1]
        for name, size in (("s", width), ("x", wide)) if shape.decoder else (("x", width),):
            self.draw(f"{name}_embedder.proj.weight", size, shape.channels, *[shape.patch] * 2)
            self.draw(f"{name}_embedder.proj.bias", size)
        if wide != width:
            self.linear("s_projector", wide, width)
        for name in ("t_embedder", "t_abs_embedder")[: 1 + shape.meanflow]:
            self.draw(f"{name}.W", 256, scale=1.0)
            self.draw(f"{name}.learnable_tokens", 4, width)
            self.linear(f"{name}.mlp.0", width, 512)
            self.linear(f"{name}.mlp.2", width, width)
        if shape.text:
            self.norm("ctx_embedder.norm", shape.text[0])
            self.linear("ctx_embedder.proj", width, shape.text[0])
        else:
            self.draw("ctx_embedder.learnable_tokens", 8, width)
            self.draw("ctx_embedder.embedding_table.weight", shape.classes + 1, width)

    def blocks(self, shape: Shape, first: int, stack: tuple[int, int, int], decodes: bool) -> None:
        many, size, heads = stack
        hidden = int((2 / 3) * size * shape.ratio)
        for at in (f"blocks.{number}" for number in range(first, first + many)):
            for part in ("norm1", "norm2"):
                self.norm(f"{at}.{part}", size)
            for part in ("q", "k", "v", "proj"):
                self.linear(f"{at}.attn.{part}", size, size)
            for part in ("q_norm", "k_norm"):
                self.norm(f"{at}.attn.{part}", size // heads)
            self.linear(f"{at}.mlp.w1", hidden, size)
            self.linear(f"{at}.mlp.w2", hidden, size)
            self.linear(f"{at}.mlp.w3", size, hidden)
            if decodes:
                self.linear(f"{at}.adaln_modulation.1", 6 * size, size)

    def heads(self, shape: Shape) -> None:
        width, wide = shape.encoder[1], (shape.decoder or shape.encoder)[1]
        for name, size in (("final_layer", wide), ("base_final_layer", width))[
            : 1 + shape.guidance
        ]:
            self.norm(f"{name}.{'norm' if shape.decoder else 'norm_final'}", size)
            self.linear(f"{name}.linear", shape.channels * shape.patch**2, size)
            if shape.decoder:
                self.linear(f"{name}.adaln_modulation.1", 2 * size, size)
        if shape.cls:
            self.linear("final_layer.cls_linear", shape.cls, wide)
            for side, size in zip(shape.names, (width, wide), strict=False):
                end = f"_{side}" if side else ""
                self.linear(f"cls_in_proj{end}", size, shape.cls)
                self.norm(f"cls_in_norm{end}", size)


def positions(shape: Shape, head: int, told: int) -> Tensor:
    """Angles [cls + N + told, head], two by two, float32."""
    inverse = 1.0 / (10_000.0 ** (torch.arange(0, head // 2, 2).float() / (head // 2)))
    places = [(row, column) for row in range(shape.side) for column in range(shape.side)]
    image = torch.stack(
        [torch.cat([float(row) * inverse, float(column) * inverse]) for row, column in places]
    )
    still = torch.zeros(int(shape.cls is not None), head // 2), torch.zeros(told, head // 2)
    return torch.cat([still[0], image, still[1]]).repeat_interleave(2, dim=-1)


def fused(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with queries, keys and values in one layer, and both inputs of a SwiGLU."""
    found: dict[str, Tensor] = {}
    groups = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.w12": ("mlp.w1", "mlp.w2")}
    for name, tensor in weights.items():
        layer, _, leaf = name.rpartition(".")
        for one, parts in groups.items():
            before = layer.removesuffix(parts[0])
            if layer.endswith(f".{parts[0]}"):
                pieces = [weights[f"{before}{part}.{leaf}"] for part in parts]
                found[f"{before}{one}.{leaf}"] = torch.cat(pieces)
        if not any(layer.endswith(f".{part}") for parts in groups.values() for part in parts):
            found[name] = tensor
    return found


def padded(weights: Mapping[str, Tensor], multiple: int) -> dict[str, Tensor]:
    """The same with hidden units padded with zeros to a multiple."""
    found = dict(weights)
    for name, tensor in weights.items():
        layer, _, leaf = name.rpartition(".")
        if layer.endswith((".w1", ".w2")):
            more = -len(tensor) % multiple
            found[name] = torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])
        elif layer.endswith(".w3") and leaf == "weight":
            more = -tensor.shape[1] % multiple
            found[name] = torch.cat([tensor, tensor.new_zeros(len(tensor), more)], dim=1)
    return found
