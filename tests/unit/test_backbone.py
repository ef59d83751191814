"""DDT: published numbers, an independent evaluation, exact sizes, conditions, initialisation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy_ddt import NumpyDdt
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from nanogen.backbones import layers
from nanogen.backbones.ddt import Ddt, DdtConfig
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    State,
    TextCondition,
)

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "spec" / "golden_backbone.npz"
OWN = ROOT / "tests" / "golden" / "backbone.safetensors"

SMALL = DdtConfig(
    depth=2, width=32, heads=2, decoder_depth=1, decoder_width=48, decoder_heads=2, mlp_ratio=4.0
)
LATENT = LatentSpec(channels=4, height=8, width=8, patch=2)
LABELS, TEXT = ConditionSpec(classes=10), ConditionSpec(width=32, tokens=16)


def build(condition: ConditionSpec = LABELS, leaves: dict[str, int] | None = None) -> Ddt:
    torch.manual_seed(0)
    return SMALL.build(LATENT, condition, leaves or {})


def awake(model: Ddt) -> Ddt:
    """With what starts at zero moved away from it: at initialisation all outputs are 0."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if not p.any():
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    return model.eval()


def inputs(count: int = 3, **leaves: int) -> State:
    generator = torch.Generator().manual_seed(2)
    state = {"image": torch.randn(count, 4, 8, 8, generator=generator)}
    return state | {
        name: torch.randn(count, width, generator=generator) for name, width in leaves.items()
    }


def caption(lengths: tuple[int, ...], total: int = 16) -> TextCondition:
    features = torch.randn(len(lengths), total, 32, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(total) < torch.tensor(lengths)[:, None]
    return TextCondition(features * mask[..., None], mask)


TIMES = torch.tensor([0.1, 0.5, 0.9])


def run(model: Ddt, state: State, condition: Condition) -> State:
    with torch.no_grad():
        return model(state, TIMES[: len(condition)], condition).state


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


class TestGolden:
    @pytest.mark.skipif(not PUBLISHED.exists(), reason="the reference's outputs are not here")
    @pytest.mark.parametrize("variant", ["ddt_label", "ddt_text"])
    def test_reference(self, variant: str) -> None:
        """Weights, inputs and outputs of the published implementation, names taken strictly."""
        with np.load(PUBLISHED) as file:
            stored = {k.removeprefix(f"{variant}/"): file[k] for k in file if k.startswith(variant)}
        weights = {
            k.removeprefix("state/"): torch.from_numpy(v)
            for k, v in stored.items()
            if k.startswith("state/") and "rope" not in k
        }
        config = DdtConfig(
            depth=3, width=32, heads=2, decoder_depth=1, decoder_width=48, decoder_heads=2
        )
        context = torch.from_numpy(stored["in/context"])
        condition: Condition
        if variant == "ddt_text":
            condition = TextCondition(context, torch.from_numpy(stored["in/attn_mask"]).bool())
        else:
            condition = LabelCondition(context.long())
        model = config.build(LATENT, TEXT if variant == "ddt_text" else LABELS, {})
        model.load_state_dict(weights, strict=True)
        x, t, expected = (torch.from_numpy(stored[k]) for k in ("in/x", "in/t", "out/0"))
        with torch.no_grad():
            found = model({"image": x}, t, condition).state["image"]
        assert difference(found, expected) < 2e-5

    @pytest.mark.parametrize("variant", ["label", "text"])
    def test_own(self, variant: str) -> None:
        """Made by scripts/make_golden.py; here the extra leaf and all kinds of masks too."""
        stored = load_file(OWN)
        group = lambda name: {  # noqa: E731
            k.removeprefix(f"{variant}/{name}/"): v
            for k, v in stored.items()
            if k.startswith(f"{variant}/{name}/")
        }
        given, expected = group("in"), group("out")
        config = DdtConfig(
            depth=2,
            width=8,
            heads=2,
            decoder_depth=1,
            decoder_width=12,
            decoder_heads=1,
            mlp_ratio=2.0,
        )
        text = variant == "text"
        model = config.build(
            LatentSpec(2, 4, 6, 2),
            ConditionSpec(width=8, tokens=5) if text else ConditionSpec(classes=3),
            {} if text else {"cls": 5},
        )
        model.load_state_dict(group("weights"), strict=True)
        condition = (
            TextCondition(given["features"], given["mask"])
            if text
            else LabelCondition(given["ids"])
        )
        with torch.no_grad():
            found = model({name: given[name] for name in expected}, given["t"], condition).state
        for leaf, value in expected.items():
            assert difference(found[leaf], value) < 1e-6
        assert OWN.stat().st_size < 100_000


@pytest.mark.parametrize("kind", ["label", "text", "leaf"])
def test_independent_evaluation(kind: str) -> None:
    """Against numpy in float64, written from the description of the architecture."""
    leaves = {"cls": 6} if kind == "leaf" else {}
    model = awake(build(TEXT if kind == "text" else LABELS, leaves))
    state = inputs(**leaves)
    condition: Condition = (
        caption((16, 5, 0)) if kind == "text" else LabelCondition(torch.tensor([0, 7, 10]))
    )
    found = run(model, state, condition)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    reference = NumpyDdt(weights, patch=2, depth=(2, 1), heads=(2, 2))
    context, real = (
        (condition.features.double().numpy(), condition.mask.numpy())
        if isinstance(condition, TextCondition)
        else (condition.ids.numpy(), None)
    )
    arrays = {name: leaf.double().numpy() for name, leaf in state.items()}
    expected = reference(arrays["image"], TIMES.double().numpy(), context, real, arrays.get("cls"))
    assert found.keys() == expected.keys() == state.keys()
    for leaf, value in expected.items():
        assert difference(found[leaf].double(), torch.from_numpy(value)) < 2e-6


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
        return config.build(latent, condition, leaves or {})


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


class TestConditions:
    def test_trimmed_text_is_padded_text(self) -> None:
        model, state = awake(build(TEXT)), inputs()
        padded = caption((5, 3, 1))
        found, expected = run(model, state, padded.trimmed()), run(model, state, padded)
        assert padded.trimmed().features.shape[1] == 5
        assert difference(found["image"], expected["image"]) < 1e-5

    def test_null_without_text_is_masked_null(self) -> None:
        model, state = awake(build(TEXT)), inputs()
        masked = caption((0, 0, 0))
        none = TextCondition(torch.zeros(3, 0, 32), torch.zeros(3, 0, dtype=torch.bool))
        found, expected = run(model, state, none), run(model, state, masked)
        assert difference(found["image"], expected["image"]) < 1e-5

    @pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
    def test_masked_positions_do_not_leak(self, poison: float) -> None:
        model, state, clean = awake(build(TEXT)), inputs(), caption((5, 3, 0))
        features = torch.where(clean.mask[..., None], clean.features, poison)
        found = run(model, state, TextCondition(features, clean.mask))
        assert torch.equal(found["image"], run(model, state, clean)["image"])

    def test_masked_positions_get_no_gradient(self) -> None:
        model, state, clean = awake(build(TEXT)), inputs(), caption((5, 3, 0))
        features = torch.where(clean.mask[..., None], clean.features, math.nan).requires_grad_()
        model(state, TIMES, TextCondition(features, clean.mask)).state["image"].sum().backward()
        assert features.grad is not None and features.grad[~clean.mask].abs().max() == 0
        assert features.grad[clean.mask].abs().min() > 0
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    def test_text_is_a_set(self) -> None:
        """Order comes from the text encoder only: permuted tokens give the same image."""
        model, state, text = awake(build(TEXT)), inputs(), caption((16, 16, 16))
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        moved = TextCondition(text.features[:, order], text.mask[:, order])
        found, expected = run(model, state, moved), run(model, state, text)
        assert difference(found["image"], expected["image"]) < 1e-6

    def test_condition_matters(self) -> None:
        model, state = awake(build()), inputs()
        one, other = (run(model, state, LabelCondition(torch.full((3,), i))) for i in (0, 10))
        assert difference(one["image"], other["image"]) > 1e-3

    @pytest.mark.parametrize(
        "condition, masks",
        [
            (LabelCondition(torch.tensor([0, 1, 10])), 0),
            (caption((16, 16, 16)), 0),
            (TextCondition(torch.zeros(3, 0, 32), torch.zeros(3, 0, dtype=torch.bool)), 0),
            (caption((16, 3, 0)), 2),
        ],
        ids=["labels", "full text", "no text", "mixed text"],
    )
    def test_masks_only_where_something_is_masked(
        self, condition: Condition, masks: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fast attention kernels refuse any mask, so none is passed unless it is needed."""
        seen = []
        attend = F.scaled_dot_product_attention

        def watched(*args, attn_mask=None, **more):
            seen.append(attn_mask)
            return attend(*args, attn_mask=attn_mask, **more)

        monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
        run(
            awake(build(TEXT if isinstance(condition, TextCondition) else LABELS)),
            inputs(),
            condition,
        )
        # Two encoder blocks and one of the decoder, which never reads the text.
        assert len(seen) == 3 and sum(mask is not None for mask in seen) == masks
        assert seen[-1] is None

    def test_rows_do_not_see_each_other(self) -> None:
        model, state, text = awake(build(TEXT)), inputs(), caption((16, 3, 0))
        together = run(model, state, text)["image"]
        for row in range(3):
            alone = TextCondition(text.features[row : row + 1], text.mask[row : row + 1]).trimmed()
            with torch.no_grad():
                one = model({"image": state["image"][row : row + 1]}, TIMES[row : row + 1], alone)
            assert difference(one.state["image"], together[row : row + 1]) < 1e-5


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
        model = config.build(LatentSpec(16, 8, 8, 2), ConditionSpec(classes=500), {"cls": 64})
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


class TestFeatures:
    def test_shapes(self) -> None:
        model = build(LABELS, {"cls": 6})
        condition = LabelCondition(torch.tensor([0, 1, 2]))
        found = model(inputs(cls=6), TIMES, condition, want=("block2", "block1"))
        # The extra leaf comes first, then the image tokens; time and class tokens are left out.
        assert {name: f.shape for name, f in found.features.items()} == {
            "block1": (3, 17, 32),
            "block2": (3, 17, 32),
        }
        assert found.state["image"].shape == (3, 4, 8, 8) and found.state["cls"].shape == (3, 6)
        assert not model(inputs(cls=6), TIMES, condition).features

    def test_asking_changes_nothing(self) -> None:
        model, condition = awake(build()), LabelCondition(torch.tensor([0, 1, 2]))
        with torch.no_grad():
            asked = model(inputs(), TIMES, condition, want=("block2",)).state["image"]
        assert torch.equal(asked, run(model, inputs(), condition)["image"])

    @pytest.mark.parametrize("name", ["block0", "block3", "pool"])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(ConfigError, match="block1 to block2"):
            build()(inputs(), TIMES, LabelCondition(torch.tensor([0, 1, 2])), want=(name,))


class TestRotary:
    def test_only_the_image_turns(self) -> None:
        rotary = layers.Rotary(2, 3, 8, before=1)
        x = torch.randn(1, 2, 12, 8)
        turned = rotary(x)
        assert torch.equal(turned[:, :, 0], x[:, :, 0])
        assert torch.equal(turned[:, :, 1], x[:, :, 1])  # row 0, column 0
        assert torch.equal(turned[:, :, 7:], x[:, :, 7:])
        assert not torch.isclose(turned[:, :, 2:7], x[:, :, 2:7]).all(-1).any()
        assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))

    def test_products_depend_on_the_distance(self) -> None:
        rotary = layers.Rotary(4, 4, 8)
        q, k = torch.randn(8), torch.randn(8)
        grid = (rotary(q.expand(1, 1, 16, 8)) @ rotary(k.expand(1, 1, 16, 8)).mT)[0, 0]
        grid = grid.view(4, 4, 4, 4)
        for rows, columns in ((1, 0), (0, 1), (2, 1)):
            values = [
                grid[r, c, r + rows, c + columns].item()
                for r in range(4 - rows)
                for c in range(4 - columns)
            ]
            assert values == pytest.approx([values[0]] * len(values), abs=1e-5)

    def test_both_forms_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The complex product, and the plain form that a compiler sees."""
        rotary, x = layers.Rotary(2, 3, 8), torch.randn(1, 2, 9, 8)
        eager = rotary(x)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch.allclose(rotary(x), eager, atol=1e-6)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"heads": 3}, "backbone.heads"),
        ({"heads": 16}, "backbone.heads"),
        ({"heads": 0}, "backbone.heads"),
        ({"decoder_heads": 5}, "backbone.decoder_heads"),
        ({"depth": 0}, "backbone.depth"),
        ({"mlp_ratio": 0.0}, "backbone.mlp_ratio"),
    ],
)
def test_refusals(fields: dict[str, float], named: str) -> None:
    config = DdtConfig(
        **({"depth": 1, "width": 32, "heads": 2, "decoder_width": 48, "decoder_heads": 2} | fields)
    )
    with pytest.raises(ConfigError, match=named):
        config.build(LATENT, LABELS, {})


def test_patch_must_divide() -> None:
    with pytest.raises(ConfigError, match="patch 3"):
        SMALL.build(LatentSpec(4, 8, 8, 3), LABELS, {})


def test_float64_works() -> None:
    """No part falls back to float32, so that numerics can be tested."""
    model = awake(build(TEXT)).double()
    state = {"image": inputs()["image"].double()}
    text = caption((16, 5, 0))
    text = TextCondition(text.features.double(), text.mask)
    with torch.no_grad():
        found = model(state, TIMES.double(), text).state["image"]
    assert found.dtype == torch.float64 and found.isfinite().all()
