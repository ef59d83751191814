"""The shipped feature network of the embedded silhouettes."""

from importlib.resources import files

import pytest
import safetensors.torch
import torch

from nanogen import registry
from nanogen.data import silhouettes
from nanogen.encoders.animals_cnn import STRIDES, AnimalsCnn, ink_of
from nanogen.errors import DataError


@pytest.fixture(scope="module")
def network() -> AnimalsCnn:
    return AnimalsCnn()


def real(split: str, step: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [n, 3, 28, 28], black on white, and their labels."""
    opacity, labels = silhouettes.load(split)
    grey = torch.from_numpy(255 - opacity[::step])[:, None]
    return grey.expand(-1, 3, -1, -1), torch.from_numpy(labels[::step].copy())


def accuracy(network: AnimalsCnn, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (network(images)["logits"].argmax(1) == labels).float().mean().item()


def test_it_knows_animals_it_has_never_seen(network):
    assert accuracy(network, *real("held-out", step=4)) >= 0.96


def scaled(images: torch.Tensor, size: int) -> torch.Tensor:
    resize = torch.nn.functional.interpolate
    return resize(images.float(), (size, size), mode="bilinear", antialias=True).round().byte()


def test_it_reads_the_shape_and_not_how_the_edges_were_made(network):
    """Blurred, noisy, mirrored and larger silhouettes are still the same animals."""
    images, labels = real("held-out", step=10)
    noise = 12 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    variants = {
        "mirrored": images.flip(-1),
        "larger": scaled(images, 56),
        "blurred": scaled(scaled(images, 20), 28),
        "noisy": (images + noise).clamp(0, 255).byte(),
    }
    for name, variant in variants.items():
        assert accuracy(network, variant, labels) >= 0.95, name
    # A threshold takes most of what a zebra is known by.
    thresholded = (images > 127).byte() * 255
    assert accuracy(network, thresholded, labels) >= 0.85


def test_noise_and_blank_images_look_like_no_silhouette(network):
    """The mean feature of noise lies far outside what two halves of the real images differ by."""
    pool = network(real("held-out", step=8)[0])["pool"]
    between = (pool[::2].mean(0) - pool[1::2].mean(0)).norm()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (250, 3, 28, 28), generator=generator, dtype=torch.uint8)
    blank = torch.full((1, 3, 28, 28), 255, dtype=torch.uint8)
    for images in (noise, blank):
        assert (network(images)["pool"].mean(0) - pool.mean(0)).norm() > 5 * between


def test_outputs_have_the_documented_form(network):
    out = network(real("validation", step=100)[0])
    assert set(out) == {"pool", "logits"}
    assert out["pool"].shape == (5, 128) and out["logits"].shape == (5, 10)
    assert all(value.dtype == torch.float32 for value in out.values())
    assert network.classes == silhouettes.ANIMALS


def test_features_equal_an_independent_computation(network):
    """The file read by hand, batch normalisation as its formula, in float64."""
    weights = safetensors.torch.load(
        files("nanogen").joinpath("assets/animals_cnn.safetensors").read_bytes()
    )
    weights = {name: value.double() for name, value in weights.items()}
    images = real("held-out", step=400)[0]
    x = (255.0 - images[:, :1].double()) / 255
    for k, stride in enumerate(STRIDES):
        x = torch.nn.functional.conv2d(x, weights[f"blocks.{k}.0.weight"], None, stride, 1)
        norm = {
            key: weights[f"blocks.{k}.1.{key}"][:, None, None]
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt()
        x = (x * norm["weight"] + norm["bias"]).clamp(min=0)
    pool = x.mean((2, 3))
    out = network(images)
    assert torch.allclose(out["pool"].double(), pool, atol=1e-5)
    logits = pool @ weights["head.weight"].T + weights["head.bias"]
    assert torch.allclose(out["logits"].double(), logits, atol=1e-4)


def test_it_stays_frozen_whatever_is_called(network):
    images, _ = real("validation", step=50)
    before = network(images)["pool"]
    parent = torch.nn.Sequential(network).train()
    assert not any(module.training for module in network.modules())
    after = network(images)["pool"]
    assert torch.equal(before, after) and not after.requires_grad
    assert not any(parameter.requires_grad for parameter in parent.parameters())


def test_a_sample_does_not_depend_on_its_batch(network):
    images, _ = real("validation", step=50)
    alone = torch.cat([network(image[None])["pool"] for image in images])
    assert torch.allclose(network(images)["pool"], alone, atol=1e-5)


def test_ink_is_darkness_in_the_mean_of_the_channels():
    images = torch.full((1, 3, 28, 28), 255, dtype=torch.uint8)
    images[:, :, 0, 0] = 0
    images[:, 0, 0, 1] = 0
    ink = ink_of(images)
    assert ink.shape == (1, 1, 28, 28)
    assert ink[0, 0, 0, 0] == 1 and ink[0, 0, 1, 1] == 0
    assert ink[0, 0, 0, 1] == pytest.approx(1 / 3)
    assert ink_of(images.repeat_interleave(2, 2).repeat_interleave(2, 3)).shape == (1, 1, 28, 28)


def test_the_file_is_small_and_holds_halves():
    data = files("nanogen").joinpath("assets/animals_cnn.safetensors").read_bytes()
    assert len(data) < 600_000
    floats = [v for v in safetensors.torch.load(data).values() if v.is_floating_point()]
    assert {v.dtype for v in floats} == {torch.float16}
    assert all(v.isfinite().all() for v in floats)


def test_it_is_registered_and_its_fingerprint_is_fixed(network):
    assert registry.get("network", "animals-cnn") is AnimalsCnn
    assert network.fingerprint == AnimalsCnn().fingerprint


def test_a_missing_file_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("nanogen.encoders.animals_cnn.WEIGHTS", "gone.safetensors")
    with pytest.raises(DataError, match=r"gone\.safetensors is missing; install nanogen again"):
        AnimalsCnn()


def test_hardly_any_feature_is_dead(network):
    """A feature that never changes adds nothing to a distance."""
    pool = network(real("validation")[0])["pool"]
    assert (pool.std(0) > 1e-3).sum() >= 120
