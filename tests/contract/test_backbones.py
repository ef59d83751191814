"""What every backbone promises."""

from __future__ import annotations

import pytest
import torch
from parts import entries, small
from torch import Tensor, nn

from nanogen.registry import Entry
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    State,
    TextCondition,
    Wiring,
)

LATENT = LatentSpec(4, 8, 12, 2)
TIMES = torch.tensor([0.05, 0.5, 1.0])
SPECS = {"labels": ConditionSpec(classes=5), "text": ConditionSpec(width=8, tokens=6)}
LEAVES = {"none": {}, "one": {"cls": 6}}

every = pytest.mark.parametrize("entry", entries("backbone"))
conditions = pytest.mark.parametrize("condition", SPECS)
leaves = pytest.mark.parametrize("extra", LEAVES)


def make(entry: Entry, condition: str = "labels", extra: str = "none") -> nn.Module:
    torch.manual_seed(0)
    return small(entry.target).build(LATENT, SPECS[condition], Wiring(LEAVES[extra]))


def awake(model: nn.Module) -> nn.Module:
    """With what starts at zero moved away from it."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


def state(extra: str, count: int = 3) -> State:
    generator = torch.Generator().manual_seed(2)
    shapes = {"image": (4, 8, 12)} | {name: (width,) for name, width in LEAVES[extra].items()}
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def given(condition: str) -> Condition:
    if condition == "labels":
        return LabelCondition(torch.tensor([0, 3, 5]))
    mask = torch.arange(6) < torch.tensor([6, 2, 0])[:, None]
    features = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(3))
    return TextCondition(features * mask[..., None], mask)


@every
@conditions
@leaves
def test_leaves_keep_their_shapes(entry: Entry, condition: str, extra: str) -> None:
    model, noisy = awake(make(entry, condition, extra)), state(extra)
    with torch.no_grad():
        found = model(noisy, TIMES, given(condition)).state
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in noisy.items()}
    assert all(x.isfinite().all() and x.any() for x in found.values())


@every
@conditions
@leaves
def test_gradient_reaches_every_trained_parameter(entry: Entry, condition: str, extra: str) -> None:
    model = awake(make(entry, condition, extra))
    found = model(state(extra), TIMES, given(condition)).state
    sum(x.square().mean() for x in found.values()).backward()
    for name, p in model.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.any()), name


@every
@conditions
def test_everything_given_is_used(entry: Entry, condition: str) -> None:
    """The output depends on the state, the time, the condition, and where a pixel is."""
    model, noisy, c = awake(make(entry, condition)), state("none"), given(condition)

    def out(x: Tensor, t: Tensor, c: Condition) -> Tensor:
        with torch.no_grad():
            return model({"image": x}, t, c).state["image"]

    first = out(noisy["image"], TIMES, c)
    null = (
        LabelCondition(torch.full((3,), 5))
        if condition == "labels"
        else TextCondition(torch.zeros(3, 0, 8), torch.zeros(3, 0, dtype=torch.bool))
    )
    others = [out(noisy["image"] + 0.1, TIMES, c), out(noisy["image"], TIMES * 0.9, c)]
    others += [out(noisy["image"].flip(-1), TIMES, c).flip(-1), out(noisy["image"], TIMES, null)]
    assert all((other[0] - first[0]).abs().max() > 1e-5 for other in others)


@every
def test_samples_do_not_see_each_other(entry: Entry) -> None:
    model, noisy, c = awake(make(entry)), state("none"), given("labels")
    with torch.no_grad():
        together = model(noisy, TIMES, c).state["image"]
        for row in range(3):
            rows = slice(row, row + 1)
            alone = model({"image": noisy["image"][rows]}, TIMES[rows], LabelCondition(c.ids[rows]))
            torch.testing.assert_close(alone.state["image"], together[rows], atol=1e-5, rtol=1e-4)


@every
@leaves
def test_features(entry: Entry, extra: str) -> None:
    model = awake(make(entry, extra=extra))
    with torch.no_grad():
        found = model(state(extra), TIMES, given("labels"), want=("block1",))
        plain = model(state(extra), TIMES, given("labels"))
    assert found.features.keys() == {"block1"} and not plain.features
    assert found.features["block1"].shape == (3, LATENT.tokens + len(LEAVES[extra]), 32)
    assert torch.equal(found.state["image"], plain.state["image"])


@every
def test_meta_device(entry: Entry) -> None:
    with torch.device("meta"):
        model = small(entry.target).build(LATENT, SPECS["labels"], Wiring())
    assert all(p.is_meta for p in model.parameters())


@every
def test_initial_weights_follow_from_the_seed(entry: Entry) -> None:
    one, again = make(entry).state_dict(), make(entry).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)


@every
def test_feature_width(entry: Entry) -> None:
    """Terms learn the width of the features from the config."""
    assert small(entry.target).width == 32
