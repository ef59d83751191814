"""The tokenizers of the package on images that they have never seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanogen.data.animals import Animals
from nanogen.data.scenes import Scenes
from nanogen.encoders.vision import open_encoder
from nanogen.errors import ConfigError
from nanogen.metrics.similarity import psnr, quantised
from nanogen.model import parameter_count
from nanogen.tokenizers.embedded import AnimalsRae, AnimalsVae, folder_of
from nanogen.tokenizers.rae_files import open_rae
from nanogen.types import to_float

CONFIGS = {"vae": AnimalsVae, "rae": AnimalsRae}
DATA = {28: Animals, 40: Scenes}
COUNT = 80

every = pytest.mark.parametrize(
    "kind, size, shape, tokens, decibels",
    [
        ("vae", 28, (4, 7, 7), 49, 28.0),
        ("vae", 40, (4, 10, 10), 25, 31.0),
        ("rae", 28, (64, 7, 7), 49, 32.5),
        ("rae", 40, (64, 8, 8), 64, 30.0),
    ],
)


def held_out(size: int) -> Tensor:
    source = DATA[size]().build()
    numbers = [i * source.count("held-out") // COUNT for i in range(COUNT)]
    return torch.stack([source.read("held-out", i, i).image for i in numbers])


@every
def test_keeps_images(kind: str, size: int, shape, tokens: int, decibels: float) -> None:
    """The bounds are a decibel or so below what all held-out images give (docs/tokenizers.md)."""
    tokenizer, images = CONFIGS[kind]().build(size), held_out(size)
    latents = tokenizer.encode(to_float(images))
    assert latents.shape[1:] == shape and tokenizer.spec.tokens == tokens
    again = quantised(tokenizer.decode(latents).detach())
    assert psnr(images, again).mean() > decibels
    # Others of the same data are as well whitened as the images they were measured on, nearly.
    assert latents.mean().abs() < 0.1 and 0.85 < latents.std() < 1.15


@every
def test_facts(kind: str, size: int, shape, tokens: int, decibels: float) -> None:
    tokenizer = CONFIGS[kind]().build(size)
    facts = CONFIGS[kind].facts
    assert facts.status == "comes with it"
    assert parameter_count(tokenizer) == pytest.approx(facts.parameters, rel=0.05)


@pytest.mark.parametrize("size", DATA)
def test_decoders_name_the_weights_of_their_encoder(size: int) -> None:
    about = open_rae(str(folder_of("rae", size))).about
    assert about is not None
    assert about.encoder_fingerprint == open_encoder("animals-vit", size).fingerprint


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_sizes_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="28 px .* 40 px .*, not 32; train one of your own"):
        CONFIGS[kind]().build(32)


def test_a_patch_of_choice() -> None:
    assert AnimalsVae(patch=1).build(40).spec.tokens == 100
    with pytest.raises(ConfigError, match="images of 40 px do not fit"):
        AnimalsVae(patch=3).build(40)
