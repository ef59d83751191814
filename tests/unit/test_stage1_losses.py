"""Losses of training a tokenizer, against closed forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nanogen.encoders.vision import VisionEncoder, VisionFeatures
from nanogen.errors import ConfigError
from nanogen.stage1.balance import Sides, balanced_backward
from nanogen.stage1.distances import FeaturesDistance, LpipsDistance, TokenDistance
from nanogen.stage1.kl_vae import KlVae, KlVaeConfig
from nanogen.stage1.rae import noisy
from nanogen.types import Batch

KEYS = torch.arange(3)


class Toy(nn.Module):
    """R = 3 a + 4 b^2 / 2 and G = (5 a - 12 b) s over samples that add up; `first` comes before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(2.0))
        self.last = nn.Parameter(torch.tensor([0.5, 1.0]))

    def sides(self, scale: float) -> Sides:
        a, b = self.last * self.first
        return Sides(scale * (3 * a + 2 * b * b), scale * (5 * a - 12 * b))


def gradients(toy: Toy, scales: list[float], weight: float) -> tuple[float, list[float]]:
    pieces = [lambda scale=scale: toy.sides(scale) for scale in scales]
    balance = balanced_backward(pieces, dict(toy.named_parameters()), toy.last, weight)
    assert not balance.requires_grad
    return balance.item(), [toy.first.grad.item(), *toy.last.grad.tolist()]


@pytest.mark.parametrize("scales", [[1.0], [0.25, 0.75], [0.2, 0.3, 0.5]], ids=str)
def test_balance_by_hand_in_any_number_of_pieces(scales):
    """With f = 2, a = 1, b = 2: dR/dlast = f (3, 4 b) = (6, 16), dG/dlast = f (5, -12)."""
    balance, found = gradients(Toy(), scales, weight=0.75)
    wanted = math.hypot(6, 16) / (math.hypot(10, 24) + 1e-6)
    assert balance == pytest.approx(wanted, rel=1e-6)
    w = 0.75 * wanted
    # d/dfirst = last . (3, 4 b) and last . (5, -12), with last = (1/2, 1): the balance is constant.
    assert found == pytest.approx([9.5 + w * -9.5, 6 + w * 10, 16 - w * 24], rel=1e-5)


@pytest.mark.parametrize("pieces", [1, 2])
def test_balance_is_clamped_where_the_adversary_has_no_gradient(pieces):
    toy = Toy()

    def sides() -> Sides:
        plain = toy.sides(1 / pieces)
        return Sides(plain.rest, plain.adversarial * 0)

    parameters = dict(toy.named_parameters())
    assert balanced_backward([sides] * pieces, parameters, toy.last, 0.75).item() == 1e4
    assert_close(toy.last.grad, torch.tensor([6.0, 16.0]))


class Patches(VisionEncoder):
    """Tokens that are the pixels of 2 x 2 patches."""

    name, width, grid, fingerprint = "patches", 12, 2, "patches"

    def forward(self, images):
        return VisionFeatures(nn.functional.unfold(images, 2, stride=2).transpose(1, 2))


def test_token_distance_is_one_minus_the_mean_cosine():
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 3, 3, 4, 4, generator=generator)
    others.requires_grad_(True)
    images.requires_grad_(True)
    found = TokenDistance(Patches())(images, others)
    for number in range(3):
        cosines = []
        for row in (0, 2):
            for column in (0, 2):
                a, b = (x[number, :, row : row + 2, column : column + 2] for x in (images, others))
                cosines.append((a * b).sum() / (a.norm() * b.norm()))
        assert_close(found[number], 1 - sum(cosines) / 4)
    found.sum().backward()
    assert images.grad is None and others.grad.abs().sum() > 0
    assert_close(TokenDistance(Patches())(images, images), torch.zeros(3))


def test_the_embedded_encoder_sees_a_changed_image():
    distance = FeaturesDistance().build(28)
    images = torch.ones(1, 3, 28, 28)
    changed = images.clone()
    changed[..., 8:20, 8:20] = 0
    assert distance(images, images).item() == pytest.approx(0, abs=1e-6)
    assert distance(images, changed).item() > 0.05
    assert not any(p.requires_grad for p in distance.parameters())


def test_a_distance_without_weight_is_refused():
    for config in (FeaturesDistance, LpipsDistance):
        with pytest.raises(ConfigError, match="perceptual.weight=0.0: must be above 0"):
            config(weight=0.0)


@pytest.fixture(scope="module")
def vae() -> KlVae:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return KlVaeConfig(channels=3, widths=(8, 8), layers=1, groups=4, kl=0.25).build(8, seed=5)


def test_divergence_of_a_vae_is_that_of_torch_summed_over_a_latent(vae):
    batch = Batch(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), KEYS)
    made = vae(batch)
    mean, log_variance = vae.vae.moments(batch.images * 2 - 1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    assert_close(made.parts["kl"], wanted.sum((1, 2, 3)))
    assert made.weights == {"kl": 0.25}
    assert made.images.shape == (3, 3, 8, 8) and vae.spec.channels == 3 and vae.spec.height == 4


def test_latents_are_drawn_from_the_posterior_by_key(vae, monkeypatch):
    """Over many keys the draws of one image have the posterior's mean and deviation."""
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = []
    monkeypatch.setattr(vae.vae, "reconstruct", lambda raw: seen.append(raw) or image)
    with torch.no_grad():
        vae(Batch(image.expand(2000, -1, -1, -1), torch.arange(2000)))
        vae(Batch(image.expand(2, -1, -1, -1), torch.tensor([7, 1999])))
        mean, log_variance = vae.vae.moments(image * 2 - 1)
    drawn = seen[0]
    deviation = (log_variance / 2).exp()[0]
    assert (((drawn.mean(0) - mean[0]) / deviation).abs() < 5 / math.sqrt(2000)).all()
    assert ((drawn.std(0) / deviation - 1).abs() < 0.1).all()
    assert_close(seen[1], drawn[[7, 1999]], rtol=0, atol=1e-6)
    assert_close(vae.raw(image), mean)


def test_noise_on_features_has_a_third_of_the_largest_variance():
    features = torch.zeros(4000, 6, 2, 2)
    keys = torch.arange(4000)
    noise = noisy(features, 0.8, keys, seed=3)
    assert noise.square().mean().item() == pytest.approx(0.8**2 / 3, rel=0.05)
    # One scale for a sample: its values are as large as each other.
    scales = noise.flatten(1).square().mean(1).sqrt()
    assert scales.min() < 0.05 and scales.max() > 0.7
    assert torch.equal(
        noisy(features[:2] + 1, 0.8, keys[[9, 5]], seed=3) - 1, (noise[[9, 5]] + 1) - 1
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": (12, 8), "groups": 8}, "autoencoder.widths=12,8: must be multiples of"),
        ({"widths": ()}, "autoencoder.widths=: must be"),
        ({"kl": -1.0}, "autoencoder.kl=-1.0"),
        ({"layers": 0}, "must be at least 1"),
    ],
    ids=str,
)
def test_what_a_vae_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        KlVaeConfig(**values)


def test_images_that_no_grid_of_latents_fits():
    with pytest.raises(ConfigError, match="30 px do not fit 3 autoencoder.widths.*multiple of 4"):
        KlVaeConfig(widths=(32, 32, 32)).build(30, seed=0)
