"""What a state dict of diffusion-bench says of its network.

Widths and depths are shapes; heads follow from the width of the norm of queries, the grid and the
length of captions from the tables of rotary positions. What is missing or strange beyond that is
found when all names and shapes are compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from nanogen.backbones.layers import CLASS_TOKENS, TIME_TOKENS
from nanogen.errors import DataError
from nanogen.exchange.architecture import DDT, LIGHTNING, Architecture, Tower
from nanogen.exchange.padding import Blocks, mlp_ratio
from nanogen.exchange.rotary import turned_rows
from nanogen.types import ConditionSpec, LatentSpec

DECODES = re.compile(r"blocks\.(\d+)\.adaln_modulation\.")
BLOCK = re.compile(r"blocks\.(\d+)\.")
ONLY_DDT = ("s_embedder.", "dec_rope.", "s_projector.", "enc_rope.")


def architecture_of(tensors: Mapping[str, Tensor], where: str, ratio: float | None) -> Architecture:
    """The architecture of weights whose layers are not fused. `ratio` is their mlp_ratio where it
    is known. DataError where what says it is missing or makes no sense.
    """
    return _Inference(tensors, where).architecture(ratio)


class _Inference:
    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where
        decoding = [int(m[1]) for name in tensors if (m := DECODES.match(name))]
        self.ddt = bool(decoding) or any(name.startswith(ONLY_DDT) for name in tensors)
        numbers = {int(m[1]) for name in tensors if (m := BLOCK.match(name))}
        self.blocks = len(numbers)
        if numbers and max(numbers) >= self.blocks:
            gap = next(number for number in range(self.blocks) if number not in numbers)
            raise DataError(
                f"{where} holds {self.blocks} blocks, numbered up to {max(numbers)}, but not block "
                f"{gap}; give a checkpoint as diffusion-bench saved it"
            )
        self.first = min(decoding, default=self.blocks)
        """number of the first block of the decoder"""
        self._require()
        self._count_tokens()

    def architecture(self, ratio: float | None) -> Architecture:
        stacks = self._stacks()
        (encoder, _), *second = stacks
        leaf = self._leaf()
        side, after = self._grid(leaf is not None)
        return Architecture(
            kind=DDT if self.ddt else LIGHTNING,
            encoder=encoder,
            decoder=second[0][0] if second else None,
            mlp_ratio=mlp_ratio(self.tensors, stacks, self.where, ratio),
            latent=self._latent(side),
            condition=self._condition(after),
            leaf=leaf,
            interval=self._has("t_abs_embedder."),
            base=self._has("base_final_layer."),
            projector=self._width("repa_projector.weight", 0)
            or self._width("repa_projector.bias", 0),
        )

    def _require(self) -> None:
        """DataError unless all that is read below is there and has axes."""
        needed = [f"{self._embedder}.proj.weight", "blocks.0.attn.q_norm.weight"]
        if self.ddt:
            needed += ["x_embedder.proj.weight", f"blocks.{self.first}.attn.q_norm.weight"]
        needed += [f"{self._rotary}.freqs_cos", f"{self._rotary}.freqs_sin"]
        needed += ["t_embedder.learnable_tokens"]
        text = self._has("ctx_embedder.proj.")
        needed += [f"ctx_embedder.{'proj' if text else 'embedding_table'}.weight"]
        axes = {"proj.weight": 4, "freqs_cos": 2, "freqs_sin": 2, "learnable_tokens": 2}
        missing = [name for name in needed if name not in self.tensors]
        if missing or not self.blocks:
            raise DataError(
                f"{self.where} is no diffusion transformer of diffusion-bench, or not all of it: "
                f"it lacks {len(missing)} of the weights that say what it is: "
                f"{', '.join(missing[:3]) or 'blocks.0'}{' ...' if len(missing) > 3 else ''}; "
                "give a checkpoint as diffusion-bench saved it"
            )
        for name in needed:
            wanted = next((n for end, n in axes.items() if name.endswith(end)), None)
            wanted = 2 if name.startswith("ctx_") else wanted or 1
            if self.tensors[name].ndim != wanted or not self.tensors[name].numel():
                raise DataError(
                    f"{self.where}: {name} is {list(self.tensors[name].shape)}, but it should have "
                    f"{wanted} axes; give a checkpoint as diffusion-bench saved it"
                )

    def _count_tokens(self) -> None:
        """DataError where a time or a class has other than the published number of tokens."""
        tokens = {
            "t_embedder": TIME_TOKENS,
            "t_abs_embedder": TIME_TOKENS,
            "ctx_embedder": CLASS_TOKENS,
        }
        for name, count in tokens.items():
            found = self._width(f"{name}.learnable_tokens", 0)
            if found not in (None, count):
                raise DataError(
                    f"{self.where}: {name} makes {found} tokens; a checkpoint of diffusion-bench "
                    f"can be converted with {TIME_TOKENS} tokens of a time and {CLASS_TOKENS} of a "
                    "class, as all published ones have"
                )

    @property
    def _embedder(self) -> str:
        return "s_embedder" if self.ddt else "x_embedder"

    @property
    def _rotary(self) -> str:
        return "enc_rope" if self.ddt else "rope"

    def _has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)

    def _width(self, name: str, axis: int) -> int | None:
        tensor = self.tensors.get(name)
        return None if tensor is None or tensor.ndim <= axis else tensor.shape[axis]

    def _stacks(self) -> list[Blocks]:
        stacks: list[Blocks] = [(self._tower(self._embedder, 0, self.first), range(self.first))]
        if self.ddt:
            numbers = range(self.first, self.blocks)
            stacks.append((self._tower("x_embedder", self.first, self.blocks), numbers))
        return stacks

    def _tower(self, embedder: str, first: int, last: int) -> Tower:
        width = self.tensors[f"{embedder}.proj.weight"].shape[0]
        head = len(self.tensors[f"blocks.{first}.attn.q_norm.weight"])
        if last <= first or width % head or head % 4:
            raise DataError(
                f"{self.where}: blocks {first} to {last - 1} have width {width} and heads of "
                f"{head}; in diffusion-bench a head has a multiple of 4, which divides the width "
                "of the block"
            )
        return Tower(last - first, width, width // head)

    def _leaf(self) -> int | None:
        """Width of REG's class token."""
        name = "cls_in_proj_enc" if self.ddt else "cls_in_proj"
        width = self._width(f"{name}.weight", 1)
        return width or self._width("final_layer.cls_linear.weight", 0)

    def _grid(self, leaf: bool) -> tuple[int, int]:
        """Patches a side, and how many tokens follow those of the image."""
        cosine, sine = (self.tensors[f"{self._rotary}.freqs_{part}"] for part in ("cos", "sin"))
        if cosine.shape != sine.shape:
            raise DataError(
                f"{self.where}: {self._rotary}.freqs_cos is {list(cosine.shape)}, but freqs_sin is "
                f"{list(sine.shape)}; give a checkpoint as diffusion-bench saved it"
            )
        before = int(leaf)
        tokens = max(turned_rows(cosine, sine) - before, 1)
        side = isqrt(tokens)
        if side**2 != tokens:
            raise DataError(
                f"{self.where}: {self._rotary}.freqs_cos has positions of {tokens} image tokens, "
                "which are no square; only square images can be converted"
            )
        return side, len(cosine) - before - tokens

    def _latent(self, side: int) -> LatentSpec:
        _, channels, patch, _ = self.tensors[f"{self._embedder}.proj.weight"].shape
        return LatentSpec(channels, side * patch, side * patch, patch)

    def _condition(self, after: int) -> ConditionSpec:
        """`after`: how many tokens follow those of the image."""
        if not self._has("ctx_embedder.proj."):
            return ConditionSpec(
                classes=len(self.tensors["ctx_embedder.embedding_table.weight"]) - 1
            )
        times = sum(
            self._width(f"{name}.learnable_tokens", 0) or 0
            for name in ("t_embedder", "t_abs_embedder")
        )
        width = self.tensors["ctx_embedder.proj.weight"].shape[1]
        return ConditionSpec(width=width, tokens=max(after - times, 0))
