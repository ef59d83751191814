"""Published decoders: read from any wrapper, used as they are, and written back key for key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nanogen.errors import ConfigError
from nanogen.tokenizers.rae_decoder import SIZES, DecoderConfig, RaeDecoder
from nanogen.tokenizers.rae_layout import from_reference, read_reference, to_reference

CHANNELS, WIDTH, HEADS, HIDDEN, DEPTH, GRID, PATCH = 6, 16, 2, 24, 2, 3, 2


def published(seed: int = 0) -> dict[str, Tensor]:
    """A random decoder by the names of the published layout."""
    shapes = {
        "decoder_pos_embed": (1, GRID**2 + 1, WIDTH),
        "trainable_cls_token": (1, 1, WIDTH),
        "decoder_embed.weight": (WIDTH, CHANNELS),
        "decoder_embed.bias": (WIDTH,),
        "decoder_norm.weight": (WIDTH,),
        "decoder_norm.bias": (WIDTH,),
        "decoder_pred.weight": (3 * PATCH**2, WIDTH),
        "decoder_pred.bias": (3 * PATCH**2,),
    }
    for layer in range(DEPTH):
        p = f"decoder_layers.{layer}."
        for part in ("query", "key", "value"):
            shapes[f"{p}attention.attention.{part}.weight"] = (WIDTH, WIDTH)
            shapes[f"{p}attention.attention.{part}.bias"] = (WIDTH,)
        for name, rows, columns in (
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", HIDDEN, WIDTH),
            ("output.dense", WIDTH, HIDDEN),
        ):
            shapes[f"{p}{name}.weight"], shapes[f"{p}{name}.bias"] = (rows, columns), (rows,)
        for name in ("layernorm_before", "layernorm_after"):
            shapes[f"{p}{name}.weight"] = shapes[f"{p}{name}.bias"] = (WIDTH,)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def functional_forward(w: dict[str, Tensor], features: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 3, H, W], straight from the published names."""
    x = functional.linear(
        features.flatten(2).mT, w["decoder_embed.weight"], w["decoder_embed.bias"]
    )
    x = torch.cat([w["trainable_cls_token"].expand(len(x), 1, WIDTH), x], 1)
    x = x + w["decoder_pos_embed"]
    for layer in range(DEPTH):

        def linear(y: Tensor, name: str, p: str = f"decoder_layers.{layer}.") -> Tensor:
            return functional.linear(y, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"])

        def norm(y: Tensor, name: str, p: str = f"decoder_layers.{layer}.") -> Tensor:
            return functional.layer_norm(
                y, (WIDTH,), w[f"{p}{name}.weight"], w[f"{p}{name}.bias"], 1e-12
            )

        y = norm(x, "layernorm_before")
        q, k, v = (
            linear(y, f"attention.attention.{part}").unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = (q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1) @ v
        x = x + linear(seen.transpose(1, 2).flatten(2), "attention.output.dense")
        y = norm(x, "layernorm_after")
        x = x + linear(functional.gelu(linear(y, "intermediate.dense")), "output.dense")
    x = functional.layer_norm(x, (WIDTH,), w["decoder_norm.weight"], w["decoder_norm.bias"], 1e-12)
    x = functional.linear(x, w["decoder_pred.weight"], w["decoder_pred.bias"])[:, 1:]
    # torch's fold wants channel, row, column within a patch.
    x = x.unflatten(2, (PATCH, PATCH, 3)).permute(0, 4, 2, 3, 1).flatten(1, 3)
    return functional.fold(x, (GRID * PATCH,) * 2, PATCH, stride=PATCH)


def wrapped(how: str) -> dict[str, object]:
    tensors = published()
    prefix = {"module": "module.", "compiled": "_orig_mod.", "both": "module._orig_mod."}
    if how in prefix:
        return {prefix[how] + name: t for name, t in tensors.items()}
    if how == "checkpoint":
        inner = {f"module.decoder.{name}": t for name, t in tensors.items()}
        inner["module.encoder.model.norm.weight"] = torch.ones(3)
        other = {name: torch.zeros_like(t) for name, t in inner.items()}
        return {"step": 5, "epoch": 1, "model": other, "ema": inner, "optimizer": {"lr": 0.1}}
    return {"plain": tensors, "ema": {"ema": tensors}, "state": {"state_dict": tensors}}[how]


@pytest.mark.parametrize("how", ["plain", "ema", "state", "module", "compiled", "both"])
def test_wrappers(tmp_path: Path, how: str) -> None:
    torch.save(wrapped(how), tmp_path / "decoder.pt")
    found = read_reference(tmp_path / "decoder.pt")
    assert found.keys() == published().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in published().items())


def test_a_training_checkpoint_gives_its_averaged_decoder(tmp_path: Path) -> None:
    torch.save(wrapped("checkpoint"), tmp_path / "checkpoint.pt")
    found = read_reference(tmp_path / "checkpoint.pt")
    assert found.keys() == published().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in published().items())


def test_output_and_export() -> None:
    weights = from_reference(published(), heads=HEADS)
    made = weights.module()
    assert made.config == DecoderConfig(CHANNELS, GRID, PATCH, WIDTH, DEPTH, HEADS, HIDDEN)
    features = torch.randn(2, CHANNELS, GRID, GRID)
    torch.testing.assert_close(
        made(features), functional_forward(published(), features), atol=1e-5, rtol=1e-5
    )
    again = to_reference(made)
    assert again.keys() == published().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in published().items())


def test_positions_come_from_the_file() -> None:
    """They were trained: a table that is made anew would be another."""
    made = from_reference(published(), heads=HEADS).module()
    assert torch.equal(made.pos_embed, published()["decoder_pos_embed"])


def test_the_published_size_has_456_keys() -> None:
    with torch.device("meta"):
        made = RaeDecoder(DecoderConfig(channels=768, grid=16, patch=16, **SIZES["XL"]))
    names = {name.replace("blocks", "") for name in made.state_dict()}
    assert len(names) == len(made.state_dict())
    # Each fused projection is three there.
    fused = sum("qkv" in name for name in names)
    assert len(names) + 2 * fused == 456


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("decoder_norm.bias"), "it lacks norm.bias"),
        (
            lambda t: t.pop("decoder_layers.1.attention.attention.key.weight"),
            "it lacks blocks.1.attn.qkv.weight",
        ),
        (lambda t: t.update(extra=torch.ones(2)), "it has unknown extra"),
        (lambda t: t.pop("decoder_embed.weight"), "is no RAE decoder of diffusion-bench"),
        (lambda t: t.update(decoder_pos_embed=torch.ones(1, 9, WIDTH)), "neither of them a square"),
        (
            lambda t: t.update({"decoder_layers.0.output.dense.bias": torch.ones(3)}),
            r"blocks.0.mlp.fc2.bias is \[3\], not \[16\]",
        ),
    ],
)
def test_what_is_not_one_is_refused(change, message: str) -> None:
    tensors = published()
    change(tensors)
    with pytest.raises(ConfigError, match=message):
        from_reference(tensors, heads=HEADS).module()


def test_unknown_width_needs_heads() -> None:
    with pytest.raises(ConfigError, match="16 wide: how many heads .* say it with --heads"):
        from_reference(published())


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"decoder.a": torch.ones(1), "head.b": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="holds head.b beside a decoder"):
        read_reference(tmp_path / "x.pt")
