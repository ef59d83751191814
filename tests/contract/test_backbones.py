"""What every backbone promises, whatever it is wired for."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from parts import entries, small
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogen.errors import ConfigError
from nanogen.registry import Entry
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    Prediction,
    State,
    TextCondition,
    Wiring,
)

LATENT = LatentSpec(4, 8, 12, 2)
TIMES = torch.tensor([0.05, 0.5, 1.0])
INTERVALS = torch.tensor([0.0, 0.3, 1.0])
SPECS = {"labels": ConditionSpec(classes=5), "text": ConditionSpec(width=8, tokens=6)}
LEAVES = {"cls": 6}
HEADS = {"base": 1}
SCALARS = {"scale": torch.tensor([1.0, 3.0, 8.0]), "until": torch.tensor([0.0, 0.6, 1.0])}
WIRINGS = {
    "plain": Wiring(),
    "leaf": Wiring(leaves=LEAVES),
    "interval": Wiring(interval=True),
    "scalars": Wiring(scalars=tuple(SCALARS)),
    "head": Wiring(heads=HEADS),
    "all": Wiring(LEAVES, True, tuple(SCALARS), HEADS),
}

every = pytest.mark.parametrize("entry", entries("backbone"))
conditions = pytest.mark.parametrize("condition", SPECS)
wirings = pytest.mark.parametrize("wiring", WIRINGS)


def make(entry: Entry, condition: str = "labels", wiring: str = "plain") -> nn.Module:
    """A small one. It may refuse a wiring, or captions, as long as it says so when it is built."""
    torch.manual_seed(0)
    try:
        return small(entry.target).build(LATENT, SPECS[condition], WIRINGS[wiring])
    except ConfigError as refusal:
        if (condition, wiring) == ("labels", "plain"):
            raise
        pytest.skip(f"{entry.name} refuses: {refusal}")


def awake(model: nn.Module) -> nn.Module:
    """With what starts at zero moved away from it."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


def state(wiring: str = "plain", count: int = 3) -> State:
    generator = torch.Generator().manual_seed(2)
    shapes = {"image": (4, 8, 12)} | {n: (width,) for n, width in WIRINGS[wiring].leaves.items()}
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def given(condition: str = "labels") -> Condition:
    if condition == "labels":
        return LabelCondition(torch.tensor([0, 3, 5]))
    mask = torch.arange(6) < torch.tensor([6, 2, 0])[:, None]
    features = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(3))
    return TextCondition(features * mask[..., None], mask)


def run(
    model: nn.Module,
    wiring: str = "plain",
    condition: Condition | None = None,
    want: Iterable[str] = (),
    interval: Tensor = INTERVALS,
    scalars: dict[str, Tensor] = SCALARS,
) -> Prediction:
    """What the model makes of the inputs above, told all that it is wired for."""
    wired = WIRINGS[wiring]
    return model(
        state(wiring),
        TIMES,
        given() if condition is None else condition,
        interval=interval if wired.interval else None,
        scalars=scalars if wired.scalars else None,
        want=want,
    )


@every
@conditions
@wirings
def test_leaves_keep_their_shapes(entry: Entry, condition: str, wiring: str) -> None:
    model, noisy = awake(make(entry, condition, wiring)), state(wiring)
    with torch.no_grad():
        found = run(model, wiring, given(condition)).state
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in noisy.items()}
    assert all(x.isfinite().all() and x.any() for x in found.values())


@every
@conditions
@wirings
def test_gradient_reaches_every_trained_parameter(
    entry: Entry, condition: str, wiring: str
) -> None:
    model = awake(make(entry, condition, wiring))
    found = run(model, wiring, given(condition), want=WIRINGS[wiring].heads)
    outputs = [*found.state.values(), *found.heads.values()]
    sum(x.square().mean() for x in outputs).backward()
    for name, p in model.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.any()), name


@every
@conditions
def test_everything_given_is_used(entry: Entry, condition: str) -> None:
    """The output depends on the state, the time, the condition, and where a pixel is."""
    model, noisy, c = awake(make(entry, condition)), state(), given(condition)

    def out(x: Tensor, t: Tensor, c: Condition) -> Tensor:
        with torch.no_grad():
            return model({"image": x}, t, c).state["image"]

    first = out(noisy["image"], TIMES, c)
    null = (
        LabelCondition(torch.full((3,), 5))
        if condition == "labels"
        else TextCondition(torch.zeros(3, 0, 8), torch.zeros(3, 0, dtype=torch.bool))
    )
    others = [out(noisy["image"] + 0.1, TIMES, c), out(noisy["image"], TIMES * 0.5, c)]
    others += [out(noisy["image"].flip(-1), TIMES, c).flip(-1), out(noisy["image"], TIMES, null)]
    assert all((other[0] - first[0]).abs().max() > 1e-5 for other in others)


@every
def test_interval_is_used(entry: Entry) -> None:
    model = awake(make(entry, wiring="interval"))
    with torch.no_grad():
        found = [run(model, "interval", interval=INTERVALS + more) for more in (0, 0.01)]
    assert (found[0].state["image"] - found[1].state["image"]).abs().flatten(1).max(1)[0].min() > 0


@every
@pytest.mark.parametrize("changed", SCALARS)
def test_scalars_are_used(entry: Entry, changed: str) -> None:
    """Each by itself: also a small change of a large number."""
    model = awake(make(entry, wiring="scalars"))
    moved = SCALARS | {changed: SCALARS[changed] + 0.05}
    with torch.no_grad():
        found = [run(model, "scalars", scalars=scalars) for scalars in (SCALARS, moved)]
    assert (found[0].state["image"] - found[1].state["image"]).abs().flatten(1).max(1)[0].min() > 0


@every
@pytest.mark.parametrize("wiring", ["plain", "interval", "scalars"])
def test_told_exactly_what_it_is_wired_for(entry: Entry, wiring: str) -> None:
    model, wired = make(entry, wiring=wiring), WIRINGS[wiring]
    wrong = [
        {"interval": None if wired.interval else INTERVALS},
        {"scalars": None if wired.scalars else SCALARS},
        {"scalars": {"scale": SCALARS["scale"], "other": TIMES}},
    ]
    right = {
        "interval": INTERVALS if wired.interval else None,
        "scalars": SCALARS if wired.scalars else None,
    }
    for change in wrong:
        with pytest.raises((TypeError, ValueError), match=next(iter(change)).rstrip("s")):
            model(state(wiring), TIMES, given(), **(right | change))


@every
@pytest.mark.parametrize("wiring", ["head", "all"])
def test_heads_are_computed_when_asked_for(entry: Entry, wiring: str) -> None:
    model = awake(make(entry, wiring=wiring))
    calls = []
    for name, module in model.named_modules():
        if name.startswith("base_"):
            module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        plain = run(model, wiring)
        assert not plain.heads and not calls
        asked = run(model, wiring, want=("base", "block2"))
    assert asked.heads["base"].shape == asked.state["image"].shape and asked.heads["base"].any()
    assert asked.heads.keys() == HEADS.keys() and asked.features.keys() == {"block2"}
    for leaf, value in plain.state.items():
        torch.testing.assert_close(asked.state[leaf], value, atol=1e-6, rtol=1e-5)


@every
@pytest.mark.parametrize("block", [0, 3])
def test_no_head_at_a_block_that_is_not_there(entry: Entry, block: int) -> None:
    with pytest.raises(ConfigError):
        small(entry.target).build(LATENT, SPECS["labels"], Wiring(heads={"base": block}))


@every
def test_nothing_unknown_is_wanted(entry: Entry) -> None:
    for name in ("block0", "block3", "base", "pool"):
        with pytest.raises(ConfigError, match=name):
            run(make(entry), want=(name,))


@every
def test_samples_do_not_see_each_other(entry: Entry) -> None:
    model, noisy, c = awake(make(entry)), state(), given("labels")
    with torch.no_grad():
        together = model(noisy, TIMES, c).state["image"]
        for row in range(3):
            rows = slice(row, row + 1)
            alone = model({"image": noisy["image"][rows]}, TIMES[rows], LabelCondition(c.ids[rows]))
            torch.testing.assert_close(alone.state["image"], together[rows], atol=1e-5, rtol=1e-4)


@every
@pytest.mark.parametrize("wiring", ["plain", "leaf", "all"])
def test_features(entry: Entry, wiring: str) -> None:
    model = awake(make(entry, wiring=wiring))
    with torch.no_grad():
        found = run(model, wiring, want=("block1",))
        plain = run(model, wiring)
    assert found.features.keys() == {"block1"} and not plain.features
    tokens = LATENT.tokens + len(WIRINGS[wiring].leaves)
    assert found.features["block1"].shape == (3, tokens, 32)
    assert torch.equal(found.state["image"], plain.state["image"])


class Moving:
    """A network of (state, t, interval) in one precision, and a direction to move these in."""

    def __init__(self, model: nn.Module, wiring: str, condition: str, dtype: torch.dtype) -> None:
        self.model, self.condition = model.to(dtype), given(condition)
        if isinstance(self.condition, TextCondition):
            features = self.condition.features.to(dtype)
            self.condition = TextCondition(features, self.condition.mask)
        told = SCALARS if WIRINGS[wiring].scalars else {}
        self.scalars = {name: x.to(dtype) for name, x in told.items()} or None
        noisy = {name: leaf.to(dtype) for name, leaf in state(wiring).items()}
        self.start = (noisy, 0.9 * TIMES.to(dtype), INTERVALS.to(dtype))
        self.rates = (
            {name: leaf.sin() for name, leaf in noisy.items()},
            torch.ones(3, dtype=dtype),
            torch.full((3,), 0.5, dtype=dtype),
        )

    def __call__(self, x: State, t: Tensor, interval: Tensor) -> State:
        return self.model(x, t, self.condition, interval=interval, scalars=self.scalars).state

    def derivative(self) -> State:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(self, self.start, self.rates)[1]

    def difference(self, h: float) -> State:
        """Central, over 2 h."""
        with torch.no_grad():
            ahead, behind = (self(*self._moved(step)) for step in (h, -h))
        return {name: (ahead[name] - behind[name]) / (2 * h) for name in ahead}

    def _moved(self, h: float) -> tuple[State, Tensor, Tensor]:
        (x, t, interval), (along, rate, slower) = self.start, self.rates
        moved = {name: leaf + h * along[name] for name, leaf in x.items()}
        return moved, t + h * rate, interval + h * slower


@every
@conditions
@pytest.mark.parametrize("wiring", ["interval", "all"])
def test_derivative_along_a_direction(entry: Entry, condition: str, wiring: str) -> None:
    """Forward-mode derivatives, which MeanFlow takes: in float64 against central differences, in
    float32 against those.
    """
    model = awake(make(entry, condition, wiring))
    single = Moving(model, wiring, condition, torch.float32).derivative()
    double = Moving(model, wiring, condition, torch.float64)
    exact, expected = double.derivative(), double.difference(1e-4)
    for leaf, value in exact.items():
        largest = value.abs().max()
        assert (value - expected[leaf]).abs().max() < 1e-5 * largest
        assert (single[leaf] - value).abs().max() < 1e-4 * largest


@every
@wirings
def test_recomputed_activations_give_the_same_gradients(entry: Entry, wiring: str) -> None:
    model = awake(make(entry, wiring=wiring)).train()
    if not hasattr(model, "recompute"):
        pytest.skip(f"{entry.name} keeps all activations")
    gradients = []
    for model.recompute in (False, True):
        model.zero_grad()
        found = run(model, wiring, want=(*WIRINGS[wiring].heads, "block1"))
        values = [*found.state.values(), *found.heads.values(), *found.features.values()]
        sum(x.square().mean() for x in values).backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        )
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-7, rtol=1e-6)


@every
@wirings
def test_meta_device(entry: Entry, wiring: str) -> None:
    with torch.device("meta"):
        model = make(entry, wiring=wiring)
    assert all(p.is_meta for p in model.parameters())


@every
def test_initial_weights_follow_from_the_seed(entry: Entry) -> None:
    one, again = make(entry).state_dict(), make(entry).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)


@every
def test_feature_width(entry: Entry) -> None:
    """Terms learn the width of the features from the config, and how many blocks there are."""
    assert small(entry.target).width == 32 and small(entry.target).depth == 2
