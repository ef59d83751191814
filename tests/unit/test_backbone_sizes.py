"""DDT and LightningDiT: exact parameter counts, computation, and initial weights."""

from __future__ import annotations

import math
from typing import TypeAlias

import pytest
import torch
from tiny_ddt import LABELS, TEXT, TIMES, build, caption, inputs, run
from torch.utils.flop_counter import FlopCounterMode

from nanogen.backbones import layers
from nanogen.backbones.ddt import Ddt, DdtConfig
from nanogen.backbones.lightning_dit import LightningDit, LightningDitConfig
from nanogen.model import parameter_count
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    TextCondition,
    Wiring,
)

# Sizes of arXiv 2606.24888, built with its code: latent, then parameters by label and by text.
SD = LatentSpec(4, 32, 32, 2)
FLUX2 = LatentSpec(128, 16, 16, 1)
RAE_B, RAE_L = LatentSpec(768, 16, 16, 1), LatentSpec(1024, 16, 16, 1)
PIXELS = LatentSpec(3, 256, 256, 16)
REG = Wiring(leaves={"cls": 768})
MEANFLOW = Wiring(interval=True)
INTERNAL = Wiring(heads={"base": 8})
SIZES = {
    "SD-VAE": (SD, Wiring(), 611_304_996, 611_324_452),
    "16 channels": (LatentSpec(16, 32, 32, 2), Wiring(), 611_556_948, 611_576_404),
    "E2E-VAVAE": (LatentSpec(32, 16, 16, 1), Wiring(), 611_388_980, 611_408_436),
    "FLUX.2": (FLUX2, Wiring(), 611_892_884, 611_912_340),
    "RAE-B": (RAE_B, Wiring(), 615_252_244, 615_271_700),
    "pixels": (PIXELS, Wiring(), 615_252_244, 615_271_700),
    "RAE-L": (RAE_L, Wiring(), 616_595_988, 616_615_444),
    "SD-VAE with REG": (SD, REG, 615_342_628, 615_362_084),
    "FLUX.2 with REG": (FLUX2, REG, 615_930_516, 615_949_972),
    "RAE-B with REG": (RAE_B, REG, 619_289_876, 619_309_332),
    "MeanFlow on SD-VAE": (SD, MEANFLOW, 613_229_092, 613_248_548),
}
IMAGENET, QWEN = ConditionSpec(classes=1000), ConditionSpec(width=1024, tokens=256)
LARGE = DdtConfig(width=1584, heads=22)
RAE_V2 = DdtConfig(width=1440, heads=20)
LIGHTNING = {
    "12x768": LightningDitConfig(),
    "28x1152": LightningDitConfig(depth=28, width=1152, heads=16),
    "36x1024": LightningDitConfig(depth=36, width=1024, heads=16),
}
Config: TypeAlias = DdtConfig | LightningDitConfig


def on_meta(
    config: Config, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring | None = None
) -> Ddt | LightningDit:
    with torch.device("meta"):
        return config.build(latent, condition, wiring or Wiring())


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str) -> None:
    latent, wiring, by_label, by_text = SIZES[name]
    assert parameter_count(on_meta(DdtConfig(), latent, IMAGENET, wiring)) == by_label
    assert parameter_count(on_meta(DdtConfig(), latent, QWEN, wiring)) == by_text


@pytest.mark.parametrize(
    "latent, expected",
    [(LatentSpec(16, 64, 64, 2), 1_011_622_804), (LatentSpec(128, 32, 32, 1), 1_011_986_388)],
    ids=["Qwen", "FLUX.2"],
)
def test_parameter_counts_at_512(latent: LatentSpec, expected: int) -> None:
    assert parameter_count(on_meta(LARGE, latent, QWEN)) == expected


def test_parameter_count_with_internal_guidance() -> None:
    assert parameter_count(on_meta(RAE_V2, RAE_L, IMAGENET, INTERNAL)) == 875_216_500


@pytest.mark.parametrize("size, millions", [("12x768", 87.99), ("36x1024", 457.56)])
def test_parameter_counts_of_lightning_dit(size: str, millions: float) -> None:
    count = parameter_count(on_meta(LIGHTNING[size], PIXELS, IMAGENET))
    assert round(count / 1e6, 2) == millions


def giga_flops(config: Config, latent: LatentSpec, tokens: int | None, wiring: Wiring) -> float:
    """Of one forward with all heads; `tokens` of text, or a label where it is None."""
    model = on_meta(config, latent, IMAGENET if tokens is None else QWEN, wiring)
    with torch.device("meta"):
        state = {"image": torch.empty(1, latent.channels, latent.height, latent.width)}
        state |= {leaf: torch.empty(1, width) for leaf, width in wiring.leaves.items()}
        t = torch.empty(1)
        condition: Condition = LabelCondition(torch.empty(1, dtype=torch.int64))
        if tokens is not None:
            mask = torch.empty(1, tokens, dtype=torch.bool)
            condition = TextCondition(torch.empty(1, tokens, 1024), mask, whole=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(state, t, condition, interval=t if wiring.interval else None, want=wiring.heads)
    return counter.get_total_flops() / 1e9


MORE = pytest.mark.slow


@pytest.mark.parametrize(
    "config, latent, wiring, expected",
    [
        pytest.param(DdtConfig(), FLUX2, Wiring(), 332.5, id="FLUX.2"),
        pytest.param(DdtConfig(), SD, Wiring(), 332.2, id="SD-VAE"),
        pytest.param(DdtConfig(), RAE_B, Wiring(), 334.2, id="RAE-B"),
        pytest.param(DdtConfig(), RAE_L, Wiring(), 334.9, id="RAE-L"),
        pytest.param(DdtConfig(), FLUX2, REG, 333.8, id="FLUX.2 with REG"),
        pytest.param(DdtConfig(), SD, MEANFLOW, 336.1, id="MeanFlow on SD-VAE"),
        pytest.param(RAE_V2, RAE_L, INTERNAL, 475.0, id="RAEv2 with internal guidance"),
        pytest.param(LIGHTNING["12x768"], PIXELS, Wiring(), 48.8, id="12x768"),
        pytest.param(LIGHTNING["36x1024"], PIXELS, Wiring(), 254.2, id="36x1024"),
        pytest.param(LIGHTNING["28x1152"], SD, Wiring(), 248.3, id="28x1152 on SD-VAE"),
    ],
)
def test_flops_by_label(
    config: Config, latent: LatentSpec, wiring: Wiring, expected: float
) -> None:
    assert giga_flops(config, latent, None, wiring) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    "config, latent, tokens, expected",
    [
        (DdtConfig(), FLUX2, 0, 324.8),
        (DdtConfig(), FLUX2, 64, 386.7),
        (DdtConfig(), FLUX2, 256, 579.4),
        (LARGE, LatentSpec(128, 32, 32, 1), 256, 2809),
        pytest.param(DdtConfig(), SD, 256, 579.1, marks=MORE),
        pytest.param(DdtConfig(), RAE_B, 256, 581.1, marks=MORE),
        pytest.param(DdtConfig(), FLUX2, 32, 355.6, marks=MORE),
        pytest.param(DdtConfig(), FLUX2, 128, 449.7, marks=MORE),
        pytest.param(DdtConfig(), FLUX2, 192, 513.7, marks=MORE),
    ],
)
def test_flops_by_text(config: Config, latent: LatentSpec, tokens: int, expected: float) -> None:
    assert giga_flops(config, latent, tokens, Wiring()) == pytest.approx(expected, rel=2e-3)


class TestInitialisation:
    @pytest.mark.parametrize("condition", [LABELS, TEXT], ids=["label", "text"])
    def test_output_is_exactly_zero(self, condition: ConditionSpec) -> None:
        model = build(condition, {"cls": 6})
        given = (
            caption((16, 3, 0)) if condition is TEXT else LabelCondition(torch.tensor([0, 1, 10]))
        )
        found = run(model, inputs(cls=6), given)
        assert all(not leaf.any() for leaf in found.values())

    def test_only_the_heads_get_a_gradient_at_first(self) -> None:
        model = build()
        out = model(inputs(), TIMES, LabelCondition(torch.tensor([0, 1, 2]))).state["image"]
        (out - 1).square().sum().backward()
        moved = {
            name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert moved == {"final_layer.linear.weight", "final_layer.linear.bias"}

    def test_statistics(self) -> None:
        torch.manual_seed(0)
        config = DdtConfig(
            depth=1, width=256, heads=4, decoder_depth=1, decoder_width=384, decoder_heads=4
        )
        model = config.build(
            LatentSpec(16, 8, 8, 2), ConditionSpec(classes=500), Wiring({"cls": 64})
        )
        p = dict(model.named_parameters())
        near = lambda name, std: pytest.approx(std, rel=0.05) == p[name].std().item()  # noqa: E731
        assert near("ctx_embedder.embedding_table.weight", 0.02)
        assert near("t_embedder.mlp.0.weight", 0.02) and near("t_embedder.mlp.2.weight", 0.02)
        assert near("t_embedder.learnable_tokens", 256**-0.5)
        assert near("ctx_embedder.learnable_tokens", 256**-0.5)
        assert p["t_embedder.W"].std().item() == pytest.approx(1, rel=0.15)
        # Xavier on [width, C p p]: uniform up to sqrt(6 / (fan in + fan out)).
        for name, width in (("s_embedder", 256), ("x_embedder", 384)):
            bound = math.sqrt(6 / (64 + width))
            weight = p[f"{name}.proj.weight"]
            assert weight.abs().max() <= bound and near(f"{name}.proj.weight", bound / math.sqrt(3))
            assert not p[f"{name}.proj.bias"].any()
        # PyTorch's own for the rest: uniform up to 1 / sqrt(fan in), biases too.
        for name in ("blocks.0.attn.q", "blocks.0.mlp.w1", "s_projector", "blocks.1.attn.proj"):
            fan_in = p[f"{name}.weight"].shape[1]
            assert near(f"{name}.weight", 1 / math.sqrt(3 * fan_in)), name
            assert p[f"{name}.bias"].abs().max() <= fan_in**-0.5
        zero = {name for name, value in p.items() if not value.any()}
        assert zero == {
            f"{part}.{kind}"
            for part in (
                "blocks.1.adaln_modulation.1",
                "final_layer.adaln_modulation.1",
                "final_layer.linear",
                "final_layer.cls_linear",
            )
            for kind in ("weight", "bias")
        } | {"s_embedder.proj.bias", "x_embedder.proj.bias"}

    def test_frequencies_are_stored_but_not_trained(self) -> None:
        model = build()
        assert "t_embedder.W" in model.state_dict()
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert frozen == ["t_embedder.W"]

    def test_hidden_width_of_the_paper(self) -> None:
        """int(2/3 * width * ratio), in that order: the odd 5461 is what checkpoints hold."""
        with torch.device("meta"):
            found = {
                w: layers.SwiGLU(w, 4.0).w1.out_features for w in (768, 1024, 1152, 1440, 2048)
            }
        assert found == {768: 2048, 1024: 2730, 1152: 3072, 1440: 3840, 2048: 5461}
