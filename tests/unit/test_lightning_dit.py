"""LightningDiT: what it starts as, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_ddt import LABELS, LATENT, PLAIN

from nanogen.backbones.lightning_dit import LightningDitConfig
from nanogen.errors import ConfigError
from nanogen.types import LatentSpec, Wiring

ALL = Wiring({"cls": 6}, True, ("scale",), {"base": 1})


def test_initial_statistics() -> None:
    torch.manual_seed(0)
    config = LightningDitConfig(depth=1, width=256, heads=4)
    p = dict(config.build(LatentSpec(16, 8, 8, 2), LABELS, ALL).named_parameters())
    bound = math.sqrt(6 / (64 + 256))
    assert p["x_embedder.proj.weight"].abs().max() <= bound
    assert p["x_embedder.proj.weight"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for time in ("t_embedder", "t_abs_embedder", "scalar_embedders.scale"):
        assert p[f"{time}.mlp.0.weight"].std().item() == pytest.approx(0.02, rel=0.05)
        assert not p[f"{time}.W"].requires_grad
    zero = {name for name, value in p.items() if not value.any()}
    heads = ("final_layer.linear", "final_layer.cls_linear", "base_final_layer.linear")
    assert zero == {"x_embedder.proj.bias"} | {
        f"{head}.{kind}" for head in heads for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"heads": 3}, "backbone.heads"),
        ({"heads": 16}, "backbone.heads"),
        ({"width": 0}, "backbone.width"),
        ({"depth": 0}, "backbone.depth"),
        ({"mlp_ratio": 0.0}, "backbone.mlp_ratio"),
    ],
)
def test_refusals(fields: dict[str, float], named: str) -> None:
    config = LightningDitConfig(**({"depth": 1, "width": 32, "heads": 2} | fields))
    with pytest.raises(ConfigError, match=named):
        config.build(LATENT, LABELS, Wiring())


def test_patch_must_divide() -> None:
    with pytest.raises(ConfigError, match="patch 3"):
        PLAIN.build(LatentSpec(4, 8, 8, 3), LABELS, Wiring())
