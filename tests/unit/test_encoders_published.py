"""Constants of encoders that no other test would miss: they show in rounding, or at one size."""

from __future__ import annotations

import torch
from parts import images
from tiny_encoders import original, tiny_folder
from torch.nn import functional

from nanogen.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD
from nanogen.encoders.vision import open_encoder


def opened(name):
    return open_encoder(name, 256, str(tiny_folder(name)))


@torch.no_grad()
def test_the_norm_of_tipsv2_has_its_own_epsilon():
    """1e-5 without affine, where the network's own norm has another: seen on tokens that hardly
    vary.
    """
    name = "tipsv2-vit-b14"
    norm, own = opened(name).norm, original(name, tiny_folder(name)).layernorm
    tokens = 1e-3 * torch.randn(4, own.normalized_shape[0])
    variance, mean = torch.var_mean(tokens, -1, correction=0, keepdim=True)
    wanted = (tokens - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(norm(tokens), wanted, rtol=1e-5, atol=1e-6)
    assert own.eps != 1e-5


def test_dinov3_shrinks_with_antialiasing():
    given = images(2, 400)
    mean, std = (torch.tensor(one)[:, None, None] for one in (IMAGENET_MEAN, IMAGENET_STD))
    rule = {"mode": "bilinear", "align_corners": False}
    smooth, rough = (
        (functional.interpolate(given, (256, 256), antialias=on, **rule) - mean) / std
        for on in (True, False)
    )
    found = opened("dinov3-vit-b16").preprocess(given)
    torch.testing.assert_close(found, smooth, rtol=1e-5, atol=1e-5)
    assert (smooth - rough).abs().max() > 0.1
