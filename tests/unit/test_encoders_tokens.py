"""Which tokens each vision encoder gives, against what transformers itself returns, sliced and
normed by hand.
"""

from __future__ import annotations

import pytest
import torch
from parts import images
from tiny_encoders import original, tiny_folder, write_encoder
from torch.nn import functional

from nanogen.encoders.vision import open_encoder

IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
HALF = torch.full((2, 1, 3, 1, 1), 0.5)
CLIP = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
CLIP = CLIP[:, None, :, None, None]
BICUBIC = {"mode": "bicubic", "align_corners": False}


def opened(name, image_size=256):
    return open_encoder(name, image_size, str(tiny_folder(name)))


def plain(tokens, epsilon=1e-5):
    """Mean 0 and variance 1 over channels."""
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()


def fed(given, side, constants=IMAGENET):
    mean, std = constants
    return functional.interpolate((given - mean) / std, (side, side), **BICUBIC)


def seen(name, pixels):
    """Output of the last block, of every block, and after the final norm, by transformers alone."""
    outputs = original(name, tiny_folder(name))(pixel_values=pixels, output_hidden_states=True)
    return outputs.hidden_states[-1], outputs.hidden_states[1:], outputs.last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2-vit-b", "dinov2-vit-b[norm]"])
def test_dinov2(name):
    given = images(2, 256)
    last, _, normed = seen(name, fed(given, 224))
    expected = normed if "norm" in name else plain(last)
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected[:, 5:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    if "norm" not in name:
        assert features.patches.mean(-1).abs().max() < 1e-5
        assert (features.patches.var(-1, correction=0) - 1).abs().max() < 1e-4


@torch.no_grad()
def test_dinov2_positions():
    """Overwritten, those without registers are what the class with registers makes of the same
    table; left alone they are not, as nothing filters them.
    """
    bare, registers = (
        original(name, tiny_folder(name)) for name in ("dinov2-vit-b[woreg]", "dinov2-vit-b")
    )
    table = bare.embeddings.position_embeddings
    registers.embeddings.position_embeddings.copy_(table)
    tokens = torch.zeros(1, 257, table.shape[-1])
    filtered = registers.embeddings.interpolate_pos_encoding(tokens, 224, 224)
    unfiltered = bare.embeddings.interpolate_pos_encoding(tokens, 224, 224)
    ours = opened("dinov2-vit-b[woreg]").network.embeddings
    assert ours.position_embeddings.shape == (1, 257, table.shape[-1])
    found = ours.interpolate_pos_encoding(tokens, 224, 224)
    torch.testing.assert_close(found, filtered, atol=1e-6, rtol=0)
    assert (unfiltered - filtered).abs().mean() > 0.1 * filtered.abs().mean()


@torch.no_grad()
def test_the_target_of_repa_e_is_another_encoder():
    """Without registers and with affine, where the latent space has registers and no affine."""
    given = images(1, 256)
    name = "dinov2-vit-b[woreg,norm]"
    network = original(name, tiny_folder(name))
    table = network.embeddings.position_embeddings
    square = table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    square = functional.interpolate(square, (16, 16), **BICUBIC, antialias=True)
    network.embeddings.position_embeddings.data = torch.cat(
        [table[:, :1], square.flatten(2).mT], dim=1
    )
    expected = network(pixel_values=fed(given, 224)).last_hidden_state
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected[:, 1:], atol=1e-5, rtol=1e-5)
    assert opened(name).norm.eps == 1e-6 and opened("dinov2-vit-b").norm.eps == 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2mls-vit-b", "dinov2mls-vit-b[layers=0.7]"])
def test_dinov2_layers(name):
    given = images(2, 256)
    _, blocks, _ = seen(name, fed(given, 224))
    layers = (0, 7) if "layers" in name else (2, 5, 8, 11)
    expected = sum(plain(blocks[layer])[:, 5:] for layer in layers) / len(layers)
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, expected.mean(1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov3-vit-b16", "dinov3-vit-b16[norm]"])
def test_dinov3(name):
    given = images(2, 256)
    mean, std = IMAGENET
    last, _, normed = seen(name, (given - mean) / std)
    expected = normed if "norm" in name else plain(last)
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected[:, 5:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, expected[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_dinov3_layers_add_the_mean_token_of_the_last():
    given, name = images(2, 256), "dinov3mls-vit-b16[layers=1.6]"
    mean, std = IMAGENET
    _, blocks, _ = seen(name, (given - mean) / std)
    first, second = plain(blocks[1])[:, 5:], plain(blocks[6])[:, 5:]
    token = second.mean(1, keepdim=True)
    features = opened(name)(given)
    expected = (first + second) / 2 + token
    torch.testing.assert_close(features.patches, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, token[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_dinov3_is_never_in_train_mode():
    """There its positions are rescaled at random."""
    given, name = images(1, 256), "dinov3-vit-b16"
    encoder = opened(name)
    assert encoder.network.config.pos_embed_rescale == 2.0
    around = torch.nn.ModuleDict({"encoder": encoder}).train()
    first, second = (around["encoder"](given).patches for _ in range(2))
    assert torch.equal(first, second)
    network = original(name, tiny_folder(name)).train()
    mean, std = IMAGENET
    first, second = (network((given - mean) / std).last_hidden_state for _ in range(2))
    assert (first - second).abs().max() > 1e-3


@torch.no_grad()
def test_siglip2_keeps_the_affine_unless_it_is_stripped():
    given, name = images(2, 256), "siglip2-vit-b"
    mean, std = HALF
    network = original(name, tiny_folder(name))
    expected = network(pixel_values=(given - mean) / std).last_hidden_state
    kept = opened(name)(given)
    torch.testing.assert_close(kept.patches, expected, atol=1e-5, rtol=1e-5)
    assert kept.cls is None
    norm = network.post_layernorm
    stripped = opened("siglip2-vit-b[strip]")(given).patches
    by_hand = (expected - norm.bias) / norm.weight
    torch.testing.assert_close(stripped, by_hand, atol=1e-4, rtol=1e-4)
    assert (stripped - kept.patches).abs().max() > 0.1
    mean, std = IMAGENET
    expected = network(pixel_values=(given - mean) / std).last_hidden_state
    found = opened("siglip2-vit-b[imagenet]")(given).patches
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_siglip2_layers_are_normed_with_affine():
    given, name = images(1, 256), "siglip2mls-vit-b[layers=2.11]"
    mean, std = HALF
    network = original(name, tiny_folder(name))
    _, blocks, last = seen(name, (given - mean) / std)
    first = network.post_layernorm(blocks[2])
    expected = (first + last) / 2 + last.mean(1, keepdim=True)
    torch.testing.assert_close(opened(name)(given).patches, expected, atol=1e-5, rtol=1e-5)


def mae_by_hand(pixels, network):
    """The network's own layers one after the other, with no masking between."""
    table = network.embeddings.position_embeddings
    old, new = round((table.shape[1] - 1) ** 0.5), pixels.shape[-1] // network.config.patch_size
    square = table[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    square = functional.interpolate(square, (new, new), **BICUBIC)
    tokens = network.embeddings.patch_embeddings.projection(pixels).flatten(2).mT
    first = (network.embeddings.cls_token + table[:, :1]).expand(len(pixels), -1, -1)
    tokens = torch.cat([first, tokens + square.flatten(2).mT], dim=1)
    blocks = next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList))
    for block in blocks:
        out = block(tokens)
        tokens = out[0] if isinstance(out, tuple) else out
    return plain(tokens, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize(("name", "side"), [("mae-vit-b", 256), ("mae-vit-h", 224)])
def test_mae_sees_every_patch_in_order(name, side):
    given = images(2, 256)
    expected = mae_by_hand(fed(given, side), original(name, tiny_folder(name)))
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.cls, expected[:, 0], atol=1e-4, rtol=1e-4)
    assert opened(name).norm.eps == 1e-12


@torch.no_grad()
def test_mae_keeps_the_order_in_half_precision():
    """At 512 px there are 1024 tokens; in bfloat16 only 513 of their numbers are apart."""
    given = images(1, 512)
    encoder = opened("mae-vit-b", 512)
    exact = encoder(given).patches
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(given).patches
    assert exact.shape == (1, 1024, 32)
    assert functional.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.99


@torch.no_grad()
def test_webssl_keeps_its_norm_and_its_positions():
    given, name = images(2, 256), "webssl-vit-dino1b_full2b_224"
    _, _, expected = seen(name, fed(given, 224))
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, expected[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_jepa_has_no_class_token():
    given, name = images(2, 256), "jepa-vit-h"
    _, _, expected = seen(name, fed(given, 224))
    features = opened(name)(given)
    assert features.cls is None
    torch.testing.assert_close(features.patches, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_clip_is_read_before_its_norm():
    given, name = images(2, 256), "clip-vit-l"
    expected, _, _ = seen(name, fed(given, 224, CLIP))
    features = opened(name)(given)
    torch.testing.assert_close(features.patches, expected[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.cls, expected[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_tipsv2_drops_both_class_tokens():
    given, name = images(2, 256), "tipsv2-vit-b14"
    last, _, _ = seen(name, functional.interpolate(given, (224, 224), **BICUBIC))
    features = opened(name)(given)
    expected = plain(last)
    torch.testing.assert_close(features.patches, expected[:, 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, expected[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_convnextv2_gives_its_last_map():
    given, name = images(2, 256), "convnextv2-cnn-tiny"
    mean, std = IMAGENET
    pixels = functional.interpolate((given - mean) / std, (224, 224), mode="bilinear")
    expected = original(name, tiny_folder(name))(pixel_values=pixels).last_hidden_state
    features = opened(name)(given)
    assert features.patches.shape == (2, 49, 32) and features.cls is None
    torch.testing.assert_close(features.patches[:, 7 * 2 + 5], expected[:, :, 2, 5])


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["dinov2-vit-b", "dinov2-vit-b[woreg]", "dinov3-vit-b16", "jepa-vit-h"]
)
def test_twice_the_size_has_four_times_the_tokens(name):
    encoder = opened(name, 512)
    features = encoder(images(1, 512))
    assert encoder.grid == 32 and features.patches.shape == (1, 1024, 32)


def test_the_tiny_models_hide_nothing(tmp_path):
    """No weight of theirs is at the value where a mistake in its use would not show."""
    folder = write_encoder(tmp_path / "tiny", "dinov2-vit-b")
    network = original("dinov2-vit-b", folder)
    assert all(weight.std() > 0.05 for weight in network.parameters() if weight.numel() > 1)
