"""DDT: what it does with conditions, features and positions; what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_ddt import (
    LABELS,
    LATENT,
    SMALL,
    TEXT,
    TIMES,
    awake,
    build,
    caption,
    difference,
    inputs,
    run,
)

from nanogen.backbones import layers
from nanogen.backbones.ddt import DdtConfig
from nanogen.errors import ConfigError
from nanogen.types import Condition, LabelCondition, LatentSpec, TextCondition, Wiring


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
        config.build(LATENT, LABELS, Wiring())


def test_patch_must_divide() -> None:
    with pytest.raises(ConfigError, match="patch 3"):
        SMALL.build(LatentSpec(4, 8, 8, 3), LABELS, Wiring())


def test_float64_works() -> None:
    """No part falls back to float32, so that numerics can be tested."""
    model = awake(build(TEXT)).double()
    state = {"image": inputs()["image"].double()}
    text = caption((16, 5, 0))
    text = TextCondition(text.features.double(), text.mask)
    with torch.no_grad():
        found = model(state, TIMES.double(), text).state["image"]
    assert found.dtype == torch.float64 and found.isfinite().all()
