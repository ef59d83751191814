"""Vision encoders as their repositories hold them: tiny and random, or at full size without memory.

    folder = write_encoder(tmp_path / "dinov2", "dinov2-vit-b")     # config.json and safetensors
    encoder = open_encoder("dinov2-vit-b", 256, str(folder))
    network = full_encoder("dinov2-vit-b")                          # without memory: only shapes

    encoder = open_tiny("pe-vit-b")                                 # any row of any family

`FIXTURES` says how a tiny folder of each family that transformers loads is written, and `OPENERS`
how a tiny encoder of another family is made: a new family needs an entry in one of them. Towers of
images are written as parts of the models that they come from, as they are on the hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from torch import nn

from nanogen.encoders.perception_transformer import PerceptionTransformer, Shape
from nanogen.encoders.vision import VisionEncoder, families, open_encoder, parse

Fields = dict[str, Any]

WIDTH, DEPTH = 32, 4
SMALL: Fields = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
TOWER: Fields = {**SMALL, "intermediate_size": 48}
TEXT: Fields = {
    **TOWER,
    "vocab_size": 40,
    "bos_token_id": 38,
    "eos_token_id": 39,
    "pad_token_id": 0,
}
SEVERAL = 12
"""blocks of families that average over several, so that the published ones exist"""


@dataclass(frozen=True)
class Fixture:
    """How a family is written: the class that its repositories were saved from, and its fields."""

    model: str
    tiny: Fields
    loads: str
    """the class that the encoder is loaded with"""


DINOV2 = Fixture(
    "Dinov2WithRegistersModel",
    {**SMALL, "num_register_tokens": 4, "image_size": 518, "patch_size": 14},
    "Dinov2WithRegistersModel",
)
PLAIN_DINOV2 = Fixture("Dinov2Model", {**SMALL, "image_size": 518, "patch_size": 14}, "Dinov2Model")
DINOV3 = Fixture(
    "DINOv3ViTModel", {**TOWER, "num_register_tokens": 4, "patch_size": 16}, "DINOv3ViTModel"
)
SIGLIP = Fixture(
    "SiglipModel",
    {"vision_config": {**TOWER, "image_size": 256, "patch_size": 16}, "text_config": TEXT},
    "SiglipVisionModel",
)
DECODER: Fields = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
MAE = Fixture(
    "ViTMAEForPreTraining",
    {**TOWER, **DECODER, "image_size": 224, "patch_size": 16},
    "ViTMAEModel",
)
CLIP = Fixture(
    "CLIPModel",
    {
        "vision_config": {**TOWER, "image_size": 224, "patch_size": 14},
        "text_config": TEXT,
    },
    "CLIPVisionModel",
)
TIPS = Fixture(
    "Tipsv2Model",
    {"vision_config": {**SMALL, "image_size": 448}, "text_config": TEXT},
    "Tipsv2VisionModel",
)
CONVNEXT = Fixture(
    "ConvNextV2ForImageClassification",
    {"hidden_sizes": [8, 8, 16, WIDTH], "depths": [1, 1, 1, 1]},
    "ConvNextV2Model",
)
DEEP = {"num_hidden_layers": SEVERAL}
FIXTURES: dict[str, Fixture] = {
    "dinov2": DINOV2,
    "dinov2mls": replace(DINOV2, tiny={**DINOV2.tiny, **DEEP}),
    "dinov3": DINOV3,
    "dinov3mls": replace(DINOV3, tiny={**DINOV3.tiny, **DEEP}),
    "siglip2": SIGLIP,
    "siglip2mls": replace(
        SIGLIP,
        tiny={**SIGLIP.tiny, "vision_config": {**SIGLIP.tiny["vision_config"], **DEEP}},
    ),
    "mae": MAE,
    "webssl": Fixture("Dinov2Model", {**SMALL, "image_size": 224, "patch_size": 14}, "Dinov2Model"),
    "jepa": Fixture("IJepaModel", {**TOWER, "image_size": 224, "patch_size": 14}, "IJepaModel"),
    "clip": CLIP,
    "tipsv2": TIPS,
    "convnextv2": CONVNEXT,
}
"""registered family -> how a tiny folder of it is written"""


def open_tiny(name: str, image_size: int = 0) -> VisionEncoder:
    """A tiny encoder of any row that is not unavailable; 0: for images of `size_of` px."""
    family = family_of(parse(name)[0])
    size = image_size or size_of(family)
    if family in FIXTURES:
        return open_encoder(name, size, str(tiny_folder(name)))
    if family in OPENERS:
        return OPENERS[family](name, size)
    pytest.fail(
        f"family {family!r} of encoders has no tiny model to test it with: add an entry to "
        "FIXTURES (transformers loads it) or to OPENERS in tests/tiny_encoders.py"
    )


def size_of(family: str) -> int:
    """Pixels a side of the images that a family is tested with."""
    return 28 if family == "animals" else 256


def _perception(name: str, image_size: int) -> VisionEncoder:
    plain, _ = parse(name)
    family: Any = families()[family_of(plain)]
    tiny = Shape(width=16, depth=2, heads=2, hidden=24, patch=2)
    file = Path(_scratch().name) / f"{plain}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = PerceptionTransformer(tiny, 14).state_dict()
        tensors = {key: tensor + 0.2 * torch.randn_like(tensor) for key, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, file)
    with mock.patch.dict(family.shapes, {plain: tiny}):
        return open_encoder(name, image_size, str(file))


OPENERS: dict[str, Callable[[str, int], VisionEncoder]] = {
    "animals": open_encoder,
    "pe": _perception,
    "spatialpe": _perception,
    "langpe": _perception,
}
"""registered family that transformers does not load -> how a tiny encoder of a row is opened"""


def write_encoder(folder: Path, name: str, seed: int = 0, **fields: Any) -> Path:
    """A tiny random model in `folder`, as `save_pretrained` writes it; `fields` replace its own.

    Nothing is left at its initial value: norms of ones and zeros would hide whether they are used.
    """
    plain, options = parse(name)
    fixture = PLAIN_DINOV2 if "woreg" in options else FIXTURES[family_of(plain)]
    patch = {"patch_size": 14} if plain == "mae-vit-h" else {}
    tiny = {**fixture.tiny, **patch, **fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _model(fixture.model, tiny)
        for parameter in network.parameters():
            spread = 0.1 if parameter.ndim > 1 else 0.3
            parameter.data.add_(spread * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return folder


@cache
def tiny_folder(name: str) -> Path:
    """`write_encoder` once, in a folder that is gone at exit."""
    return write_encoder(Path(_scratch().name) / name, name)


def without(folder: Path, target: Path, weight: str) -> Path:
    """A copy of a folder whose file lacks one weight."""
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors[weight]
    safetensors.torch.save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def original(name: str, folder: Path) -> nn.Module:
    """The network that an encoder reads from, loaded by transformers alone, in eval mode."""
    plain, options = parse(name)
    fixture = PLAIN_DINOV2 if "woreg" in options else FIXTURES[family_of(plain)]
    return _class(fixture.loads).from_pretrained(folder).eval()


def full_encoder(name: str) -> nn.Module:
    """The network of a row at its published size, on the meta device."""
    fixture = FIXTURES[family_of(name)]
    with torch.device("meta"):
        return _model(fixture.loads, _full(name))


def family_of(plain: str) -> str:
    """The registered family of a row."""
    return next(
        family for family, known in families().items() if plain in {row.name for row in known.rows}
    )


def _vit(width: int, depth: int, heads: int, **fields: Any) -> Fields:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        **fields,
    }


S, B, L = _vit(384, 12, 6), _vit(768, 12, 12), _vit(1024, 24, 16)
G = _vit(1536, 40, 24, use_swiglu_ffn=True)
SO = _vit(1152, 27, 16)
GATED: Fields = {"use_gated_mlp": True}
FULL: dict[str, dict[str, Fields]] = {
    "dinov2": {"s": S, "b": B, "l": L, "g": G},
    "dinov3": {
        "s16": {**S, "intermediate_size": 1536},
        "s16plus": {**S, **GATED, "intermediate_size": 1536},
        "b16": {**B, "intermediate_size": 3072},
        "l16": {**L, "intermediate_size": 4096},
        "h16plus": _vit(1280, 32, 20, **GATED, intermediate_size=5120),
        "7b16": _vit(
            4096, 40, 32, **GATED, intermediate_size=8192, query_bias=False, value_bias=False
        ),
    },
    "siglip2": {
        "b": {**B, "intermediate_size": 3072},
        "l": {**L, "intermediate_size": 4096},
        "so400m": {**SO, "intermediate_size": 4304},
        "g": _vit(1536, 40, 16, intermediate_size=6144),
    },
    "mae": {
        "b": {**B, "intermediate_size": 3072, "patch_size": 16},
        "l": {**L, "intermediate_size": 4096, "patch_size": 16},
        "h": _vit(1280, 32, 16, intermediate_size=5120, patch_size=14),
    },
    "webssl": {
        "dino300m": _vit(1024, 24, 16, use_swiglu_ffn=True),
        "dino1b": G,
        "dino2b": _vit(2688, 24, 21, use_swiglu_ffn=True),
        "dino3b": _vit(3072, 26, 24, use_swiglu_ffn=True),
        "dino5b": _vit(3584, 32, 28, use_swiglu_ffn=True),
        "dino7b": _vit(4096, 32, 32, use_swiglu_ffn=True),
    },
    "jepa": {"h": _vit(1280, 32, 16, intermediate_size=5120)},
    "clip": {"l": {**L, "intermediate_size": 4096}},
    "tipsv2": {
        "b14": B,
        "l14": L,
        "so14": {**SO, "mlp_ratio": 4304 / 1152},
        "g14": G,
    },
    "convnextv2": {
        "nano": {"hidden_sizes": [80, 160, 320, 640], "depths": [2, 2, 8, 2]},
        "tiny": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
        "base": {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
        "large": {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
    },
}
"""family -> size -> the fields of its published config that decide shapes"""


def _full(name: str) -> Fields:
    """Fields of a row's tower of images: those of the tiny one, at full size."""
    family = family_of(name)
    sizes = FULL[family.removesuffix("mls")]
    size = name.split("-")[2]
    if family == "webssl":
        size = size.partition("_")[0]
    tiny = FIXTURES[family].tiny
    return {**tiny.get("vision_config", tiny), **sizes[size]}


def _model(name: str, fields: Fields) -> nn.Module:
    model = _class(name)
    return model(model.config_class(**fields))


def _class(name: str) -> Any:
    return getattr(pytest.importorskip("transformers"), name)


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-encoders-")
