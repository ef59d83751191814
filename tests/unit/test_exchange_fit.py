"""Whether a network is that of a preset: what differs is said, with the preset that suits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nanogen import config, recipes
from nanogen.errors import ConfigError
from nanogen.exchange import fit
from nanogen.exchange.architecture import Architecture, Tower
from nanogen.run import Run
from nanogen.types import ConditionSpec, LatentSpec

FLUX2 = Architecture(
    "ddt",
    Tower(28, 1152, 16),
    Tower(2, 2048, 16),
    4.0,
    LatentSpec(128, 16, 16, 1),
    ConditionSpec(classes=1000),
)
SDVAE = replace(FLUX2, latent=LatentSpec(4, 32, 32, 2))
TEXT = ConditionSpec(width=1024, tokens=256)
PRESETS = {
    "imagenet/flux2": FLUX2,
    "imagenet/flux2-reg": replace(FLUX2, leaf=768),
    "t2i/flux2": replace(FLUX2, condition=TEXT),
    "imagenet/sdvae-mse": SDVAE,
    "imagenet/meanflow-sdvae-mse": replace(SDVAE, interval=True),
    "t2i/meanflow-sdvae-mse": replace(SDVAE, interval=True, condition=TEXT),
    "imagenet/jit": replace(FLUX2, latent=LatentSpec(3, 256, 256, 16)),
    "imagenet/rae-dinov2-vit-b-reg": replace(FLUX2, latent=LatentSpec(768, 16, 16, 1), leaf=768),
}
"""presets, and what released checkpoints of them hold"""


def run(name: str, *overrides: str) -> Run:
    return config.override(recipes.preset(name), overrides) if overrides else recipes.preset(name)


def architecture(of: Run) -> Architecture:
    return fit.expected(of, fit.surroundings_of(of))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_architecture(name: str) -> None:
    assert architecture(run(name)) == PRESETS[name]
    fit.check(run(name), fit.surroundings_of(run(name)), PRESETS[name], "ddt.pt")


def test_terms_are_part_of_it() -> None:
    found = architecture(
        run("imagenet/flux2", "terms.internal=on", "terms.internal.block=8", "terms.repa=on")
    )
    assert found == replace(FLUX2, base=True, projector=768)
    found = architecture(run("imagenet/flux2", "terms.repa=on", "terms.repa.projector=mlp3"))
    assert found == FLUX2, "diffusion-bench has a linear projector only"


@pytest.mark.parametrize(
    "name, found, message",
    [
        (
            "imagenet/flux2",
            replace(FLUX2, leaf=768),
            "ddt.pt has REG of width 768, imagenet/flux2 has none; use imagenet/flux2-reg",
        ),
        (
            "imagenet/flux2-reg",
            FLUX2,
            "ddt.pt has no REG, imagenet/flux2-reg has REG of width 768; use imagenet/flux2$",
        ),
        (
            "imagenet/sdvae-mse",
            PRESETS["imagenet/meanflow-sdvae-mse"],
            "a second time .MeanFlow., imagenet/sdvae-mse has none; use .*-sdvae-mse",
        ),
        (
            "imagenet/flux2",
            SDVAE,
            "latents of 4x32x32 in patches of 2, imagenet/flux2 has latents of 128x16x16",
        ),
        (
            "imagenet/flux2",
            PRESETS["t2i/flux2"],
            "captions of at most 256 tokens of width 1024, imagenet/flux2 has 1000 classes; name",
        ),
        (
            "imagenet/flux2",
            replace(FLUX2, encoder=Tower(12, 768, 12), mlp_ratio=3.0),
            "12 encoder blocks of width 768 with 12 heads, imagenet/flux2 has 28 encoder .*; and "
            "mlp_ratio 3, imagenet/flux2 has mlp_ratio 4; name the preset",
        ),
        (
            "imagenet/flux2",
            replace(FLUX2, kind="lightning-dit", decoder=None),
            "has backbone lightning-dit, imagenet/flux2 has backbone ddt; and no decoder",
        ),
        (
            "imagenet/flux2",
            replace(FLUX2, base=True, projector=768),
            "a head of internal guidance, imagenet/flux2 has none; and a REPA projector of width",
        ),
        (
            "imagenet/flux2",
            replace(FLUX2, condition=ConditionSpec(classes=100)),
            "has 100 classes, imagenet/flux2 has 1000 classes",
        ),
    ],
)
def test_what_differs_is_said(name: str, found: Architecture, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        fit.check(run(name), fit.surroundings_of(run(name)), found, "ddt.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("imagenet/flux2", ["backbone=jit"], "backbone=jit, which diffusion-bench does not have"),
        ("imagenet/flux2", ["objective=improved-meanflow"], "is wired for 'guidance"),
        ("scenes/pixels-v", ["conditioner=words"], "conditioner=words is trained along"),
    ],
)
def test_networks_that_it_does_not_have(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        architecture(run(name, *overrides))
