"""State dicts of diffusion-bench: read to the last tensor, computed alike, written back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_bench import LIGHT, PLAIN, VARIANTS, Shape, fused, padded, published
from numpy_ddt import NumpyDdt, NumpyLightningDit, Told
from torch import Tensor, nn

from nanogen.errors import ConfigError, DataError
from nanogen.exchange.architecture import ratio_of
from nanogen.exchange.diffusion_bench import from_reference, to_reference
from nanogen.types import Condition, LabelCondition, LatentSpec, TextCondition

PUBLISHED = Path(__file__).parents[3] / "shared" / "spec" / "golden_backbone.npz"
READ = 2
"""block that further heads read"""

SHALLOW = {
    "ddt": replace(VARIANTS["ddt_everything"], encoder=(1, 8, 2), decoder=(1, 12, 1)),
    "light": replace(VARIANTS["light_everything"], encoder=(1, 8, 2)),
}
"""with every kind of tensor, and few of them"""

variants = pytest.mark.parametrize("variant", VARIANTS)
everything = pytest.mark.parametrize(
    "variant", [pytest.param("ddt", marks=pytest.mark.slow), "light"]
)


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def inputs(shape: Shape) -> tuple[np.ndarray, Told]:
    """Three samples; of captions one is short, one full and one empty."""
    rng = np.random.default_rng(5)
    side = shape.side * shape.patch

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32)

    x, t = normal(3, shape.channels, side, side), np.array([0.1, 0.5, 0.9], np.float32)
    interval = np.array([0.05, 0.5, 0.0], np.float32) if shape.meanflow else None
    cls = normal(3, shape.cls) if shape.cls else None
    if not shape.text:
        return x, Told(t, np.array([0, 7, shape.classes]), None, cls, interval)
    width, length = shape.text
    real = np.arange(length) < np.array([5, length, 0])[:, None]
    return x, Told(t, normal(3, length, width), real, cls, interval)


def wanted(
    tensors: dict[str, Tensor], shape: Shape, x: np.ndarray, told: Told
) -> dict[str, Tensor]:
    """What a checkpoint computes, in float64, from nothing but its names."""
    weights = {name: tensor.numpy() for name, tensor in tensors.items()}
    encoder = shape.encoder[0], shape.encoder[2]
    network: NumpyDdt | NumpyLightningDit
    if shape.decoder:
        network = NumpyDdt(weights, shape.patch, encoder, (shape.decoder[0], shape.decoder[2]))
    else:
        network = NumpyLightningDit(weights, shape.patch, *encoder)
    found = network(x, told, base_block=READ if shape.guidance else None)
    if shape.repa:
        found["projected"] = network.linear(found[f"block{READ}"], "repa_projector")
    return {k: torch.from_numpy(v) for k, v in found.items() if not k.startswith("block")}


def computed(
    module: nn.Module, projector: nn.Linear | None, x: np.ndarray, told: Told
) -> dict[str, Tensor]:
    """What our backbone gives, by the same names."""

    def tensor(value: np.ndarray | None) -> Tensor | None:
        return None if value is None else torch.from_numpy(value)

    context, real, cls = tensor(told.context), tensor(told.real), tensor(told.cls)
    assert context is not None
    condition: Condition = LabelCondition(context)
    if real is not None:
        condition = TextCondition(context, real)
    state = {"image": torch.from_numpy(x)} | ({} if cls is None else {"cls": cls})
    block = f"block{READ}"
    heads = ["base"] if hasattr(module, "base_final_layer") else []
    with torch.no_grad():
        found = module(
            state, tensor(told.t), condition, interval=tensor(told.interval), want=[block, *heads]
        )
        outputs = dict(found.state) | dict(found.heads)
        if projector is not None:
            outputs["projected"] = projector(found.features[block])
    return outputs


@variants
def test_computes_what_the_reference_does(variant: str) -> None:
    shape = VARIANTS[variant]
    tensors, (x, told) = published(shape), inputs(shape)
    weights = from_reference(tensors)
    found = computed(weights.module(base_block=READ), weights.repa_projector(), x, told)
    expected = wanted(tensors, shape, x, told)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert difference(found[name].double(), value) < 5e-6, name


@variants
def test_there_and_back(variant: str) -> None:
    tensors = published(VARIANTS[variant])
    assert same(to_reference(from_reference(tensors)), tensors)


@variants
def test_architecture(variant: str) -> None:
    shape = VARIANTS[variant]
    found = from_reference(published(shape)).architecture
    depth, width, heads = shape.encoder
    encoder = (found.encoder.depth, found.encoder.width, found.encoder.heads)
    assert encoder == (depth, width, heads)
    decoder = found.decoder and (found.decoder.depth, found.decoder.width, found.decoder.heads)
    assert decoder == shape.decoder
    assert found.kind == ("ddt" if shape.decoder else "lightning-dit")
    size = shape.side * shape.patch
    assert found.latent == LatentSpec(shape.channels, size, size, shape.patch)
    assert found.mlp_ratio == 4
    assert (found.leaf, found.projector) == (shape.cls, shape.repa)
    assert (found.interval, found.base) == (shape.meanflow, shape.guidance)
    if shape.text:
        assert (found.condition.width, found.condition.tokens) == shape.text
        assert found.condition.classes is None
    else:
        assert found.condition.classes == shape.classes


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the reference's outputs are not here")
@pytest.mark.parametrize("variant", ["ddt_label", "ddt_text"])
def test_published_outputs(variant: str) -> None:
    with np.load(PUBLISHED) as file:
        stored = {k.removeprefix(f"{variant}/"): file[k] for k in file if k.startswith(variant)}
    states = {k: torch.from_numpy(v) for k, v in stored.items() if k.startswith("state/")}
    tensors = {name.removeprefix("state/"): tensor for name, tensor in states.items()}
    weights = from_reference(tensors)
    mask = stored.get("in/attn_mask")
    told = Told(stored["in/t"], stored["in/context"], None if mask is None else mask.astype(bool))
    found = computed(weights.module(), None, stored["in/x"], told)
    assert difference(found["image"], torch.from_numpy(stored["out/0"])) < 2e-5
    assert same(to_reference(weights), tensors), "tables of positions included"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_taken_off(prefix: str) -> None:
    tensors = published(PLAIN)
    found = from_reference({f"{prefix}{name}": tensor for name, tensor in tensors.items()})
    assert same(to_reference(found), tensors)


@variants
def test_fused_layers_are_taken_apart(variant: str) -> None:
    tensors = published(VARIANTS[variant])
    assert "blocks.0.attn.qkv.weight" in fused(tensors)
    assert "blocks.0.attn.q.weight" not in fused(tensors)
    assert same(to_reference(from_reference(fused(tensors))), tensors)


@pytest.mark.parametrize("shape", [PLAIN, LIGHT], ids=["ddt", "light"])
@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize("join", [False, True])
def test_padding_of_zeros_is_cut(shape: Shape, multiple: int, join: bool) -> None:
    """85 hidden units -> 88 or 128, as 5461 -> 5504 at the published size."""
    tensors = published(shape)
    wide = padded(tensors, multiple)
    assert len(wide["blocks.0.mlp.w1.weight"]) == -(-85 // multiple) * multiple
    assert same(to_reference(from_reference(fused(wide) if join else wide)), tensors)


@pytest.mark.parametrize("layer", ["w1.weight", "w1.bias", "w2.weight", "w2.bias", "w3.weight"])
def test_padding_that_is_not_zero_is_refused(layer: str) -> None:
    tensors = padded(published(PLAIN), 64)
    name = f"blocks.2.mlp.{layer}"
    place = (..., -1) if layer.startswith("w3") else (-1,)
    tensors[name][place] = 1e-6
    with pytest.raises(DataError, match=r"128 at width 32 .* not zero.*no padding") as refused:
        from_reference(tensors)
    assert "\n" not in str(refused.value)


def test_padding_of_another_ratio_is_cut_where_it_is_said() -> None:
    tensors = published(replace(PLAIN, ratio=2.5))
    assert from_reference(tensors).architecture.mlp_ratio == 2.5
    assert same(to_reference(from_reference(padded(tensors, 64), mlp_ratio=2.5)), tensors)
    with pytest.raises(DataError, match="mlp_ratio"):
        from_reference(padded(tensors, 25))


@pytest.mark.parametrize(
    "widths, ratio",
    [
        ({1152: 3072, 2048: 5461}, 4.0),
        ({768: 2048}, 4.0),
        ({1024: 2730}, 4.0),
        ({1584: 4224, 2048: 5461}, 4.0),
        ({32: 53, 48: 80}, 2.5),
        ({100: 177}, 2.66),
        ({1152: 3072, 2048: 5504}, None),
    ],
)
def test_ratio_of_hidden_units(widths: dict[int, int], ratio: float | None) -> None:
    assert ratio_of(widths) == ratio
    for width, hidden in widths.items():
        assert ratio is None or int(2 / 3 * width * ratio) == hidden


@everything
def test_every_missing_tensor_is_named(variant: str) -> None:
    """One line that names it, whatever it is: never another network, never a traceback."""
    tensors = published(SHALLOW[variant])
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(DataError) as refused:
            from_reference(rest, "ddt.pt")
        message = str(refused.value)
        assert name in message and message.startswith("ddt.pt") and "\n" not in message, name


@everything
def test_every_misshapen_tensor_is_refused(variant: str) -> None:
    tensors = published(SHALLOW[variant])
    for name, tensor in tensors.items():
        shorter = tensor[None] if "embedding_table" in name else tensor[:-1]  # one class less
        for wrong in (shorter, tensor[None], tensor.new_zeros(())):
            with pytest.raises(DataError) as refused:
                from_reference(tensors | {name: wrong})
            assert "\n" not in str(refused.value)


def test_unknown_and_missing_are_counted() -> None:
    tensors = published(PLAIN)
    for name in [name for name in tensors if name.startswith("blocks.1.attn.")]:
        del tensors[name]
    tensors |= {"y_embedder.weight": torch.zeros(2), "blocks.0.extra": torch.zeros(2)}
    message = (
        r"10 missing: blocks.1.attn.k.bias, blocks.1.attn.k.weight, blocks.1.attn.k_norm.weight "
        r"\.\.\.; 2 unknown: blocks.0.extra, y_embedder.weight; give the checkpoint"
    )
    with pytest.raises(DataError, match=message):
        from_reference(tensors)


def test_other_networks_are_refused() -> None:
    plain = published(PLAIN)
    gap = {n.replace("blocks.1.", "blocks.9."): t for n, t in plain.items()}
    for tensors, message in (
        ({}, "it is empty"),
        ({"weight": torch.zeros(2)}, "is no diffusion transformer of diffusion-bench"),
        ({"epoch": 3}, "epoch is no tensor"),
        (plain | {"module.t_embedder.W": plain["t_embedder.W"]}, "1 weights twice"),
        (
            plain | {"blocks.0.attn.qkv.weight": torch.zeros(96, 32)},
            "blocks.0.attn.k.weight twice, fused",
        ),
        (plain | {"blocks.0.mlp.w12.bias": torch.zeros(85)}, "w12.bias is .85., which does not"),
        (gap, "numbered up to 9, but not block 1"),
    ):
        with pytest.raises(DataError, match=message):
            from_reference(tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["enc_rope.freqs_sin", "dec_rope.freqs_cos"])
def test_other_positions_are_refused(name: str) -> None:
    tensors = published(PLAIN)
    tensors[name] = tensors[name].roll(1, dims=1)
    with pytest.raises(DataError, match=f"{name} holds other positions than a grid of 4x4"):
        from_reference(tensors)


def test_positions_of_no_square_are_refused() -> None:
    tensors = published(PLAIN)
    tensors["enc_rope.freqs_sin"][14:] = 0
    tensors["enc_rope.freqs_cos"][14:] = 1
    with pytest.raises(DataError, match="positions of 14 image tokens"):
        from_reference(tensors)


@pytest.mark.parametrize("name", ["t_embedder", "ctx_embedder"])
def test_other_numbers_of_tokens_are_refused(name: str) -> None:
    tensors = published(PLAIN)
    tensors[f"{name}.learnable_tokens"] = torch.zeros(3, 32)
    with pytest.raises(DataError, match=f"{name} makes 3 tokens; .* 4 tokens of a time and 8 of a"):
        from_reference(tensors)


def test_half_precision_is_widened() -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in published(PLAIN).items()}
    module = from_reference(tensors).module()
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    name = "blocks.0.attn.q.weight"
    assert torch.equal(module.state_dict()[name], tensors[name].float())


def test_the_block_of_internal_guidance_must_be_said() -> None:
    weights = from_reference(published(VARIANTS["ddt_ig"]))
    for block in (0, 4, 8):
        with pytest.raises(ConfigError, match=f"base_block={block}: .* blocks 1 to 3"):
            weights.module(base_block=block)
    first, second = (computed(weights.module(b), None, *inputs(PLAIN))["base"] for b in (1, 2))
    assert not torch.equal(first, second)


def test_building_draws_nothing_from_the_global_generator() -> None:
    weights = from_reference(published(PLAIN))
    torch.manual_seed(0)
    wanted = torch.randn(1)
    torch.manual_seed(0)
    weights.module()
    assert torch.equal(torch.randn(1), wanted)
