"""LPIPS against numpy, with a random trunk: the trained one is a download."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch
from parts import images
from safetensors.torch import save_file

from nanogen.encoders import lpips
from nanogen.encoders.lpips import Lpips, Trunk, heads_file, open_lpips, read_heads
from nanogen.errors import ConfigError, DataError, MissingExtra
from nanogen.model import parameter_count

LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""the convolutions of VGG16 in a file of its weights"""
HALVED_BEFORE = (5, 10, 17, 24)
COMPARED_AFTER = (2, 7, 14, 21, 28)

needs_heads = pytest.mark.skipif(heads_file() is None, reason="no package with the heads")


def random_heads() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(c, generator=generator) for c in (64, 128, 256, 512, 512)]


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    """Random, at a scale that keeps the size of activations from layer to layer."""
    built = Trunk()
    generator = torch.Generator().manual_seed(0)
    for weight in built.parameters():
        with torch.no_grad():
            spread = (2 / weight[0].numel()) ** 0.5 if weight.ndim == 4 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return built


@pytest.fixture(scope="module")
def built(trunk) -> Lpips:
    return Lpips(trunk, random_heads())


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with heads in the layout of the real one; its import would fail."""
    folder = tmp_path / "site" / "lpips" / "weights" / "v0.1"
    folder.mkdir(parents=True)
    (tmp_path / "site" / "lpips" / "__init__.py").write_text("raise RuntimeError('imported')")
    heads = {f"lin{i}.model.1.weight": h[None, :, None, None] for i, h in enumerate(random_heads())}
    torch.save(heads, folder / "vgg.pth")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(
        lpips, "HEADS_MD5", hashlib.md5((folder / "vgg.pth").read_bytes()).hexdigest()
    )
    return folder / "vgg.pth"


def numpy_lpips(state, heads, one, other):
    """One pair [3, H, W] in [0, 1], in float64."""

    def taps(image):
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x = (2 * image - 1 - shift[:, None, None]) / scale[:, None, None]
        for layer in LAYERS:
            if layer in HALVED_BEFORE:
                c, h, w = x.shape
                x = x.reshape(c, h // 2, 2, w // 2, 2).max((2, 4))
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            weight = state[f"features.{layer}.weight"].double().numpy()
            h, w = x.shape[1:]
            x = state[f"features.{layer}.bias"].double().numpy()[:, None, None] + sum(
                np.einsum("oi,ihw->ohw", weight[:, :, r, c], padded[:, r : r + h, c : c + w])
                for r in range(3)
                for c in range(3)
            )
            x = np.maximum(x, 0)
            if layer in COMPARED_AFTER:
                yield x / (np.sqrt((x**2).sum(0)) + 1e-10)

    return sum(
        np.einsum("c,chw->hw", head.double().numpy(), (a - b) ** 2).mean()
        for head, a, b in zip(heads, taps(one), taps(other), strict=True)
    )


def test_equals_numpy(trunk, built):
    one, other = images(2, 32, seed=2), images(2, 32, seed=3)
    found = built(one, other)
    assert found.shape == (2,) and found.dtype == torch.float32
    for row in range(2):
        expected = numpy_lpips(
            trunk.state_dict(),
            random_heads(),
            one[row].double().numpy(),
            other[row].double().numpy(),
        )
        assert expected > 0.01
        assert found[row].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_distance(built):
    one, other = images(3, 28, seed=2), images(3, 28, seed=3)
    assert torch.equal(built(one, one), torch.zeros(3))
    torch.testing.assert_close(built(one, other), built(other, one), rtol=1e-6, atol=0)
    nearer = one + 0.1 * (other - one)
    assert (built(one, nearer) < built(one, other)).all()
    alone = torch.cat([built(one[i : i + 1], other[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(built(one, other), alone, rtol=1e-5, atol=0)


def test_frozen_and_differentiable_in_both_images(built):
    before = built(images(1, 32), images(1, 32, seed=1))
    built.train()
    assert not any(module.training for module in built.modules())
    assert torch.equal(built(images(1, 32), images(1, 32, seed=1)), before)
    assert not any(weight.requires_grad for weight in built.parameters())
    one, other = images(1, 32).requires_grad_(), images(1, 32, seed=1).requires_grad_()
    built(one, other).sum().backward()
    assert one.grad.abs().sum() > 0 and other.grad.abs().sum() > 0


def test_the_gradient_is_finite_where_features_vanish(trunk):
    """A dead vector of channels has length 0, where the root has no slope."""
    dead = Trunk()
    dead.load_state_dict({n: t.clone().zero_() for n, t in trunk.state_dict().items()})
    given = images(1, 16).requires_grad_()
    Lpips(dead, random_heads())(given, images(1, 16, seed=1)).sum().backward()
    assert given.grad.isfinite().all()


def test_under_autocast_only_the_trunk_is_rounded(built):
    one, other = images(2, 32), images(2, 32, seed=1)
    exact = built(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = built(one, other)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0)


def test_the_layout_of_the_trunk(trunk):
    assert parameter_count(trunk) == 14_714_688
    assert {n.split(".")[1] for n in trunk.state_dict()} == {str(layer) for layer in LAYERS}
    taps = trunk(images(1, 32))
    assert [tuple(tap.shape[1:]) for tap in taps] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    assert all((tap >= 0).all() for tap in taps)


def test_opening(trunk, installed, tmp_path):
    """From torchvision's and timm's files, with their classifiers; the package is not imported."""
    state = trunk.state_dict()
    torch.save(state | {"classifier.6.bias": torch.zeros(9)}, tmp_path / "vgg16-397923af.pth")
    save_file(state | {"head.fc.bias": torch.zeros(9)}, tmp_path / "timm.safetensors")
    expected = Lpips(trunk, random_heads())
    for path in (tmp_path, tmp_path / "timm.safetensors"):
        opened = open_lpips(str(path))
        assert opened.fingerprint == expected.fingerprint
        given = images(1, 16), images(1, 16, seed=1)
        assert torch.equal(opened(*given), expected(*given))
    assert "lpips" not in sys.modules
    del state["features.28.bias"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(ConfigError, match="lacks features.28.bias"):
        open_lpips(str(tmp_path / "broken.safetensors"))
    with pytest.raises(ConfigError, match="decoder.lpips=nowhere"):
        open_lpips("nowhere", field="decoder.lpips")


def test_heads_that_are_not_the_known_ones_are_refused(installed, monkeypatch):
    installed.write_bytes(installed.read_bytes() + b" ")
    with pytest.raises(DataError, match="install its package again"):
        read_heads()
    monkeypatch.setattr(lpips, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=r"lpips or torchmetrics.*nanogen\[stage1\]"):
        read_heads()


@needs_heads
def test_the_installed_heads():
    imported = {package for package in lpips.HEADS if package in sys.modules}
    heads = read_heads()
    assert [len(head) for head in heads] == [64, 128, 256, 512, 512]
    # Trained under the constraint that no channel counts negatively.
    assert all((head >= 0).all() and head.max() > 0 for head in heads)
    assert {package for package in lpips.HEADS if package in sys.modules} == imported
