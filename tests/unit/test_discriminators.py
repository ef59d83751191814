"""Discriminators: layout of published files, equivalences, and where gradients go."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from nanogen.errors import ConfigError
from nanogen.stage1 import dino
from nanogen.stage1.dino import RECIPES, DinoRecipe, DinoTrunk, load_trunk
from nanogen.stage1.discriminators import (
    DinoDiscriminator,
    PatchDiscriminator,
    SampleNorm,
    SpectralConv1d,
)

SMALL = DinoRecipe(width=24, heads=2, patch=8, depth=4, taps=(0, 1, 2, 3), side=32)


def images(count=3, side=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, 3, side, side, generator=generator) - 1


def weights(recipe=SMALL, seed=0):
    """Random weights of a trunk: norms near 1, so that nothing vanishes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(w.shape, generator=generator) + (w.ndim == 1 and "weight" in name)
        for name, w in DinoTrunk(recipe).state_dict().items()
    }


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return DinoDiscriminator(dino.filled_trunk(SMALL, weights(), "a test"))


def by_hand(w, x):
    """The five maps from the weights alone: attention written out, one head at a time."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = F.interpolate((x + 1) / 2, (32, 32), mode="bilinear")
    x = F.conv2d((x - mean) / std, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 8)
    x = x.flatten(2).mT
    x = torch.cat([w["cls_token"].repeat(len(x), 1, 1), x], 1) + w["pos_embed"]
    maps = []
    for i in range(4):

        def linear(x, name, i=i):
            return x @ w[f"blocks.{i}.{name}.weight"].T + w[f"blocks.{i}.{name}.bias"]

        def norm(x, name, i=i):
            variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-6).sqrt()
            return x * w[f"blocks.{i}.{name}.weight"] + w[f"blocks.{i}.{name}.bias"]

        qkv = linear(norm(x, "norm1"), "attn.qkv")
        out = []
        for head in range(2):
            q, k, v = (qkv[..., 24 * n + 12 * head : 24 * n + 12 * head + 12] for n in range(3))
            out.append((q @ k.mT / 12**0.5).softmax(-1) @ v)
        x = x + linear(torch.cat(out, -1), "attn.proj")
        hidden = linear(norm(x, "norm2"), "mlp.fc1")
        cubic = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
        x = x + linear(0.5 * hidden * (1 + torch.tanh(cubic)), "mlp.fc2")
        maps.append(x[:, 1:].mT)
    return [maps[-1], *maps]


def test_trunk_is_dino_by_hand(discriminator):
    """The biases of the keys, which the loader sets to 0, change nothing but rounding."""
    found = discriminator.trunk(images())
    for one, other in zip(found, by_hand(weights(), images()), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_shapes_and_the_first_map_is_the_last(discriminator):
    maps = discriminator.trunk(images())
    assert [tuple(x.shape) for x in maps] == [(3, 24, 16)] * 5
    assert torch.equal(maps[0], maps[4])
    assert discriminator(images()).shape == (3, 5 * 16)


def test_layout_at_the_published_size():
    with torch.device("meta"):
        discriminator = DinoDiscriminator(DinoTrunk(RECIPES["S_8"]))
        logits = discriminator(torch.empty(2, 3, 256, 256))
    state = discriminator.state_dict()
    assert logits.shape == (2, 3920)
    assert sum(p.numel() for p in discriminator.parameters()) == 7_386_245
    assert len(state) == 80 and len(discriminator.trunk.state_dict()) == 150
    spectral = ["bias", "weight_orig", "weight_u", "weight_v"]
    parts = {"0.0": spectral, "0.1": ["bias", "weight"], "1.fn.0": spectral}
    parts |= {"1.fn.1": ["bias", "weight"], "2": spectral}
    assert set(state) == {
        f"heads.{head}.{part}.{name}"
        for head in range(5)
        for part, names in parts.items()
        for name in names
    }
    assert state["heads.4.1.fn.0.weight_orig"].shape == (384, 384, 9)
    assert state["heads.0.1.fn.0.weight_v"].shape == (384 * 9,)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_their_files(name):
    """Shapes of the files that timm publishes under these names."""
    with torch.device("meta"):
        state = DinoTrunk(RECIPES[name]).state_dict()
    width, patch = (768 if name[0] == "B" else 384), int(name[2:])
    assert state["pos_embed"].shape == (1, (224 // patch) ** 2 + 1, width)
    assert state["patch_embed.proj.weight"].shape == (width, 3, patch, patch)
    assert state["blocks.11.attn.qkv.weight"].shape == (3 * width, width)
    assert state["blocks.11.mlp.fc1.weight"].shape == (4 * width, width)


@pytest.mark.parametrize("train", [True, False])
def test_spectral_convolution_is_that_of_torch(train):
    """Same names, same values, same gradients, same vectors after three forward passes."""
    torch.manual_seed(1)
    plain = nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular")
    theirs, ours = nn.utils.spectral_norm(plain), SpectralConv1d(6, 4, 3)
    ours.load_state_dict(theirs.state_dict())
    theirs.train(train), ours.train(train)
    x = torch.randn(2, 6, 9)
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x))
    (one,) = torch.autograd.grad(ours(x).square().sum(), ours.weight_orig)
    (other,) = torch.autograd.grad(theirs(x).square().sum(), theirs.weight_orig)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weight_u, theirs.weight_u)
    torch.testing.assert_close(ours.weight_v, theirs.weight_v)


def test_spectral_norm_nears_the_largest_singular_value():
    torch.manual_seed(2)
    layer, x = SpectralConv1d(6, 5, 3), torch.randn(1, 6, 7)
    first = torch.linalg.matrix_norm(layer.weight().flatten(1), 2)
    for _ in range(200):
        layer(x)
    last = torch.linalg.matrix_norm(layer.weight().flatten(1), 2)
    # u' W v never exceeds the largest singular value, so the quotient is at least 1.
    assert first >= 1 and last.item() == pytest.approx(1, abs=1e-4)
    before = layer.weight_u.clone()
    layer.eval()(x)
    assert torch.equal(layer.weight_u, before), "eval takes no step"


def test_two_forward_passes_before_a_backward_pass(discriminator):
    """The second one moves u and v, which the graph of the first still needs."""
    real, fake = discriminator(images()), discriminator(images(seed=1))
    (real.mean() + fake.mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters())


def test_sample_norm_is_instance_norm():
    norm, x = SampleNorm(6), torch.randn(3, 6, 10) * 2 + 1
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    wanted = F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-6)
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])


def test_a_head_by_hand(discriminator):
    """Convolution, norm and leaky ReLU; the same with neighbours and a way around; one logit."""
    discriminator.eval()
    head, x = discriminator.heads[2], discriminator.trunk(images())[2]

    def block(x, conv, norm):
        size = conv.weight_orig.shape[2] // 2
        sigma = conv.weight_u @ conv.weight_orig.flatten(1) @ conv.weight_v
        x = torch.cat([x[..., x.shape[2] - size :], x, x[..., :size]], -1)
        x = F.conv1d(x, conv.weight_orig / sigma, conv.bias)
        if norm is not None:
            x = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-6), 0.2)
        return x

    y = block(x, head[0][0], head[0][1])
    y = (y + block(y, head[1].fn[0], head[1].fn[1])) / 2**0.5
    torch.testing.assert_close(head(x), block(y, head[2], None))


def test_gradients_go_to_heads_and_images_but_not_to_the_trunk(discriminator):
    x = images().requires_grad_()
    discriminator(x).mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in discriminator.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in discriminator.trunk.parameters())
    trunk = {id(p) for p in discriminator.trunk.parameters()}
    assert not trunk & {id(p) for p in discriminator.parameters()}


def test_the_trunk_stays_in_eval_and_moves_along(discriminator):
    discriminator.train()
    assert not any(module.training for module in discriminator.trunk.modules())
    assert discriminator.heads[0].training
    discriminator.double()
    assert {p.dtype for p in discriminator.trunk.parameters()} == {torch.float64}


def test_a_copy_gives_the_same(discriminator):
    discriminator.eval()
    assert torch.equal(copy.deepcopy(discriminator)(images()), discriminator(images()))


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_files_are_read_strictly(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(dino.RECIPES, "S_8", SMALL)
    file, given = tmp_path / f"dino.{kind}", weights()

    def write():
        torch.save(given, file) if kind == "pth" else save_file(given, file)
        return str(file)

    trunk = load_trunk("S_8", write())
    bias = trunk.blocks[1].attn.qkv.bias
    assert torch.equal(bias[:24], given["blocks.1.attn.qkv.bias"][:24])
    assert not bias[24:48].any() and bias[48:].all()
    assert not any(p.requires_grad for p in trunk.parameters())
    del given["blocks.2.mlp.fc1.bias"]
    with pytest.raises(ConfigError, match=r"blocks.2.mlp.fc1.bias"):
        load_trunk("S_8", write())


def test_wrong_names_and_files_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="did you mean S_8"):
        load_trunk("S_9")
    with pytest.raises(ConfigError, match="discriminator.path"):
        load_trunk("S_8", str(tmp_path / "absent.pth"))
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ConfigError, match="not a readable file of weights"):
        load_trunk("S_8", str(tmp_path / "code.pth"))


def test_patch_discriminator_is_the_published_one():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator()
    # 3-64-128-256-512-1 in 4 x 4 kernels; biases only where no batch normalisation follows.
    wanted = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in discriminator.parameters()) == wanted == 2_765_633
    assert discriminator(images(2, 64)).shape == (2, 6 * 6)
    convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    spread = torch.cat([m.weight.flatten() for m in convolutions]).std().item()
    assert spread == pytest.approx(0.02, rel=1e-2)
    norms = [m for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    gains = torch.cat([m.weight for m in norms])
    assert gains.mean().item() == pytest.approx(1, abs=3e-3)
    assert gains.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_patch_is_70_pixels():
    """The receptive field of one logit, from where its gradient is not zero."""
    torch.manual_seed(0)
    discriminator, x = PatchDiscriminator(channels=2).eval(), images(1, 128).requires_grad_()
    logits = discriminator(x).view(14, 14)
    (gradient,) = torch.autograd.grad(logits[7, 7], x)
    assert (gradient[0].abs().sum((0, 1)) > 0).sum() == 70


def test_patch_discriminator_of_other_sizes():
    small = PatchDiscriminator(channels=8, layers=2)
    assert small(images(2, 28)).shape == (2, 25)
    assert small.main[5].weight.shape == (32, 16, 4, 4)
    assert PatchDiscriminator(4, layers=3)(images(1, 24).repeat(2, 1, 1, 1)).shape == (2, 1)
    with pytest.raises(ConfigError, match="at least 24 px, not 23"):
        PatchDiscriminator(4, layers=3)(images(2, 23))
