"""DDT and LightningDiT: what they make of what they are wired for, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from tiny_ddt import LABELS, LATENT, PLAIN, SMALL, TEXT, TIMES, awake, caption, difference, inputs

from nanogen.backbones.ddt import Ddt, DdtConfig
from nanogen.backbones.lightning_dit import LightningDit, LightningDitConfig
from nanogen.errors import ConfigError
from nanogen.types import Condition, ConditionSpec, LabelCondition, TextCondition, Wiring

Config: TypeAlias = DdtConfig | LightningDitConfig

IDS = LabelCondition(torch.tensor([0, 7, 10]))
ALL = Wiring({"cls": 6}, True, ("scale",), {"base": 1})
TOLD = {"interval": torch.tensor([0.0, 0.3, 0.9]), "scalars": {"scale": TIMES * 10}}

configs = pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["ddt", "lightning-dit"])


def made(
    config: Config,
    wiring: Wiring | None = None,
    condition: ConditionSpec = LABELS,
) -> Ddt | LightningDit:
    torch.manual_seed(0)
    return config.build(LATENT, condition, wiring or Wiring())


@configs
def test_what_is_not_wired_draws_nothing(config: Config) -> None:
    """Weights that two wirings share start the same: the rest is drawn in the same order."""
    plain = made(config).state_dict()
    wired = made(config, Wiring(heads={"base": 1})).state_dict()
    assert plain.keys() < wired.keys()
    assert all(torch.equal(wired[name], value) for name, value in plain.items())


@configs
def test_all_outputs_are_zero_at_the_start(config: Config) -> None:
    with torch.no_grad():
        found = made(config, ALL)(inputs(cls=6), TIMES, IDS, **TOLD, want=("base",))
    assert found.state.keys() == {"image", "cls"} and found.heads.keys() == {"base"}
    assert not any(x.any() for x in (*found.state.values(), *found.heads.values()))


@configs
@pytest.mark.parametrize("wiring", [Wiring(), ALL], ids=["plain", "all"])
def test_features_alone(config: Config, wiring: Wiring) -> None:
    """The same as those of a whole forward, and later blocks do not run."""
    model, state = awake(made(config, wiring)), inputs(**wiring.leaves)
    told = TOLD if wiring is ALL else {}
    with torch.no_grad():
        expected = model(state, TIMES, IDS, **told, want=("block1",)).features
        later = []
        for block in model.blocks[1:]:
            block.register_forward_hook(lambda *_: later.append(1))
        found = model.features(state, TIMES, IDS, ("block1",), **told)
    assert found.keys() == {"block1"} and torch.equal(found["block1"], expected["block1"])
    assert not later


@configs
def test_time_is_the_interval(config: Config) -> None:
    """The absolute time comes in by its own tokens only: without them it has no effect, neither on
    the first time's nor on what modulates DDT's decoder.
    """
    model, state = awake(made(config, Wiring(interval=True))), inputs()
    for p in model.t_abs_embedder.parameters():
        p.data.zero_()

    def out(t: torch.Tensor, interval: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(state, t, IDS, interval=interval).state["image"]

    first = out(TIMES, TIMES / 2)
    assert torch.equal(out(TIMES / 3, TIMES / 2), first)
    assert difference(out(TIMES, TIMES / 3), first) > 1e-4


@configs
def test_order_of_scalars_is_that_of_the_wiring(config: Config) -> None:
    model = awake(made(config, Wiring(scalars=("one", "two"))))
    values = {"one": TIMES * 3, "two": TIMES}
    with torch.no_grad():
        found, again = (
            model(inputs(), TIMES, IDS, scalars=scalars).state["image"]
            for scalars in (values, dict(reversed(values.items())))
        )
    assert torch.equal(found, again)


@configs
def test_scalars_of_any_size(config: Config) -> None:
    """A tenth more is told apart by about as much, whether a scale is 1 or 10 000."""
    model = awake(made(config, Wiring(scalars=("scale",))))

    def out(scale: float) -> torch.Tensor:
        with torch.no_grad():
            told = {"scale": torch.full((3,), scale)}
            return model(inputs(), TIMES, IDS, scalars=told).state["image"]

    moved = [difference(out(1.1 * scale), out(scale)) for scale in (1.0, 10.0, 1e4)]
    assert min(moved) > 3e-4 and max(moved) < 6 * min(moved)


@pytest.mark.slow
@configs
@pytest.mark.parametrize(
    "wiring, kind, recompute",
    [
        pytest.param(Wiring(), "label", False, id="plain"),
        pytest.param(ALL, "label", True, id="all, recomputed"),
        pytest.param(ALL, "mixed", True, id="text, recomputed"),
        pytest.param(ALL, "whole", False, id="whole text"),
    ],
)
def test_compiles_whole(config: Config, wiring: Wiring, kind: str, recompute: bool) -> None:
    """One graph, with the numbers and gradients of plain execution."""
    condition: Condition = IDS if kind == "label" else caption((16, 5, 0))
    if isinstance(condition, TextCondition) and kind == "whole":
        condition = TextCondition(condition.features, torch.ones(3, 16).bool(), whole=True)
    model = awake(made(config, wiring, LABELS if kind == "label" else TEXT)).train()
    model.recompute = recompute
    told = TOLD if wiring is ALL else {}
    state, want = inputs(**wiring.leaves), ("block1", *wiring.heads)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        found = network(state, TIMES, condition, **told, want=want)
        parts = (*found.state.values(), *found.heads.values(), *found.features.values())
        sum(x.square().mean() for x in parts).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()


@configs
@pytest.mark.parametrize("mode, runs", [("train", 2), ("eval", 1), ("off", 1)])
def test_recomputes_each_block_once(config: Config, mode: str, runs: int) -> None:
    """In training only, where activations would be kept."""
    model = awake(made(config)).train(mode != "eval")
    model.recompute = mode != "off"
    calls = [0] * len(model.blocks)

    def count(number: int) -> Callable[..., None]:
        def add(*_: object) -> None:
            calls[number] += 1

        return add

    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(count(number))
    model(inputs(), TIMES, IDS).state["image"].square().mean().backward()
    assert calls == [runs] * len(model.blocks)
    with torch.no_grad():
        model(inputs(), TIMES, IDS)
    assert calls == [runs + 1] * len(model.blocks)


@configs
def test_heads_must_read_a_block(config: Config) -> None:
    with pytest.raises(ConfigError, match="terms or the objective .* block 8"):
        config.build(LATENT, LABELS, Wiring(heads={"base": 8}))
