"""DDT: exact parameter counts, computation, and initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_ddt import LABELS, TEXT, TIMES, build, caption, inputs, run
from torch.utils.flop_counter import FlopCounterMode

from nanogen.backbones import layers
from nanogen.backbones.ddt import Ddt, DdtConfig
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
RAE_B = LatentSpec(768, 16, 16, 1)
SIZES = {
    "SD-VAE": (SD, {}, 611_304_996, 611_324_452),
    "16 channels": (LatentSpec(16, 32, 32, 2), {}, 611_556_948, 611_576_404),
    "E2E-VAVAE": (LatentSpec(32, 16, 16, 1), {}, 611_388_980, 611_408_436),
    "FLUX.2": (FLUX2, {}, 611_892_884, 611_912_340),
    "RAE-B": (RAE_B, {}, 615_252_244, 615_271_700),
    "pixels": (LatentSpec(3, 256, 256, 16), {}, 615_252_244, 615_271_700),
    "RAE-L": (LatentSpec(1024, 16, 16, 1), {}, 616_595_988, 616_615_444),
    "SD-VAE with REG": (SD, {"cls": 768}, 615_342_628, 615_362_084),
    "FLUX.2 with REG": (FLUX2, {"cls": 768}, 615_930_516, 615_949_972),
    "RAE-B with REG": (RAE_B, {"cls": 768}, 619_289_876, 619_309_332),
}
IMAGENET, QWEN = ConditionSpec(classes=1000), ConditionSpec(width=1024, tokens=256)
LARGE = DdtConfig(width=1584, heads=22)


def on_meta(config: DdtConfig, latent: LatentSpec, condition: ConditionSpec, leaves=None) -> Ddt:
    with torch.device("meta"):
        return config.build(latent, condition, Wiring(leaves or {}))


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str) -> None:
    latent, leaves, by_label, by_text = SIZES[name]
    assert parameter_count(on_meta(DdtConfig(), latent, IMAGENET, leaves)) == by_label
    assert parameter_count(on_meta(DdtConfig(), latent, QWEN, leaves)) == by_text


@pytest.mark.parametrize(
    "latent, expected",
    [(LatentSpec(16, 64, 64, 2), 1_011_622_804), (LatentSpec(128, 32, 32, 1), 1_011_986_388)],
    ids=["Qwen", "FLUX.2"],
)
def test_parameter_counts_at_512(latent: LatentSpec, expected: int) -> None:
    assert parameter_count(on_meta(LARGE, latent, QWEN)) == expected


def giga_flops(model: Ddt, condition: Condition) -> float:
    latent = model.latent
    state = {"image": torch.empty(1, latent.channels, latent.height, latent.width, device="meta")}
    state |= {leaf: torch.empty(1, width, device="meta") for leaf, width in model.leaves.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(state, torch.empty(1, device="meta"), condition)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    "latent, leaves, expected",
    [(FLUX2, {}, 332.5), (SD, {}, 332.2), (RAE_B, {}, 334.2), (FLUX2, {"cls": 768}, 333.8)]
    + [(LatentSpec(1024, 16, 16, 1), {}, 334.9)],
    ids=["FLUX.2", "SD-VAE", "RAE-B", "FLUX.2 with REG", "RAE-L"],
)
def test_flops_by_label(latent: LatentSpec, leaves: dict[str, int], expected: float) -> None:
    model = on_meta(DdtConfig(), latent, IMAGENET, leaves)
    condition = LabelCondition(torch.empty(1, dtype=torch.int64, device="meta"))
    assert giga_flops(model, condition) == pytest.approx(expected, rel=2e-3)


MORE = pytest.mark.slow


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
def test_flops_by_text(
    config: DdtConfig,
    latent: LatentSpec,
    tokens: int,
    expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A meta tensor has no values to look at, so the mask is taken for full.
    monkeypatch.setattr(
        layers.TextEmbed, "forward", lambda self, c: (self.proj(self.norm(c.features)), None)
    )
    condition = TextCondition(
        torch.empty(1, tokens, 1024, device="meta"),
        torch.empty(1, tokens, dtype=torch.bool, device="meta"),
    )
    found = giga_flops(on_meta(config, latent, QWEN), condition)
    assert found == pytest.approx(expected, rel=2e-3)


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
