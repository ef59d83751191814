"""The five networks of FDr and MIND besides Inception, tiny and random, in the files of timm.

    with monkeypatch.context() as patch:
        shrink(patch)                               # registered networks of the tiny shapes
        files = prepare_tiny(tmp_path)              # asset name -> file
        for name, file in files.items():
            store.prepare(ASSETS[name], file)

Every weight follows from a recipe, so that timm's own classes get the same values anywhere:
`python tests/tiny_fdr.py` prints the features that timm gives them, where timm is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import tiny_inception
import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.encoders import distance_networks, timm_convnext
from nanogen.encoders.distance_networks import DistanceNetwork
from nanogen.metrics import fdr, mind
from nanogen.metrics.reference import load_encoder
from nanogen.metrics.spaces import SPACES
from nanogen.store import Asset

WIDTH, DEPTH, HEADS = 32, 2, 2
SIDE = 32
"""pixels a side that tiny networks see within metrics: 3 x 3 patches of 14"""


@dataclass(frozen=True)
class Tiny:
    """A network, and how timm is told to build it as small as its shape here."""

    network: type[DistanceNetwork]
    shape: Any
    timm: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.network.weights.name


def _transformer(network: type[DistanceNetwork], hidden: int) -> Tiny:
    shape = replace(network.shape, width=WIDTH, depth=DEPTH, heads=HEADS, hidden=hidden)
    fields = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return Tiny(network, shape, {**fields, "dynamic_img_size": True, "dynamic_img_pad": True})


CONVNEXT = timm_convnext.Shape(widths=(8, 12, 16, 32), depths=(1, 1, 2, 1))
TINY = (
    Tiny(
        distance_networks.ConvNextV2Base,
        CONVNEXT,
        {"dims": CONVNEXT.widths, "depths": CONVNEXT.depths},
    ),
    _transformer(distance_networks.DinoV2Large, 128),
    _transformer(distance_networks.MaeLarge, 128),
    # 4304 / 1152, as timm writes it, of 32
    _transformer(distance_networks.SigLip2So400m, 119),
    _transformer(distance_networks.ClipLarge, 128),
)
ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        *(tiny.network.weights for tiny in TINY),
        *(space.statistics for space in SPACES.values()),
        mind.VALIDATION,
    )
}


def shrink_networks(patch: pytest.MonkeyPatch) -> None:
    """Make the registered networks tiny."""
    for tiny in TINY:
        patch.setattr(tiny.network, "shape", tiny.shape)


def shrink(patch: pytest.MonkeyPatch, inception: int = tiny_inception.POOL) -> None:
    """Make the networks tiny and fast, and the metrics content with their features and few samples.

    `inception`: features of whatever stands in for Inception.
    """
    shrink_networks(patch)
    for tiny in TINY:
        patch.setattr(tiny.network, "side", SIDE)
    spaces = {
        key: replace(space, features=inception if key == "inception" else WIDTH)
        for key, space in SPACES.items()
    }
    for key, metric in fdr.RATIOS.items():
        patch.setattr(metric, "spaces", (spaces[key],))
        patch.setattr(metric, "minimum", fdr.needed(spaces[key].features))
    for metric in fdr.DISTANCES.values():
        patch.setattr(metric, "minimum", fdr.needed(WIDTH))
        patch.setattr(metric, "features", WIDTH)
    patch.setattr(fdr.Fdr6, "spaces", tuple(spaces.values()))
    patch.setattr(fdr.Fdr6, "minimum", fdr.needed(max(inception, WIDTH)))
    patch.setattr(mind.Mind, "minimum", 24)
    load_encoder.cache_clear()


def prepare_tiny(folder: Path, inception: int = tiny_inception.POOL) -> dict[str, Path]:
    """Weights of the five networks, reference statistics of the six spaces, and reference images:
    name of the asset -> file.
    """
    files = write_networks(folder)
    for key, space in SPACES.items():
        width = inception if key == "inception" else WIDTH
        files[space.statistics.name] = folder / space.statistics.file
        numpy.savez(files[space.statistics.name], mu=numpy.zeros(width), sigma=numpy.eye(width))
    files[mind.VALIDATION.name] = folder / mind.VALIDATION.file
    pixels = images(40).permute(0, 2, 3, 1).numpy()
    numpy.savez(files[mind.VALIDATION.name], arr_0=pixels)
    return files


def write_networks(folder: Path) -> dict[str, Path]:
    """Weights of the five networks: name of the asset -> file."""
    files = {}
    for tiny in TINY:
        files[tiny.name] = folder / tiny.name / tiny.network.weights.file
        files[tiny.name].parent.mkdir(parents=True, exist_ok=True)
        weights = recipe(tiny.name, shapes_of(body_of(tiny)))
        safetensors.torch.save_file(weights, files[tiny.name])
    return files


def body_of(tiny: Tiny) -> nn.Module:
    """The network itself at its tiny shape, without its published weights."""
    if isinstance(tiny.shape, timm_convnext.Shape):
        return timm_convnext.TimmConvNext(tiny.shape)
    return distance_networks.TimmViT(tiny.shape)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def recipe(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of a network: every tensor follows from its own name, whichever others there are."""
    return {key: _drawn(f"{name}/{key}", shape) for key, shape in shapes.items()}


def _drawn(key: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    values = numpy.random.RandomState(seed).randn(*shape)
    leaf = key.rpartition(".")[2]
    if len(shape) == 1:
        values = 1 + values / 4 if leaf in ("weight", "gamma") and "grn" not in key else values / 4
    elif leaf == "weight":
        values = values / numpy.prod(shape[1:]) ** 0.5
    return torch.from_numpy(values).float()


def images(count: int = 2, height: int = 64, width: int = 48) -> Tensor:
    """uint8 [count, 3, height, width]: noise of all scales, so that filters show."""
    draw = numpy.random.RandomState(0)
    coarse = torch.from_numpy(draw.rand(count, 3, 5, 5)).float()
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear")
    fine = torch.from_numpy(draw.rand(count, 3, height, width)).float()
    return (255 * (0.7 * smooth + 0.3 * fine)).to(torch.uint8)


def timm_model(tiny: Tiny) -> nn.Module:
    """timm's own model of the published name at the tiny shape, with the recipe's weights."""
    import timm

    name = tiny.network.weights.hub.removeprefix("timm/")
    model = timm.create_model(name, pretrained=False, num_classes=0, **tiny.timm).eval()
    model.load_state_dict(recipe(tiny.name, shapes_of(model)))
    return model


@torch.no_grad()
def timm_features(tiny: Tiny, pictures: Tensor) -> Tensor:
    """[B, D]: the definition of the features in timm's terms."""
    model, network = timm_model(tiny), tiny.network
    size = (network.side, network.side)
    x = functional.interpolate(pictures.float(), size, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(c).reshape(3, 1, 1) * 255 for c in (network.mean, network.std))
    tokens = model.forward_features((x - mean) / std)
    if tokens.ndim == 4:
        return tokens.mean((2, 3))
    return tokens[:, 0] if model.attn_pool is None else model.attn_pool(tokens)


def record() -> dict[str, Any]:
    """The golden features of timm, for `tests/golden/timm_features.json`."""
    import timm

    found = {tiny.name: timm_features(tiny, images()).tolist() for tiny in TINY}
    return {"timm": timm.__version__, "torch": torch.__version__, "features": found}


if __name__ == "__main__":
    print(json.dumps(record()))
