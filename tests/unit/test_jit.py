"""JiT against its paper: sizes, computation, initial weights, and an evaluation in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy_adaln import NumpyAdaln, cut, joined, silu
from tiny_adaln import (
    ALL,
    JIT,
    LABELS,
    LATENT,
    TEXT,
    TIMES,
    awake,
    build,
    caption,
    given,
    inputs,
    told,
)
from torch.utils.flop_counter import FlopCounterMode

from nanogen.backbones.jit import Jit, JitConfig
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.types import ConditionSpec, LabelCondition, LatentSpec, Wiring

LARGE = {"depth": 24, "width": 1024, "heads": 16}
HUGE = {"depth": 32, "width": 1280, "heads": 16, "bottleneck": 256}
GIANT = {"depth": 40, "width": 1664, "heads": 16, "bottleneck": 256, "context_start": 10}
PUBLISHED = [
    ({}, 16, "131M", 25),
    (LARGE, 16, "459M", 88),
    (HUGE, 16, "953M", 182),
    (GIANT, 16, "2B", 383),
    ({}, 32, "133M", 26),
    (LARGE, 32, "462M", 89),
    (HUGE, 32, "956M", 183),
    (GIANT, 32, "2B", 384),
    ({}, 64, "141M", None),
]
"""fields, patch, parameters and Gflops (multiplications) of arXiv 2511.13720, Tables 5, 7 and 8.

Table 5 prints 30 Gflops for the last one, where its description gives 28.
"""
NAMES = ["B/16", "L/16", "H/16", "G/16", "B/32", "L/32", "H/32", "G/32", "B/64"]


def published(fields: dict, patch: int) -> Jit:
    """A size of the paper, for 1000 classes and 16 x 16 patches."""
    with torch.device("meta"):
        latent = LatentSpec(3, 16 * patch, 16 * patch, patch)
        return JitConfig(**fields).build(latent, ConditionSpec(classes=1000), Wiring())


@pytest.mark.parametrize("fields, patch, parameters, _", PUBLISHED, ids=NAMES)
def test_parameters(fields: dict, patch: int, parameters: str, _: int | None) -> None:
    count = parameter_count(published(fields, patch))
    printed = f"{count / 1e9:.0f}B" if count > 1e9 else f"{count / 1e6:.0f}M"
    assert printed == parameters


def test_parameters_of_the_first_size_exactly() -> None:
    """Counted by hand: 12 blocks, embeddings, head."""
    d, hidden, classes, k, b = 768, 2048, 1000, 768, 128
    block = 4 * (d * d + d) + 2 * 64 + 2 * d + 2 * (d * hidden + hidden) + hidden * d + d
    block += 6 * d * d + 6 * d
    rest = (classes + 1) * d + 32 * d + (256 * d + d) + (d * d + d) + k * b + b * d + d
    rest += d + 2 * d * d + 2 * d + d * k + k
    assert parameter_count(published({}, 16)) == 12 * block + rest == 131_123_712


@pytest.mark.parametrize("fields, patch, _, expected", PUBLISHED[:-1], ids=NAMES[:-1])
def test_computation(fields: dict, patch: int, _: str, expected: int) -> None:
    model = published(fields, patch)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        image = torch.empty(1, 3, 16 * patch, 16 * patch)
        condition = LabelCondition(torch.empty(1, dtype=torch.int64))
        model({"image": image}, torch.empty(1), condition)
    assert counter.get_total_flops() / 2e9 == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("depth, start", [(12, 4), (24, 8), (32, 10), (2, 0)])
def test_where_classes_join(depth: int, start: int) -> None:
    """In blocks: 4 of JiT-B, 8 of JiT-L, 10 of JiT-H."""
    assert JitConfig(depth=depth).start == start


class TestInNumpy:
    """Float64, one sample at a time; what the condition adds comes first, as in the paper."""

    def places(self) -> np.ndarray:
        """[6, 8]: rows turn four pairs of a head, columns the other four."""
        frequencies = 10_000.0 ** (-np.arange(4) / 4)
        return np.array(
            [
                np.concatenate([row * frequencies, column * frequencies])
                for row in range(2)
                for column in range(3)
            ]
        )

    def positions(self) -> np.ndarray:
        """[6, 32]"""
        out = []
        for row in range(2):
            for column in range(3):
                waves = [
                    wave(place * 10_000 ** (-j / 8))
                    for place in (column, row)
                    for wave in (np.sin, np.cos)
                    for j in range(8)
                ]
                out.append(waves)
        return np.array(out)

    @pytest.mark.parametrize("condition", [LABELS, TEXT], ids=["labels", "text"])
    def test_agrees(self, condition: ConditionSpec) -> None:
        model, state, c = awake(build("jit", condition, ALL)), inputs(ALL), given(condition)
        with torch.no_grad():
            found = model(state, TIMES.double(), c, **told(ALL)).state
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        network = NumpyAdaln(weights, 2, 10_000.0, self.places())
        for row in range(3):
            numbers = {
                "interval": told(ALL)["interval"][row].item(),
                "scalars.scale": told(ALL)["scalars"]["scale"][row].item(),
            }
            moment = network.moment(1 - TIMES.double()[row].item(), numbers)
            if isinstance(c, LabelCondition):
                vector, tokens = network.label(int(c.ids[row]))
            else:
                vector, tokens = network.text(c.features[row][c.mask[row]].numpy())
            reduce = network.weights["embed.reduce.weight"]
            image = state["image"][row].numpy()
            reduced = [(reduce * patch).sum((1, 2, 3)) for patch in cut(image, 4)]
            embedded = network.linear(np.array(reduced), "embed.expand") + self.positions()
            leaf = network.leaf(state["cls"][row].numpy(), "cls")
            modulation = silu(moment + vector)
            s = network.blocks(embedded, leaf, tokens, modulation, start=1)
            s = network.final_norm(s, modulation, "norm")
            out = network.linear(s[1:], "head").reshape(6, 4, 4, 3)
            expected = joined(lambda n, y, x, out=out: out[n, y, x], (8, 12), 4)
            assert np.abs(found["image"][row].numpy() - expected).max() < 1e-6
            expected = network.linear(s[0], "leaves.heads.cls")
            assert np.abs(found["cls"][row].numpy() - expected).max() < 1e-6


class TestContext:
    def test_joins_at_its_block(self) -> None:
        """What the tokens of a class add is seen from the second block on."""
        model = awake(build("jit"))
        arguments = (inputs(), TIMES.double(), given(LABELS))
        before = model(*arguments, want=("block1", "block2")).features
        model.context.offsets.data += 1.0
        after = model(*arguments, want=("block1", "block2")).features
        assert torch.equal(before["block1"], after["block1"])
        assert not torch.isclose(before["block2"], after["block2"]).any(-1).all()

    def test_none(self) -> None:
        config = JitConfig(depth=3, width=32, heads=2, context_tokens=0)
        model = awake(config.build(LATENT, LABELS, Wiring()))
        assert "context.offsets" not in model.state_dict()
        found = model(inputs(), TIMES.double(), given(LABELS)).state["image"]
        assert found.isfinite().all() and found.any()

    def test_longer_text_than_class(self) -> None:
        """Text brings as many tokens as it has."""
        model, text = awake(build("jit", TEXT)), caption(6, 6, 6)
        changed = text.features.clone()
        changed[:, 5] += 1.0
        with torch.no_grad():
            one, other = (
                model(inputs(), TIMES.double(), type(text)(features, text.mask)).state["image"]
                for features in (text.features, changed)
            )
        assert (one - other).abs().flatten(1).max(1)[0].min() > 1e-4


def test_initial_weights() -> None:
    """Xavier-uniform of the matrices as they are in the authors' code, where some are fused."""
    torch.manual_seed(0)
    config = JitConfig(depth=2, width=96, heads=4, bottleneck=64, context_tokens=16)
    model = config.build(LatentSpec(3, 32, 32, 8), LABELS, Wiring(heads={"base": 1}))
    p = dict(model.named_parameters())
    hidden = p["blocks.0.mlp.w1.weight"].shape[0]
    assert hidden == 256
    bounds = {
        "blocks.0.attn.q": 6 / (96 + 3 * 96),
        "blocks.1.attn.v": 6 / (96 + 3 * 96),
        "blocks.0.attn.proj": 6 / (96 + 96),
        "blocks.0.mlp.w1": 6 / (96 + 2 * hidden),
        "blocks.1.mlp.w2": 6 / (96 + 2 * hidden),
        "blocks.0.mlp.w3": 6 / (96 + hidden),
        "embed.reduce": 6 / (64 + 192),
        "embed.expand": 6 / (64 + 96),
    }
    for name, square in bounds.items():
        weight = p[f"{name}.weight"]
        assert weight.abs().max() <= math.sqrt(square), name
        assert weight.std().item() == pytest.approx(math.sqrt(square / 3), rel=0.05), name
    for name in ("moment.time.first.weight", "moment.time.second.weight", "context.offsets"):
        assert p[name].std().item() == pytest.approx(0.02, rel=0.1), name
    assert p["context.table.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    zero = {name for name, value in p.items() if not value.any() and name.endswith("weight")}
    assert zero == {
        "blocks.0.adaln_modulation.weight",
        "blocks.1.adaln_modulation.weight",
        "norm.adaln_modulation.weight",
        "head.weight",
        "base_head.1.weight",
    }
    assert not any(value.any() for name, value in p.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    "fields, condition, named",
    [
        ({"bottleneck": 0}, LABELS, "backbone.bottleneck=0"),
        ({"context_tokens": -1}, LABELS, "backbone.context_tokens=-1"),
        ({"context_tokens": 8}, TEXT, "backbone.context_tokens=8 has no effect"),
        ({"context_start": 3}, LABELS, "backbone.context_start=3.* 0 and 2"),
        ({"context_start": -1}, TEXT, "backbone.context_start=-1"),
        ({"context_start": 1, "context_tokens": 0}, LABELS, "context_start=1 has no effect"),
    ],
)
def test_refusals(fields: dict, condition: ConditionSpec, named: str) -> None:
    config = JitConfig(**({"depth": 3, "width": 32, "heads": 2} | fields))
    with pytest.raises(ConfigError, match=named):
        config.build(LATENT, condition, Wiring())


def test_class_tokens_are_those_of_the_config() -> None:
    assert build("jit").context.offsets.shape == (JIT.context_tokens, JIT.width)
