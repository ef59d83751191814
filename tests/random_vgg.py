"""A file of VGG16's weights as timm writes it, random: the trunk of LPIPS is a download."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import safetensors.torch
import torch

from nanogen.encoders.lpips import Trunk


def random_trunk(seed: int = 0) -> Trunk:
    """At a scale that keeps the size of activations from layer to layer."""
    with torch.device("meta"):
        trunk = Trunk()
    trunk.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trunk.parameters():
            spread = (2 / weight[0].numel()) ** 0.5 if weight.ndim == 4 else 0.1
            weight.normal_(0, spread, generator=generator)
    return trunk


@cache
def random_vgg() -> Path:
    """The file, which is gone at exit. Its sizes are the real ones: the network has no others."""
    file = Path(_scratch().name) / "model.safetensors"
    safetensors.torch.save_file(random_trunk().state_dict(), file)
    return file


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="random-vgg-")
