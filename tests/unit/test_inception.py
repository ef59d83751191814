"""The Inception of FID: torch-fidelity's outputs, TensorFlow's resize, and its weights file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_inception
import torch
from torch.nn import functional

from nanogen import store
from nanogen.encoders import inception, inception_blocks
from nanogen.encoders.inception import Inception2015, Network, resize
from nanogen.errors import ConfigError
from nanogen.store import Prepared

GOLDEN = Path(__file__).parents[1] / "golden" / "inception_features.json"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Inception2015:
    tiny_inception.stand_in(monkeypatch, tmp_path)
    return Inception2015()


def published_shape() -> Inception2015:
    """The whole network, with weights of the recipe in place of the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "find", lambda asset: Prepared(Path("recipe.pth"), "0" * 64))
        patch.setattr(inception, "read_tensors", lambda path: tiny_inception.weights())
        return Inception2015()


def test_golden_features_of_torch_fidelity():
    network = published_shape()
    for size, golden in json.loads(GOLDEN.read_text())["features"].items():
        found = network(tiny_inception.images(1, *map(int, size.split("x"))))
        assert found["pool"].shape == (1, 2048) and found["spatial"].shape == (1, 2023)
        assert found["logits"].shape == (1, 1008)
        for name, stride in (("pool", 64), ("logits", 48)):
            expected = torch.tensor(golden[name])
            torch.testing.assert_close(found[name][0, ::stride], expected, rtol=1e-4, atol=1e-3)
            assert found[name].norm().item() == pytest.approx(golden[f"{name}_norm"], rel=1e-5)


def test_the_same_bits_as_torch_fidelity():
    pytest.importorskip("torch_fidelity")
    theirs, ours = tiny_inception.fidelity_network(), published_shape()
    spatial = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    for height, width in ((28, 28), (256, 320)):
        images = tiny_inception.images(2, height, width)
        found, (pool, logits) = ours(images), theirs(images)
        assert torch.equal(found["pool"], pool) and torch.equal(found["logits"], logits)
        places = spatial.pop()[:, :7].permute(0, 2, 3, 1)
        assert torch.equal(found["spatial"], places.reshape(2, 2023))


def test_spatial_features_are_those_of_one_branch_place_by_place(tiny):
    seen = []
    branch = tiny.network.get_submodule("Mixed_6d.branch1x1")
    branch.register_forward_hook(lambda *args: seen.append(args[2]))
    found = tiny(tiny_inception.images(2))["spatial"]
    (places,) = seen
    for row, column, channel in ((0, 0, 0), (2, 1, 3), (1, 2, 6)):
        expected = places[:, channel, row, column]
        assert torch.equal(found[:, (row * 3 + column) * 7 + channel], expected)


def test_logits_lack_the_bias(tiny):
    found = tiny(tiny_inception.images(3))
    with_bias = tiny.network.fc(found["pool"])
    torch.testing.assert_close(with_bias - tiny.network.fc.bias, found["logits"])
    assert tiny.network.fc.bias.abs().max() > 0.1


def literal_resize(image: np.ndarray, side: int) -> np.ndarray:
    """The rule of TensorFlow 1, one output value at a time."""
    high, wide = image.shape
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * high / side, j * wide / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, high - 1), min(left + 1, wide - 1)
            dy, dx = y - top, x - left
            out[i, j] = (1 - dy) * ((1 - dx) * image[top, left] + dx * image[top, right]) + dy * (
                (1 - dx) * image[bottom, left] + dx * image[bottom, right]
            )
    return out


def test_a_ramp_is_resized_by_the_rule_of_tensorflow():
    ramp = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    found = resize(ramp, 8)[0, 0].numpy()
    np.testing.assert_array_equal(found[0], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    np.testing.assert_array_equal(found[:, 0], [0, 2, 4, 6, 8, 10, 12, 12])
    np.testing.assert_allclose(found, literal_resize(ramp[0, 0].numpy(), 8), atol=1e-6)
    for align in (False, True):
        other = functional.interpolate(ramp.float(), (8, 8), mode="bilinear", align_corners=align)
        assert np.abs(found - other[0, 0].numpy()).max() > 0.1


@pytest.mark.parametrize("size", [(5, 7), (32, 32), (300, 40), (75, 75)])
def test_any_size_is_resized_by_the_rule_of_tensorflow(size):
    images = tiny_inception.images(1, *size)
    found = resize(images, 75)
    assert found.dtype == torch.float32
    for channel in range(3):
        expected = literal_resize(images[0, channel].numpy().astype(float), 75)
        np.testing.assert_allclose(found[0, channel].numpy(), expected, atol=2e-3)


def test_the_same_bits_as_the_resize_of_torch_fidelity():
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    theirs = module.interpolate_bilinear_2d_like_tensorflow1x
    for size in ((32, 32), (256, 256), (299, 299), (512, 400)):
        images = tiny_inception.images(1, *size)
        expected = theirs(images.float(), size=(299, 299), align_corners=False)
        assert torch.equal(resize(images, 299), expected)


def test_padding_does_not_count_and_the_last_block_takes_the_greatest():
    x = torch.full((1, 1, 4, 4), 3.0)
    torch.testing.assert_close(inception_blocks.mean(x), x)
    pools = {name: branches[-1][0] for name, branches in inception.BLOCKS.items()}
    maxima = [name for name, pool in pools.items() if pool is inception_blocks.greatest]
    assert maxima == ["Mixed_7c"]
    means = [name for name, pool in pools.items() if pool is inception_blocks.mean]
    assert means == [f"Mixed_{n}" for n in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b")]


def test_names_and_sizes_are_those_of_the_published_file():
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Network().state_dict().items()}
    # 94 convolutions with five tensors each, and the classifier.
    assert len(shapes) == 94 * 5 + 2
    assert sum(map(np.prod, shapes.values())) == 23885486 - 94
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7c.branch3x3_2a.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


def test_a_file_that_lacks_or_adds_a_tensor_is_refused(monkeypatch, tmp_path):
    files = tiny_inception.stand_in(monkeypatch, tmp_path)
    good = tiny_inception.weights(tiny_inception.DIVISOR)

    def opened(weights: dict[str, torch.Tensor]) -> Inception2015:
        torch.save(weights, files["inception-2015"])
        store.prepare(inception.WEIGHTS, files["inception-2015"])
        return Inception2015()

    opened(good | {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(3)})
    with pytest.raises(ConfigError, match=r"unknown AuxLogits.fc.bias"):
        opened(good | {"AuxLogits.fc.bias": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"lacks fc.bias"):
        opened({n: t for n, t in good.items() if n != "fc.bias"})


def test_without_its_weights_it_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="nanogen prepare inception-2015"):
        Inception2015()


def test_batches_change_nothing_and_floats_are_refused(tiny, monkeypatch):
    images = tiny_inception.images(9)
    whole = tiny(images)
    monkeypatch.setattr(inception, "AT_ONCE", 4)
    for name, value in tiny(images).items():
        torch.testing.assert_close(value, whole[name])
    with pytest.raises(TypeError, match="uint8"):
        tiny(images.float() / 255)


def test_it_stays_frozen(tiny):
    tiny.train()
    assert not any(module.training for module in tiny.modules())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())
    assert tiny.fingerprint.startswith("inception-2015/")
