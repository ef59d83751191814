"""What JiT and PixNerd share: conditions, features, heads, and how they run."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_overfit import Memory
from tiny_adaln import (
    ALL,
    LABELS,
    TEXT,
    TIMES,
    awake,
    build,
    caption,
    configs,
    given,
    inputs,
    run,
    told,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogen.backbones.jit import JitConfig
from nanogen.backbones.pixnerd import PixnerdConfig
from nanogen.errors import ConfigError
from nanogen.train.adamw import AdamWConfig
from nanogen.types import ConditionSpec, LatentSpec, TextCondition, Wiring

both = pytest.mark.parametrize("name", ["jit", "pixnerd"])
conditions = pytest.mark.parametrize("condition", [LABELS, TEXT], ids=["labels", "text"])


class TestStart:
    @both
    @conditions
    def test_output_is_zero(self, name: str, condition: ConditionSpec) -> None:
        model = build(name, condition, ALL).double()
        found = model(
            inputs(ALL), TIMES.double(), given(condition), **told(ALL), want=("base", "block1")
        )
        assert not any(x.any() for x in (*found.state.values(), *found.heads.values()))
        assert found.features["block1"].any()

    def test_blocks_of_jit_are_the_identity(self) -> None:
        model = build("jit").double()
        after = model.features(
            inputs(), TIMES.double(), given(LABELS), ("block1", "block2", "block3")
        )
        embedded = model.image_tokens(inputs()["image"])
        assert all(torch.equal(tokens, embedded) for tokens in after.values())


class TestText:
    @both
    @pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
    def test_masked_positions_do_not_leak(self, name: str, poison: float) -> None:
        model, clean = awake(build(name, TEXT)), caption(5, 3, 0)
        dirty = torch.where(clean.mask[..., None], clean.features, poison)
        found = run(model, TextCondition(dirty, clean.mask))
        assert torch.equal(found, run(model, clean))

    @both
    def test_masked_positions_get_no_gradient(self, name: str) -> None:
        model, clean = awake(build(name, TEXT)), caption(5, 3, 0)
        features = torch.where(clean.mask[..., None], clean.features, math.nan).requires_grad_()
        found = model(inputs(), TIMES.double(), TextCondition(features, clean.mask))
        found.state["image"].sum().backward()
        assert features.grad is not None and not features.grad[~clean.mask].any()
        assert features.grad[clean.mask].abs().min() > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    @both
    def test_padding_changes_nothing(self, name: str) -> None:
        model, padded = awake(build(name, TEXT)), caption(3, 2, 1)
        assert padded.trimmed().features.shape[1] == 3
        torch.testing.assert_close(run(model, padded), run(model, padded.trimmed()))

    @both
    def test_null_has_no_token(self, name: str) -> None:
        model = awake(build(name, TEXT))
        none = TextCondition(torch.zeros(3, 0, 8).double(), torch.zeros(3, 0, dtype=torch.bool))
        torch.testing.assert_close(run(model, caption(0, 0, 0)), run(model, none))

    @both
    def test_rows_do_not_see_each_other(self, name: str) -> None:
        model, text = awake(build(name, TEXT)), caption(6, 2, 0)
        together, state = run(model, text), inputs()
        for row in range(3):
            rows = torch.tensor([row])
            with torch.no_grad():
                found = model({"image": state["image"][rows]}, TIMES[rows].double(), text.at(rows))
            torch.testing.assert_close(found.state["image"], together[rows])

    @both
    def test_masks_only_where_something_is_masked(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fast attention kernels refuse any mask, so none is passed unless it is needed."""
        seen = []
        attend = F.scaled_dot_product_attention

        def watched(*args, attn_mask=None, **more):
            seen.append(attn_mask is not None)
            return attend(*args, attn_mask=attn_mask, **more)

        monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
        model = awake(build(name, TEXT))
        run(model, caption(6, 6, 6))
        assert not any(seen)
        seen.clear()
        run(model, caption(6, 3, 0))
        # The first block of JiT has not seen the text yet.
        assert seen == ([False, True, True] if name == "jit" else [True, True])


class TestFeaturesAndHeads:
    @both
    @conditions
    def test_features_alone(self, name: str, condition: ConditionSpec) -> None:
        model, want = awake(build(name, condition, ALL)), ("block1",)
        arguments = (inputs(ALL), TIMES.double(), given(condition))
        full = model(*arguments, **told(ALL), want=want).features
        del model.blocks[1:]
        alone = model.features(*arguments, want, **told(ALL))
        assert alone.keys() == full.keys() == set(want)
        assert torch.equal(alone["block1"], full["block1"])
        assert not model.features(*arguments, (), **told(ALL))

    @both
    def test_features_are_those_of_leaves_and_image(self, name: str) -> None:
        """What comes after the block is a function of them."""
        model = awake(build(name, LABELS, ALL))
        last = f"block{len(model.blocks)}"
        arguments = (inputs(ALL), TIMES.double(), given(LABELS))
        found = model(*arguments, **told(ALL), want=(last,))
        assert found.features[last].shape == (3, 1 + 6, 32)
        moment = model.moment(TIMES.double(), **told(ALL))
        c = F.silu(moment + model.context(given(LABELS)).vector)
        again = model.predicted(inputs(ALL), found.features[last], moment, c)
        assert all(torch.equal(again[leaf], found.state[leaf]) for leaf in ("image", "cls"))

    @both
    def test_head(self, name: str) -> None:
        """A norm and a linear layer, on the image tokens after its block."""
        model = awake(build(name, LABELS, ALL))
        calls = []
        model.base_head.register_forward_hook(lambda *_: calls.append(1))
        arguments = (inputs(ALL), TIMES.double(), given(LABELS))
        assert not model(*arguments, **told(ALL)).heads and not calls
        found = model(*arguments, **told(ALL), want=("base", "block2"))
        s = found.features["block2"][:, 1:]
        gain, linear = model.base_head[0].weight, model.base_head[1]
        s = s / (s.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
        patches = s @ linear.weight.T + linear.bias
        # One patch, by hand: the second row and the third column of patches.
        expected = patches[:, 5].view(3, 4, 4, 3).permute(0, 3, 1, 2)
        torch.testing.assert_close(found.heads["base"][:, :, 4:8, 8:12], expected)


class TestRunning:
    @both
    @conditions
    def test_compiled(self, name: str, condition: ConditionSpec) -> None:
        torch.compiler.reset()
        model = awake(build(name, condition, ALL))
        arguments = (inputs(ALL), TIMES.double(), given(condition))
        with torch.no_grad():
            plain = model(*arguments, **told(ALL), want=("base",))
            model.compile(backend="eager")
            found = model(*arguments, **told(ALL), want=("base",))
        for leaf in ("image", "cls"):
            torch.testing.assert_close(found.state[leaf], plain.state[leaf])
        torch.testing.assert_close(found.heads["base"], plain.heads["base"])

    @both
    @conditions
    def test_forward_derivative_in_single_precision(
        self, name: str, condition: ConditionSpec
    ) -> None:
        model, x = awake(build(name, condition, Wiring(interval=True))), inputs()["image"]
        c, interval = given(condition), told(Wiring(interval=True))["interval"]

        def derivative(dtype: torch.dtype) -> torch.Tensor:
            def out(x, t, interval):
                return model({"image": x}, t, text(dtype), interval=interval).state["image"]

            def text(dtype):
                if isinstance(c, TextCondition):
                    return TextCondition(c.features.to(dtype), c.mask)
                return c

            point = [value.to(dtype) for value in (x, TIMES, interval)]
            along = [torch.sin(point[0]), torch.ones_like(point[1]), torch.ones_like(point[2])]
            model.to(dtype)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                return torch.func.jvp(out, tuple(point), tuple(along))[1]

        double = derivative(torch.float64)
        single = derivative(torch.float32)
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 1e-4 * double.abs().max()

    @both
    @conditions
    def test_half_precision(self, name: str, condition: ConditionSpec) -> None:
        model = awake(build(name, condition, ALL)).float()
        state, c = {n: x.float() for n, x in inputs(ALL).items()}, given(condition)
        numbers = {"interval": TIMES, "scalars": {"scale": TIMES}}
        if isinstance(c, TextCondition):
            c = TextCondition(c.features.float(), c.mask)
        with torch.no_grad():
            full = model(state, TIMES, c, **numbers).state
            with torch.autocast("cpu", torch.bfloat16):
                half = model(state, TIMES, c, **numbers).state
        for leaf, value in full.items():
            assert (half[leaf] - value).square().mean() < 1e-3 * value.square().mean()

    @both
    def test_told_other_numbers(self, name: str) -> None:
        arguments = (inputs(), TIMES.double(), given(LABELS))
        with pytest.raises(TypeError, match="interval"):
            build(name).double()(*arguments, interval=TIMES.double())
        with pytest.raises(TypeError, match="scale"):
            build(name).double().features(*arguments, ("block1",), scalars={"scale": TIMES})


@both
@pytest.mark.parametrize(
    "fields, named",
    [
        ({"heads": 3}, "backbone.heads=3"),
        ({"heads": 16}, "backbone.heads=16"),
        ({"heads": 0}, "backbone.heads=0"),
        ({"depth": 0}, "backbone.depth=0"),
        ({"width": 0}, "backbone.width=0"),
        ({"mlp_ratio": 0.0}, "backbone.mlp_ratio=0.0"),
    ],
)
def test_refusals(name: str, fields: dict, named: str) -> None:
    target = {"jit": JitConfig, "pixnerd": PixnerdConfig}[name]
    config = target(**({"depth": 2, "width": 32, "heads": 2} | fields))
    with pytest.raises(ConfigError, match=named):
        config.build(LatentSpec(3, 8, 8, 2), LABELS, Wiring())


@both
def test_latents_and_heads_that_do_not_fit(name: str) -> None:
    config = configs(LABELS)[name]
    with pytest.raises(ConfigError, match="patch 3"):
        config.build(LatentSpec(3, 8, 8, 3), LABELS, Wiring())
    with pytest.raises(ConfigError, match="'base'.* reads block 4"):
        config.build(LatentSpec(3, 8, 8, 2), LABELS, Wiring(heads={"base": 4}))


SMALLEST = {
    "jit": (JitConfig(depth=2, width=32, heads=2, bottleneck=8, context_tokens=2), 5e-3),
    "pixnerd": (PixnerdConfig(depth=2, width=32, heads=2, field_depth=2, field_width=16), 1e-2),
}
"""what learns in a moment, at which rate"""


@both
def test_learns(name: str) -> None:
    """Four fixed images by class, learned by heart and sampled back in 50 Euler steps."""
    backbone, rate = SMALLEST[name]
    memory = Memory("x", backbone, LatentSpec(3, 4, 4, 2), classes=4)  # type: ignore[arg-type]
    start = memory.error()
    memory.train(AdamWConfig(lr=rate), steps=150, batch=32, warmup=10)
    assert memory.error() < 0.05 * start
    nearest = torch.cdist(memory.samples().flatten(1), memory.truth.flatten(1)).argmin(1)
    assert nearest.tolist() == [0, 1, 2, 3]
