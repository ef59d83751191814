"""The Perception Encoder in its three alignments: Core (contrastive), Spatial and Lang.

    open_encoder("pe-vit-l", image_size=256)            tokens of the last block
    open_encoder("pe-vit-l[norm]", image_size=256)      after the final LayerNorm, Core only
    open_encoder("spatialpe-vit-l", image_size=256, path="PE-Spatial-L14-448.pt")

Bolya et al. 2025 (arXiv 2504.13181). An image of 256 px is fed at 16 patches a side whatever the
patch, so that every model gives 16 x 16 tokens; the learned positions are resized to that grid.
Files are `<name>.pt` of `facebook/<name>` on the hub, or the same as .safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nanogen.encoders.perception_transformer import (
    PerceptionTransformer,
    Shape,
    resized_positions,
)
from nanogen.encoders.vision import EncoderRow, Options, VisionEncoder, VisionFeatures
from nanogen.encoders.weights import fill, locate_file, read_tensors
from nanogen.errors import ConfigError
from nanogen.fingerprint import digest_of_module
from nanogen.registry import register

TOWER = "visual."
"""before the names of a vision tower in a file that holds a text tower too"""
UNUSED = ("attn_pool.", "proj")
"""what pools a file's tokens into one vector, which no user of patch tokens needs"""
FINAL_NORM = "ln_post."
POSITIONS = "positional_embedding"
TOKENS = 16
"""patches a side for each 256 px of an image"""


class PerceptionEncoder(VisionEncoder):
    """A transformer with the preprocessing of its family."""

    def __init__(self, name: str, network: PerceptionTransformer, image_size: int) -> None:
        """`network` holds its weights and positions for the grid of `image_size`."""
        super().__init__()
        self.name = name
        self.width = network.shape.width
        self.grid = grid_of(name, image_size)
        self.side = self.grid * network.shape.patch
        self.network = network
        self.fingerprint = f"{name}-{image_size}/{digest_of_module(network)}"
        self.requires_grad_(False)
        self.train(False)

    def forward(self, images: Tensor) -> VisionFeatures:
        """Patches and, but for the models without one, the class token: both after the last block,
        and with `norm` after the final LayerNorm.
        """
        size = (self.side, self.side)
        fed = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        tokens = self.network(fed * 2 - 1)
        prefix = int(self.network.shape.class_token)
        return VisionFeatures(tokens[:, prefix:], tokens[:, 0] if prefix else None)


class _Family:
    """What the three families share; each gives its rows and the shape of each row."""

    rows: ClassVar[tuple[EncoderRow, ...]]
    options: ClassVar[tuple[str, ...]] = ()
    shapes: ClassVar[Mapping[str, Shape]]

    @classmethod
    def open(
        cls, row: EncoderRow, options: Options, image_size: int, path: str
    ) -> PerceptionEncoder:
        """The encoder of a row; `path` may be a file, or a folder that holds it."""
        if options.get("norm"):
            raise ConfigError(f"encoder {row.name}: the option norm takes no value")
        model = row.hub.rpartition("/")[2]
        file = locate_file(row.hub, (f"{model}.pt", f"{model}.safetensors"), path)
        name = row.name + (f"[{','.join(options)}]" if options else "")
        shape = replace(cls.shapes[row.name], final_norm="norm" in options)
        # Files of a family without the option have no such norm: there it is an unknown tensor.
        unused = (*UNUSED, FINAL_NORM) if "norm" in cls.options else UNUSED
        return PerceptionEncoder(
            name, loaded(shape, grid_of(name, image_size), file, unused), image_size
        )


def _row(name: str, hub: str, shape: Shape, parameters: int) -> EncoderRow:
    return EncoderRow(
        name=name,
        hub=f"facebook/{hub}",
        licence="Apache-2.0",
        width=shape.width,
        patch=shape.patch,
        side=TOKENS * shape.patch,
        parameters=parameters,
    )


_B = Shape(width=768, depth=12, heads=12, hidden=3072, patch=16)
_L = Shape(width=1024, depth=24, heads=16, hidden=4096, patch=14)
_G = Shape(width=1536, depth=50, heads=16, hidden=8960, patch=14, class_token=False)


@register("encoder", "pe", summary="Perception Encoder, Core: contrastive with text")
class PerceptionCore(_Family):
    options = ("norm",)
    shapes = {
        "pe-vit-t": Shape(width=192, depth=12, heads=3, hidden=768, patch=16),
        "pe-vit-s": Shape(width=384, depth=12, heads=6, hidden=1536, patch=16),
        "pe-vit-b": _B,
        "pe-vit-l": _L,
        "pe-vit-g": _G,
    }
    rows = (
        _row("pe-vit-t", "PE-Core-T16-384", shapes["pe-vit-t"], 5_597_184),
        _row("pe-vit-s", "PE-Core-S16-384", shapes["pe-vit-s"], 21_811_200),
        _row("pe-vit-b", "PE-Core-B16-224", shapes["pe-vit-b"], 85_797_888),
        _row("pe-vit-l", "PE-Core-L14-336", shapes["pe-vit-l"], 303_505_408),
        _row("pe-vit-g", "PE-Core-G14-448", shapes["pe-vit-g"], 1_851_733_504),
    )


@register("encoder", "spatialpe", summary="Perception Encoder, Spatial: for dense prediction")
class PerceptionSpatial(_Family):
    shapes = {
        "spatialpe-vit-b": _B,
        "spatialpe-vit-l": _L,
        "spatialpe-vit-g": replace(_G, layer_scale=True),
    }
    rows = (
        _row("spatialpe-vit-b", "PE-Spatial-B16-512", shapes["spatialpe-vit-b"], 86_433_792),
        _row("spatialpe-vit-l", "PE-Spatial-L14-448", shapes["spatialpe-vit-l"], 303_964_160),
        _row("spatialpe-vit-g", "PE-Spatial-G14-448", shapes["spatialpe-vit-g"], 1_851_887_104),
    )


@register("encoder", "langpe", summary="Perception Encoder, Lang: aligned to a language model")
class PerceptionLang(_Family):
    shapes = {
        "langpe-vit-l": replace(_L, depth=23, layer_scale=True),
        "langpe-vit-g": replace(_G, depth=47, layer_scale=True),
    }
    rows = (
        _row("langpe-vit-l", "PE-Lang-L14-448", shapes["langpe-vit-l"], 291_415_040),
        _row("langpe-vit-g", "PE-Lang-G14-448", shapes["langpe-vit-g"], 1_740_922_624),
    )


def loaded(shape: Shape, grid: int, file: Path, unused: tuple[str, ...]) -> PerceptionTransformer:
    """The network with the weights of a file, its positions resized to the grid."""
    tensors = read_tensors(file)
    if any(name.startswith(TOWER) for name in tensors):
        tensors = {n.removeprefix(TOWER): t for n, t in tensors.items() if n.startswith(TOWER)}
    try:
        table = resized_positions(tensors[POSITIONS], grid, shape.class_token)
    except KeyError:
        raise ConfigError(f"{file} holds no {POSITIONS}; give the file of this model") from None
    except ValueError as problem:
        raise ConfigError(f"{file} is of another model: {problem}") from problem
    # Without memory of its own: a billion random numbers are not drawn for nothing.
    with torch.device("meta"):
        network = PerceptionTransformer(shape, grid)
    fill(network, {**tensors, POSITIONS: table}, unused, where=str(file))
    return network


def grid_of(name: str, image_size: int) -> int:
    """Patches a side for images of a size; ConfigError where there is no such grid."""
    if image_size < 256 or image_size % 256:
        raise ConfigError(
            f"encoder {name!r} takes images of 256 px or a multiple, not {image_size}"
        )
    return TOKENS * (image_size // 256)
