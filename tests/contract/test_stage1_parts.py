"""What every autoencoder in training, perceptual loss and discriminator promises."""

from __future__ import annotations

from typing import Any

import chz
import pytest
import torch
from parts import built, entries, images
from torch import nn
from torch.testing import assert_close

from nanogen.registry import Entry
from nanogen.stage1.autoencoder import Preview, TrainableAutoencoder
from nanogen.types import Batch

SIZE = 28
SMALL: dict[str, dict[str, Any]] = {
    "kl-vae": {"widths": (8, 8, 8), "groups": 4, "layers": 1},
    "rae": {"encoder": "animals-vit", "width": 32, "depth": 1, "heads": 2, "hidden": 32},
    "patch": {"channels": 4, "layers": 2},
}
"""fields that make a part as small as a test; one that is new may need a line here"""
UNTRIED = {"pretrained-vae": "starts from files; tests/integration/test_repa_e_run.py makes some"}


def config_of(entry: Entry) -> Any:
    if entry.name in UNTRIED:
        pytest.skip(UNTRIED[entry.name])
    return built(entry, lambda: entry.target(**SMALL.get(entry.name, {})))


@pytest.fixture(scope="module", params=entries("autoencoder"))
def autoencoder(request) -> TrainableAutoencoder:
    config = config_of(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return built(request.param, lambda: config.build(SIZE, seed=3))


def batch(start: int = 0, stop: int = 3) -> Batch:
    return Batch(images(3, SIZE)[start:stop], torch.arange(5, 8)[start:stop])


def test_reconstructions_have_the_shape_of_the_images(autoencoder):
    made = autoencoder(batch())
    assert made.images.shape == (3, 3, SIZE, SIZE)
    assert made.parts.keys() == made.weights.keys()
    assert all(part.shape == (3,) for part in made.parts.values())


def test_a_sample_depends_on_its_image_and_key_alone(autoencoder):
    whole = autoencoder(batch()).images
    assert_close(autoencoder(batch(1, 2)).images, whole[1:2], rtol=1e-4, atol=1e-5)
    other = Batch(batch().images, batch().keys + 1)
    assert (autoencoder(other).images - whole).abs().max() > 1e-6


def test_without_noise_it_is_deterministic(autoencoder):
    spec, raw = autoencoder.spec, autoencoder.raw(batch().images)
    assert raw.shape == (3, spec.channels, spec.height, spec.width)
    assert torch.equal(raw, autoencoder.raw(batch().images))
    tokenizer = Preview(autoencoder, "mine")
    assert torch.equal(tokenizer.encode(batch().images), raw)
    assert torch.equal(tokenizer.decode(raw), autoencoder.from_raw(raw))


def test_gradients_reach_all_that_is_trained_and_nothing_else(autoencoder):
    frozen = [p for p in autoencoder.parameters() if not p.requires_grad]
    made = autoencoder(batch())
    loss = (made.images - batch().images).square().sum()
    (loss + sum(part.sum() for part in made.parts.values())).backward()
    for name, p in autoencoder.trained().items():
        assert p.grad is not None and bool(p.grad.isfinite().all()), name
    assert autoencoder.last.grad.abs().sum() > 0
    assert any(p is autoencoder.last for p in autoencoder.trained().values())
    assert not frozen, "what is frozen would be saved with every checkpoint"
    autoencoder.zero_grad()


@pytest.mark.parametrize("entry", entries("distance"))
def test_distances(entry):
    config = config_of(entry)
    distance = built(entry, lambda: config.build(SIZE))
    if distance is None:
        assert config.weight == 0
        return
    assert config.weight > 0 and isinstance(distance, nn.Module)
    one, other = images(3, SIZE), images(3, SIZE, seed=1).requires_grad_()
    found = distance(one, other)
    assert found.shape == (3,) and bool((found > 0).all())
    assert_close(distance(one, one), torch.zeros(3), rtol=0, atol=1e-5)
    assert_close(distance(one[1:2], other[1:2]), found[1:2], rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert other.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


@pytest.mark.parametrize("entry", entries("discriminator"))
def test_games(entry):
    config = config_of(entry)
    game = built(entry, config.build)
    config.check(100)
    if game is None:
        return
    assert game.rules == config and chz.replace(config, weight=0.5).weight == 0.5
    shown = (images(3, SIZE) * 2 - 1).requires_grad_()
    logits = game.discriminator.eval()(shown)
    assert logits.ndim == 2 and len(logits) == 3
    assert_close(game.discriminator(shown[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert shown.grad.abs().sum() > 0
