"""Features of real images extracted by several processes: those of one, to the last bit."""

from __future__ import annotations

import pytest
import torch
from parts import Excerpt
from safetensors.torch import load_file, save_file
from tiny import ranks

from nanogen import dist
from nanogen.data.animals import Animals
from nanogen.metrics import feature_cache, reference
from nanogen.metrics.base import Context
from nanogen.metrics.reference import cached_features, cached_gaussian


def extracted() -> dict[str, torch.Tensor]:
    """43 images in batches of 5: blocks that processes cannot share evenly."""
    source = Excerpt(Animals().build(), {"held-out": 43})
    context = Context(source, torch.device("cpu"), batch=5)
    gaussian = cached_gaussian(context, "animals-cnn", "pool", "held-out")
    features = cached_features(context, "animals-cnn", "pool", "held-out", 17)
    return {"covariance": gaussian.covariance, "root": gaussian.root, "features": features}


@pytest.mark.parametrize("world", [2, 3])
def test_same_features_and_moments(tmp_path, monkeypatch, world):
    monkeypatch.setattr(reference, "_kept", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "alone"))
    alone = extracted()
    monkeypatch.setattr(reference, "_kept", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "together"))

    def work() -> None:
        save_file(extracted(), tmp_path / f"{dist.rank()}.safetensors")

    assert ranks(world, tmp_path / "store", work) == [0] * world
    assert len(list(feature_cache.folder().iterdir())) == 3
    for rank in range(world):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in alone.items():
            assert torch.equal(found[name], value), (rank, name)
