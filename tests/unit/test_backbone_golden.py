"""DDT and LightningDiT: the published numbers, our own pinned ones, an independent evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_ddt import NumpyDdt, NumpyLightningDit, Told
from safetensors.torch import load_file
from tiny_ddt import (
    LABELS,
    LATENT,
    PLAIN,
    SMALL,
    TEXT,
    TIMES,
    awake,
    caption,
    difference,
    inputs,
)
from torch import Tensor, nn

from nanogen.backbones.ddt import DdtConfig
from nanogen.backbones.lightning_dit import LightningDitConfig
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

DDT = DdtConfig(depth=3, width=32, heads=2, decoder_depth=1, decoder_width=48, decoder_heads=2)
TIME = {
    "W",
    "learnable_tokens",
    *(f"mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
}
BLOCK = {
    "norm1.weight",
    "norm2.weight",
    "attn.q_norm.weight",
    "attn.k_norm.weight",
    *(f"attn.{part}.{kind}" for part in ("q", "k", "v", "proj") for kind in ("weight", "bias")),
    *(f"mlp.{part}.{kind}" for part in ("w1", "w2", "w3") for kind in ("weight", "bias")),
}


def linear(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def within(prefix: str, names: set[str]) -> set[str]:
    return {f"{prefix}.{name}" for name in names}


LABEL = {"ctx_embedder.learnable_tokens", "ctx_embedder.embedding_table.weight"}
MODULATED = {"norm.weight", *linear("linear", "adaln_modulation.1")}
ENCODER = within("t_embedder", TIME).union(*(within(f"blocks.{i}", BLOCK) for i in range(3)))
PLAIN_NAMES = ENCODER | linear("x_embedder.proj", "final_layer.linear")
PLAIN_NAMES |= {"final_layer.norm_final.weight"}
DDT_NAMES = ENCODER | linear("s_embedder.proj", "x_embedder.proj", "s_projector")
DDT_NAMES |= within("blocks.3", BLOCK | linear("adaln_modulation.1"))
DDT_NAMES |= within("final_layer", MODULATED)


@dataclass(frozen=True)
class Variant:
    """What a variant of the reference is in our terms: its config, its wiring, and its names."""

    names: set[str]
    config: DdtConfig | LightningDitConfig = DDT
    condition: ConditionSpec = LABELS
    wiring: Wiring = field(default_factory=Wiring)
    second: str = ""
    """what its second output is: a head, a leaf, or a feature after `repa_projector`"""


CLS = linear("final_layer.cls_linear")
BASE = Wiring(heads={"base": 2})
VARIANTS = {
    "ddt_label": Variant(DDT_NAMES | LABEL),
    "ddt_text": Variant(
        DDT_NAMES | {"ctx_embedder.norm.weight"} | linear("ctx_embedder.proj"), condition=TEXT
    ),
    "ddt_reg": Variant(
        DDT_NAMES
        | LABEL
        | CLS
        | linear("cls_in_proj_enc", "cls_in_proj_dec")
        | {"cls_in_norm_enc.weight", "cls_in_norm_dec.weight"},
        wiring=Wiring(leaves={"cls": 24}),
        second="cls",
    ),
    "ddt_meanflow": Variant(
        DDT_NAMES | LABEL | within("t_abs_embedder", TIME), wiring=Wiring(interval=True)
    ),
    "ddt_ig": Variant(
        DDT_NAMES | LABEL | within("base_final_layer", MODULATED), wiring=BASE, second="base"
    ),
    "ddt_repa": Variant(DDT_NAMES | LABEL, second="block2"),
    "light_label": Variant(PLAIN_NAMES | LABEL, PLAIN),
    "light_ig": Variant(
        PLAIN_NAMES
        | LABEL
        | {"base_final_layer.norm_final.weight"}
        | linear("base_final_layer.linear"),
        PLAIN,
        wiring=BASE,
        second="base",
    ),
}
every = pytest.mark.parametrize("name", VARIANTS)


def published(name: str) -> dict[str, Tensor]:
    """`state/<weight>`, `in/<input>` and `out/<number>` of a variant; none if it is not there."""
    if not PUBLISHED.exists():
        return {}
    with np.load(PUBLISHED) as file:
        found = {key: file[key] for key in file if key.startswith(f"{name}/")}
    return {key.removeprefix(f"{name}/"): torch.from_numpy(value) for key, value in found.items()}


def build(variant: Variant) -> nn.Module:
    torch.manual_seed(0)
    return variant.config.build(LATENT, variant.condition, variant.wiring)


class TestReference:
    """The published implementation, names taken strictly. Two kinds of its entries are no part of a
    backbone: tables of rotary positions, which are computed, and REPA's projector, which is a
    term's.
    """

    @every
    def test_names(self, name: str) -> None:
        assert build(VARIANTS[name]).state_dict().keys() == VARIANTS[name].names

    @every
    def test_numbers(self, name: str) -> None:
        variant, stored = VARIANTS[name], published(name)
        if not stored:
            pytest.skip("the reference's outputs of this variant are not here")
        weights = {k.removeprefix("state/"): v for k, v in stored.items() if k.startswith("state/")}
        pair = ("repa_projector.weight", "repa_projector.bias")
        projector = [weights.pop(key) for key in pair if key in weights]
        weights = {k: v for k, v in weights.items() if "rope." not in k}
        model = build(variant)
        model.load_state_dict(weights, strict=True)
        # MeanFlow's first time is the interval.
        times = {"t": stored["in/t"]}
        if variant.wiring.interval:
            times = {"t": stored["in/t_abs"], "interval": stored["in/t"]}
        context, mask = stored["in/context"], stored.get("in/attn_mask")
        condition: Condition = (
            LabelCondition(context.long()) if mask is None else TextCondition(context, mask.bool())
        )
        state = {"image": stored["in/x"]}
        state |= {"cls": stored["in/cls_t"]} if variant.wiring.leaves else {}
        want = (variant.second,) if variant.second not in ("", "cls") else ()
        with torch.no_grad():
            found = model(state, condition=condition, want=want, **times)
        outputs = {**found.state, **found.heads, **found.features}
        if projector:
            outputs["block2"] = nn.functional.linear(outputs["block2"], *projector)
        assert difference(outputs["image"], stored["out/0"]) < 2e-5
        assert ("out/1" in stored) == bool(variant.second)
        if variant.second:
            assert difference(outputs[variant.second], stored["out/1"]) < 2e-5


class TestOwn:
    """Made by scripts/make_golden.py: all kinds of masks, and all that a network can be told."""

    TINY: dict[str, Any] = {"depth": 2, "width": 8, "heads": 2, "mlp_ratio": 2.0}
    CONFIG = DdtConfig(decoder_depth=1, decoder_width=12, decoder_heads=1, **TINY)
    WIRED = {
        "label": (CONFIG, Wiring({"cls": 5})),
        "text": (CONFIG, Wiring()),
        "told": (CONFIG, Wiring({"cls": 5}, True, ("scale",), {"base": 1})),
        "plain": (LightningDitConfig(**TINY), Wiring(heads={"base": 1})),
    }

    @pytest.mark.parametrize("name", WIRED)
    def test_numbers(self, name: str) -> None:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "in": {}, "out": {}}
        for key, value in load_file(OWN).items():
            variant, group, rest = key.split("/", 2)
            if variant == name:
                groups[group][rest] = value
        config, wiring = self.WIRED[name]
        given, expected = groups["in"], groups["out"]
        text = "mask" in given
        spec = ConditionSpec(width=8, tokens=5) if text else ConditionSpec(classes=3)
        model = config.build(LatentSpec(2, 4, 6, 2), spec, wiring)
        model.load_state_dict(groups["weights"], strict=True)
        with torch.no_grad():
            found = model(
                {leaf: given[leaf] for leaf in ("image", *wiring.leaves)},
                given["t"],
                TextCondition(given["features"], given["mask"])
                if text
                else LabelCondition(given["ids"]),
                interval=given.get("interval"),
                scalars={scalar: given[scalar] for scalar in wiring.scalars} or None,
                want=[out for out in expected if out not in given],
            )
        outputs = {**found.state, **found.heads, **found.features}
        assert outputs.keys() == expected.keys()
        for leaf, value in expected.items():
            assert difference(outputs[leaf], value) < 1e-6, leaf

    def test_size(self) -> None:
        assert OWN.stat().st_size < 250_000


FULL = Wiring({"cls": 6}, True, ("scale", "until"), {"base": 1})
KINDS = {
    "label": (LABELS, Wiring()),
    "text": (TEXT, Wiring()),
    "leaf": (LABELS, Wiring(leaves={"cls": 6})),
    "interval": (LABELS, Wiring(interval=True)),
    "scalars": (LABELS, Wiring(scalars=("scale", "until"))),
    "head": (LABELS, Wiring(heads={"base": 1})),
    "all": (LABELS, FULL),
    "all with text": (TEXT, FULL),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["ddt", "lightning-dit"])
def test_independent_evaluation(config: DdtConfig | LightningDitConfig, kind: str) -> None:
    """Against numpy in float64, written from the description of the architecture."""
    spec, wiring = KINDS[kind]
    torch.manual_seed(0)
    model = awake(config.build(LATENT, spec, wiring))
    state = inputs(**wiring.leaves)
    condition: Condition = (
        caption((16, 5, 0)) if spec is TEXT else LabelCondition(torch.tensor([0, 7, 10]))
    )
    interval = torch.tensor([0.0, 0.3, 0.9]) if wiring.interval else None
    scalars = {name: torch.tensor([0.2, 1.0, 7.5]) + i for i, name in enumerate(wiring.scalars)}
    want = ("block1", "block2", *wiring.heads)
    with torch.no_grad():
        found = model(
            state, TIMES, condition, interval=interval, scalars=scalars or None, want=want
        )
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    reference = (
        NumpyDdt(weights, 2, encoder=(2, 2), decoder=(1, 2))
        if isinstance(config, DdtConfig)
        else NumpyLightningDit(weights, 2, config.depth, config.heads)
    )
    text = isinstance(condition, TextCondition)
    told = Told(
        TIMES.double().numpy(),
        condition.features.double().numpy() if text else condition.ids.numpy(),
        real=condition.mask.numpy() if text else None,
        cls=state["cls"].double().numpy() if "cls" in state else None,
        interval=None if interval is None else interval.double().numpy(),
        scalars={name: value.double().numpy() for name, value in scalars.items()},
    )
    expected = reference(state["image"].double().numpy(), told, wiring.heads.get("base"))
    outputs = {**found.state, **found.heads, **found.features}
    assert outputs.keys() == {*state, *want}
    for name, value in outputs.items():
        assert difference(value.double(), torch.from_numpy(expected[name])) < 2e-6, name
