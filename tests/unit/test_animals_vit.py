"""The shipped vision encoder of the embedded data."""

from __future__ import annotations

from importlib.resources import files

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from nanogen.data import silhouettes
from nanogen.data.captions import PALETTE
from nanogen.data.scenes import Scenes
from nanogen.encoders.animals_vit import DEPTH, HEADS, WEIGHTS, AnimalsFamily, AnimalsVit, grid_of
from nanogen.encoders.vision import open_encoder
from nanogen.errors import ConfigError, DataError
from nanogen.model import parameter_count
from nanogen.types import to_float


@pytest.fixture(scope="module")
def encoder() -> AnimalsVit:
    return open_encoder("animals-vit", 28)


def real(split: str, step: int) -> tuple[Tensor, Tensor]:
    """Every `step`-th silhouette of a split, float [n, 3, 28, 28], and the labels."""
    opacity, labels = silhouettes.load(split)
    grey = 1 - torch.from_numpy(opacity[::step].copy()).float()[:, None] / 255
    return grey.expand(-1, 3, -1, -1), torch.from_numpy(labels[::step].copy())


def scenes(split: str, count: int) -> tuple[Tensor, list[str]]:
    """The first scenes with one animal, float [n, 3, 40, 40], and its colour."""
    source = Scenes().build()
    pictures = [source.picture(split, index, 0) for index in range(count)]
    pictures = [picture for picture in pictures if len(picture.objects) == 1]
    images = to_float(torch.stack([picture.image for picture in pictures]))
    return images, [picture.objects[0].colour for picture in pictures]


def fitted(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """[D + 1, K]: least squares with a constant, from features [n, D] to targets [n, K]."""
    known = with_one(features).double()
    gram = known.T @ known + ridge * len(known) * torch.eye(known.shape[1]).double()
    return torch.linalg.solve(gram, known.T @ targets.double()).float()


def with_one(features: Tensor) -> Tensor:
    return functional.pad(features, (0, 1), value=1.0)


def pooled(encoder: AnimalsVit, images: Tensor) -> Tensor:
    return torch.cat([encoder(part).patches.mean(1) for part in images.split(200)])


@pytest.fixture(scope="module")
def probe(encoder) -> Tensor:
    """Reads the class from the mean of the tokens, by least squares on a third of the train set."""
    images, labels = real("train", 3)
    return fitted(pooled(encoder, images), functional.one_hot(labels).float(), 1e-4)


def accuracy(probe: Tensor, features: Tensor, labels: Tensor) -> float:
    return ((with_one(features) @ probe).argmax(1) == labels).float().mean().item()


def test_tokens_know_animals_that_were_never_seen(encoder, probe):
    """Pixels do not, with a probe of the same kind."""
    images, labels = real("held-out", 4)
    assert accuracy(probe, pooled(encoder, images), labels) >= 0.94
    train, train_labels = real("train", 3)
    raw = fitted(train[:, 0].flatten(1), functional.one_hot(train_labels).float(), 1e-2)
    assert accuracy(raw, images[:, 0].flatten(1), labels) <= 0.75


def scaled(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def test_it_reads_the_shape_and_not_how_the_edges_were_made(encoder, probe):
    """Blurred, noisy and mirrored silhouettes are still the same animals."""
    images, labels = real("held-out", 8)
    noise = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    variants = {
        "mirrored": images.flip(-1),
        "blurred": scaled(scaled(images, 20), 28),
        "noisy": (images + noise).clamp(0, 1),
    }
    for name, variant in variants.items():
        assert accuracy(probe, pooled(encoder, variant), labels) >= 0.92, name
    # A threshold takes most of what a zebra is known by.
    assert accuracy(probe, pooled(encoder, (images > 0.5).float()), labels) >= 0.78


def test_tokens_know_colours_in_scenes():
    encoder = open_encoder("animals-vit", 40)
    palette = list(PALETTE)

    def seen(split: str, count: int) -> tuple[Tensor, Tensor]:
        images, colours = scenes(split, count)
        return pooled(encoder, images), torch.tensor([palette.index(c) for c in colours])

    features, labels = seen("train", 900)
    colour = fitted(features, functional.one_hot(labels, len(palette)).float(), 1e-4)
    assert accuracy(colour, *seen("held-out", 400)) >= 0.97


@pytest.mark.parametrize(("size", "bound"), [(28, 33.0), (40, 29.5)])
def test_tokens_hold_the_pixels_of_their_patch(size, bound):
    """A linear map of a token draws its patch."""
    encoder = open_encoder("animals-vit", size)
    patch = size // encoder.grid

    def seen(split: str) -> tuple[Tensor, Tensor]:
        images = real(split, 12)[0] if size == 28 else scenes(split, 500)[0]
        patches = functional.unfold(images, patch, stride=patch).transpose(1, 2)
        tokens = torch.cat([encoder(part).patches for part in images.split(200)])
        return tokens, patches

    tokens, patches = seen("train")
    draw = fitted(tokens.flatten(0, 1), patches.flatten(0, 1), 1e-6)
    tokens, patches = seen("held-out")
    error = ((with_one(tokens) @ draw).clamp(0, 1) - patches).square().mean((1, 2))
    assert (-10 * error.log10()).mean() >= bound


@pytest.mark.parametrize(("size", "grid"), [(28, 7), (32, 8), (35, 7), (40, 8), (56, 8), (64, 8)])
def test_every_token_is_normalised(size, grid):
    """The identity of an encoder that ends in a LayerNorm without affine: mean_c z_c^2 = 1."""
    encoder = open_encoder("animals-vit", size)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert grid_of(size) == encoder.grid == grid
    assert features.patches.shape == (3, grid * grid, encoder.width)
    assert features.cls.shape == (3, encoder.width)
    tokens = torch.cat([features.patches, features.cls[:, None]], 1)
    assert torch.allclose(tokens.mean(-1), torch.zeros(()), atol=1e-5)
    assert torch.allclose(tokens.square().mean(-1), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("size", [27, 30, 26, 70, 72, 0, -28])
def test_other_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=f"multiple of 7 or 8 px, not {size}$"):
        open_encoder("animals-vit", size)


def test_tokens_equal_an_independent_computation(encoder):
    """The file read by hand: patches cut by slices, attention and norms as formulas, in float64."""
    data = files("nanogen").joinpath("assets", WEIGHTS).read_bytes()
    weights = {name: value.double() for name, value in safetensors.torch.load(data).items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, eps: float) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def affine(x: Tensor, name: str) -> Tensor:
        return norm(x, 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    image = real("held-out", 999)[0][1].double()
    rows = []
    for y in range(7):
        for x in range(7):
            patch = 1 - image[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(-1)
            place = [
                wave(at / 100 ** (k / 16))
                for at in (x, y)
                for wave in (torch.sin, torch.cos)
                for k in torch.arange(16).double()
            ]
            rows.append(linear(patch, "patches") + torch.stack(place))
    tokens = torch.stack([weights["class_token"], *rows])
    for k in range(DEPTH):
        name = f"blocks.{k}"
        parts = linear(affine(tokens, f"{name}.norm1"), f"{name}.qkv").chunk(3, dim=1)
        heads = []
        for query, key, value in zip(*(part.chunk(HEADS, dim=1) for part in parts), strict=True):
            scores = query @ key.T / query.shape[1] ** 0.5
            heads.append(scores.softmax(1) @ value)
        tokens = tokens + linear(torch.cat(heads, 1), f"{name}.out")
        hidden = linear(affine(tokens, f"{name}.norm2"), f"{name}.mlp.0")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        tokens = tokens + linear(hidden, f"{name}.mlp.2")
    expected = norm(tokens, 1e-6)
    found = encoder(image[None].float())
    assert torch.allclose(found.patches[0].double(), expected[1:], atol=2e-4)
    assert torch.allclose(found.cls[0].double(), expected[0], atol=2e-4)


def test_scenes_are_shrunk_to_the_grid():
    """40 px are fed as 32: a constant image stays constant, and so equals one of 32 px."""
    colour = torch.tensor([0.2, 0.9, 0.4])[None, :, None, None]
    large = open_encoder("animals-vit", 40)(colour.expand(1, 3, 40, 40))
    small = open_encoder("animals-vit", 32)(colour.expand(1, 3, 32, 32))
    assert torch.allclose(large.patches, small.patches, atol=1e-4)


def test_images_get_a_gradient_and_weights_do_not(encoder):
    images = real("validation", 200)[0].clone().requires_grad_()
    encoder(images).patches.square().mul(torch.arange(64.0)).sum().backward()
    assert images.grad.isfinite().all() and (images.grad.abs().amax((1, 2, 3)) > 0).all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_it_stays_frozen_whatever_is_called(encoder):
    images, _ = real("validation", 100)
    before = encoder(images).patches
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(encoder(images).patches, before)


def test_a_sample_does_not_depend_on_its_batch(encoder):
    images, _ = real("validation", 100)
    alone = torch.cat([encoder(image[None]).patches for image in images])
    assert torch.allclose(encoder(images).patches, alone, atol=1e-4)


def test_the_row_says_what_is_opened(encoder):
    (row,) = AnimalsFamily.rows
    assert (row.name, row.width) == (encoder.name, encoder.width)
    assert row.parameters == parameter_count(encoder)


def test_fingerprints_name_the_weights_and_the_size(encoder):
    assert encoder.fingerprint == AnimalsVit(28).fingerprint
    assert encoder.fingerprint != AnimalsVit(56).fingerprint


def test_a_path_or_an_option_is_refused():
    with pytest.raises(ConfigError, match="takes no path"):
        open_encoder("animals-vit", 28, path="weights")
    with pytest.raises(ConfigError, match="no option 'norm'"):
        open_encoder("animals-vit[norm]", 28)


def test_the_file_is_small_and_holds_halves():
    data = files("nanogen").joinpath("assets", WEIGHTS).read_bytes()
    assert len(data) < 800_000
    tensors = safetensors.torch.load(data).values()
    assert {value.dtype for value in tensors} == {torch.float16}
    assert all(value.isfinite().all() for value in tensors)


def test_a_missing_file_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("nanogen.encoders.animals_vit.WEIGHTS", "gone.safetensors")
    with pytest.raises(DataError, match=r"gone\.safetensors is missing; install nanogen again"):
        AnimalsVit(28)
