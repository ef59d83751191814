"""The networks of FDr and MIND: timm's own numbers, its padding and positions, strict weights."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import tiny_fdr
import torch
from tiny_fdr import TINY, Tiny, body_of, images
from torch import Tensor

from nanogen import registry, store
from nanogen.encoders import distance_networks, timm_convnext
from nanogen.encoders.distance_networks import DistanceNetwork
from nanogen.encoders.timm_vit import Shape, TimmViT, resampled_positions
from nanogen.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "timm_features.json").read_text())
PARAMETERS = {
    "convnextv2-b": 87_690_752,
    "dinov2-l": 304_367_616,
    "mae-l": 303_301_632,
    "siglip2-so400m": 427_888_064,
    "clip-l": 303_179_776,
}
"""of timm's models with num_classes=0; ConvNeXt's norm before the classifier (2,048) is left out"""
every = pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the tiny weights in its store."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, file in tiny_fdr.write_networks(folder).items():
            store.prepare(tiny_fdr.ASSETS[name], file)
    return folder / "cache"


@pytest.fixture
def prepared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registered networks, tiny, with their weights in the store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    tiny_fdr.shrink_networks(monkeypatch)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The registered networks, tiny, with an empty store; a folder to write to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_fdr.shrink_networks(monkeypatch)
    return tmp_path


def opened(tiny: Tiny) -> DistanceNetwork:
    return tiny.network()


def put(tiny: Tiny, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put tensors into the store as the weights of a network."""
    file = folder / tiny.network.weights.file
    safetensors.torch.save_file(tensors, file)
    store.prepare(tiny.network.weights, file)


def weights_of(tiny: Tiny) -> dict[str, Tensor]:
    return tiny_fdr.recipe(tiny.name, tiny_fdr.shapes_of(body_of(tiny)))


@functools.cache
def why_no_timm() -> str:
    try:
        importlib.import_module("timm")
    except Exception as problem:  # a torchvision for another torch breaks its import
        return f"timm cannot be imported: {problem}"
    return ""


def named(name: str) -> Tiny:
    return next(tiny for tiny in TINY if tiny.name == name)


@every
def test_registered_under_the_name_of_its_weights(tiny: Tiny) -> None:
    assert registry.get("network", tiny.name) is tiny.network


@every
@pytest.mark.usefixtures("prepared")
def test_features_are_those_of_timm(tiny: Tiny) -> None:
    found = opened(tiny)(images())["pool"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, torch.tensor(GOLDEN["features"][tiny.name]), rtol=0, atol=1e-5
    )


@every
@pytest.mark.parametrize("size", [(64, 48), (300, 310), (256, 256), (224, 224)])
@pytest.mark.usefixtures("prepared")
def test_features_are_those_of_an_installed_timm(tiny: Tiny, size: tuple[int, int]) -> None:
    if why_no_timm():
        pytest.skip(why_no_timm())
    pictures = images(1, *size)
    expected = tiny_fdr.timm_features(tiny, pictures)
    torch.testing.assert_close(opened(tiny)(pictures)["pool"], expected, rtol=0, atol=1e-5)


@every
def test_published_sizes(tiny: Tiny) -> None:
    with torch.device("meta"):
        body = body_of(replace(tiny, shape=tiny.network.shape))
    assert sum(p.numel() for p in body.parameters()) == PARAMETERS[tiny.name]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("clip-l", {"activation": "tanh"}),
        ("dinov2-l", {"activation": "tanh"}),
        ("siglip2-so400m", {"activation": "none"}),
        ("clip-l", {"heads": 4}),
    ],
)
@pytest.mark.usefixtures("prepared")
def test_another_model_has_other_features(
    name: str, other: Mapping[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = named(name)
    monkeypatch.setattr(tiny.network, "shape", replace(tiny.shape, **other))
    gap = opened(tiny)(images())["pool"] - torch.tensor(GOLDEN["features"][name])
    assert gap.abs().max() > 5e-5


def test_images_are_filled_up_to_whole_patches_on_the_right_and_below() -> None:
    """256 px at patch 14: 19 x 19 patches and the class token, as if zeros had been given."""
    network = TimmViT(Shape(width=8, depth=1, heads=2, hidden=16, patch=14, grid=19))
    pictures = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    tokens = network(pictures)
    assert tokens.shape == (2, 362, 8)
    filled = torch.zeros(2, 3, 266, 266)
    filled[:, :, :256, :256] = pictures
    assert torch.equal(network(filled), tokens)


@pytest.mark.usefixtures("prepared")
def test_zeros_are_added_after_the_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The border is not black but the mean colour of the data."""
    seen: list[Tensor] = []
    network = distance_networks.DinoV2Large()
    network.body.patch_embed["proj"].register_forward_pre_hook(  # ty: ignore
        lambda module, given: seen.append(given[0])
    )
    network(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    (fed,) = seen
    assert fed.shape == (1, 3, 266, 266)
    assert (fed[..., 256:] == 0).all() and (fed[..., 256:, :] == 0).all()
    assert (fed[..., :256, :256] < -1).all()


def test_positions_of_the_trained_grid_stay_as_they_are() -> None:
    table = torch.randn(1, 1 + 25, 4)
    assert resampled_positions(table, (5, 5), prefix=1) is table


def test_positions_keep_constants_order_and_the_class_token() -> None:
    ramp = torch.arange(8.0)[:, None].expand(8, 8)  # grows with the row
    table = torch.cat([torch.full((1, 1), 99.0), ramp.reshape(-1, 1)])[None]
    found = resampled_positions(table, (4, 4), prefix=1)[0, :, 0]
    assert found[0] == 99
    square = found[1:].reshape(4, 4)
    torch.testing.assert_close(square, square[:, :1].expand(4, 4))
    assert (square.diff(dim=0) > 1.5).all()
    torch.testing.assert_close(square.mean(), ramp.mean())


def test_halving_a_side_averages_as_an_antialiased_filter_does() -> None:
    """Of every second row alone, a wave of one row's period would be left: antialiased, it goes."""
    wave = (-1.0) ** torch.arange(16)[:, None].expand(16, 16).reshape(-1, 1)
    found = resampled_positions(wave[None], (8, 8), prefix=0)[0].reshape(8, 8)
    assert found[2:-2].abs().max() < 0.2


@every
def test_a_file_of_another_model_is_refused(tiny: Tiny, empty: Path) -> None:
    put(tiny, weights_of(named("mae-l" if tiny.name != "mae-l" else "clip-l")), empty)
    with pytest.raises(ConfigError, match="does not hold these weights"):
        opened(tiny)


@pytest.mark.parametrize("name", ["clip-l", "convnextv2-b"])
def test_a_classifier_in_the_file_is_left_out(name: str, empty: Path) -> None:
    """The published ones come with theirs."""
    tiny = named(name)
    put(tiny, weights_of(tiny) | {"head.weight": torch.ones(7, 32)}, empty)
    expected = torch.tensor(GOLDEN["features"][name])
    torch.testing.assert_close(opened(tiny)(images())["pool"], expected, rtol=0, atol=1e-5)


@every
def test_missing_weights_say_how_to_get_them(tiny: Tiny, empty: Path) -> None:
    with pytest.raises(ConfigError, match=f"run: nanogen prepare {tiny.name}"):
        opened(tiny)


@every
@pytest.mark.usefixtures("prepared")
def test_frozen_and_named_by_its_weights(tiny: Tiny) -> None:
    network = opened(tiny).train()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    weights = store.find(tiny.network.weights)
    assert network.fingerprint.startswith(f"{tiny.name}/{weights.sha256[:16]}/")
    assert network.fingerprint.endswith("/fp32"), "half precision is for CUDA only"


@every
@pytest.mark.usefixtures("prepared")
def test_batches_and_autocast_do_not_show(tiny: Tiny) -> None:
    network, pictures = opened(tiny), images(3)
    together = network(pictures)["pool"]
    with torch.autocast("cpu", torch.bfloat16):
        one_by_one = torch.cat([network(picture[None])["pool"] for picture in pictures])
    torch.testing.assert_close(one_by_one, together, rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match="uint8"):
        network(pictures.float() / 255)


@pytest.mark.parametrize("name", ["dinov2-l", "siglip2-so400m", "convnextv2-b"])
@pytest.mark.usefixtures("prepared")
def test_half_precision_is_of_the_blocks_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken on CUDA, here on the CPU: the pool is in float32, and ConvNeXt altogether."""
    tiny = named(name)
    network = opened(tiny)
    exact = network(images())["pool"]
    monkeypatch.setattr(DistanceNetwork, "_halved", property(lambda self: self.bf16))
    pooled: list[Tensor] = []
    whole = network.body.pooled
    monkeypatch.setattr(
        network.body, "pooled", lambda tokens: pooled.append(tokens) or whole(tokens)
    )
    found = network(images())["pool"]
    assert network.fingerprint.endswith("/bf16") == network.bf16
    assert found.dtype == pooled[0].dtype == torch.float32
    if isinstance(tiny.shape, timm_convnext.Shape):
        assert torch.equal(found, exact)
    else:
        assert 1e-4 < (found - exact).abs().max() < 0.2
