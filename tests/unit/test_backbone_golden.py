"""DDT: the published numbers, our own pinned ones, and an independent evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy_ddt import NumpyDdt
from safetensors.torch import load_file
from tiny_ddt import LABELS, LATENT, TEXT, TIMES, awake, build, caption, difference, inputs, run

from nanogen.backbones.ddt import DdtConfig
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    TextCondition,
    Wiring,
)

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "spec" / "golden_backbone.npz"
OWN = ROOT / "tests" / "golden" / "backbone.safetensors"


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
        model = config.build(LATENT, TEXT if variant == "ddt_text" else LABELS, Wiring())
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
            Wiring() if text else Wiring({"cls": 5}),
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
