"""What a sampler makes of a network's branches, on networks that are formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogen.errors import ConfigError
from nanogen.objectives.base import Facts, Objective, Term
from nanogen.objectives.flow import FlowConfig
from nanogen.sampling.generate import Sampler, Sampling
from nanogen.sampling.guidance import Auto, Guidance, Internal
from nanogen.tokenizers.pixels import Pixels
from nanogen.types import Backbone, LabelCondition, Prediction, Request, State

CLASSES, LEAF = 3, 4
REQUEST = Request(torch.arange(2), labels=torch.tensor([0, 2]))


class Formula(nn.Module):
    """Predicts constants: `with_label` for any label, `null` without; a tenth of it in the head
    `base`, and ten times it for leaves. Remembers what it was told.
    """

    def __init__(self, with_label: float = 2.0, null: float = 1.0) -> None:
        super().__init__()
        self.values, self.calls = (with_label, null), []

    def forward(
        self,
        state: State,
        t: Tensor,
        condition: LabelCondition,
        *,
        interval: Tensor | None = None,
        scalars: Mapping[str, Tensor] | None = None,
        want: Iterable[str] = (),
    ) -> Prediction:
        kind = "null" if bool((condition.ids == CLASSES).all()) else "label"
        told = None if interval is None else interval.tolist()
        self.calls.append((kind, t.tolist(), told, tuple(want)))
        value = self.values[kind == "null"]
        filled = {
            leaf: torch.full_like(x, value if leaf == "image" else 10 * value)
            for leaf, x in state.items()
        }
        heads = {name: torch.full_like(state["image"], value / 10) for name in want}
        return Prediction(filled, {}, heads)


class Head(Term):
    heads = {"base": 1}


class Token(Term):
    leaves = {"cls": LEAF}


class MeanVelocity(Objective):
    """Velocity as predicted, told the length of a step."""

    interval = True

    def forward(self, network, inputs):
        raise NotImplementedError

    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        return prediction


class GuidesItself(MeanVelocity):
    guides_itself = True


FACTS = Facts(seed=0, latent=Pixels(4, 8).spec, image_size=8, feature_width=8, decode=lambda x: x)


class Labels:
    def encode(self, given: Any) -> LabelCondition:
        return LabelCondition(given.labels)

    def null(self, count: int) -> LabelCondition:
        return LabelCondition(torch.full((count,), CLASSES))


def sampler(
    network: Backbone | None = None, objective: Objective | None = None, **fields: Any
) -> Sampler:
    objective = objective or flow(base=Head(), reg=Token())
    return Sampler(
        network or Formula(),
        objective,
        Labels(),  # ty: ignore[invalid-argument-type]
        Pixels(4, 8),
        objective.leaves,
        Sampling(**{"steps": 1, "shift_base": None} | fields),
        torch.device("cpu"),
    )


def flow(prediction: str = "v", **terms: Term) -> Objective:
    return FlowConfig(prediction=prediction).build(FACTS, terms)


def velocities(made: Sampler) -> dict[str, float]:
    """Mean velocity of each leaf over a walk of one step: noise minus data, everywhere equal."""
    noise, end = made.noise(REQUEST.indices), made.latents(REQUEST)
    found = {leaf: noise[leaf] - end[leaf] for leaf in noise}
    assert all(torch.allclose(v, v.flatten()[0], atol=1e-5) for v in found.values())
    return {leaf: round(v.flatten()[0].item(), 4) for leaf, v in found.items()}


@pytest.mark.parametrize(
    "guidance, internal, image, cls",
    [
        ({}, {}, 2.0, 20.0),
        ({"scale": 3.0}, {}, 1 + 3 * (2 - 1), 10 + 3 * 10),
        ({"scale": 3.0, "leaves": 1.5}, {}, 4.0, 10 + 1.5 * 10),
        ({}, {"scale": 1.5}, 0.2 + 1.5 * 1.8, 20.0),
        ({}, {"scale": 0.0}, 0.2, 20.0),
        # Both branches become (0.1 + s 0.9) of what they were, and then guidance adds its part.
        ({"scale": 3.0}, {"scale": 1.5}, 1.45 * 4, 40.0),
        (
            {"scale": 3.0},
            {"scale": 1.5, "null_scale": 1.2},
            1.18 + 3 * (1.45 * 2 - 1.18),
            40.0,
        ),
        ({"scale": 3.0}, {"scale": 1.0, "null_scale": 1.2}, 1.18 + 3 * (2 - 1.18), 40.0),
        ({"scale": 0.0}, {"scale": 1.5}, 1.45, 10.0),
        # One step starts at t = 1, which these intervals leave out.
        ({"scale": 3.0, "high": 0.9}, {"scale": 1.5, "high": 0.9}, 2.0, 20.0),
        ({"scale": 3.0}, {"scale": 1.5, "high": 0.9}, 4.0, 40.0),
    ],
)
def test_guidance_of_image_and_leaves(
    guidance: dict[str, float], internal: dict[str, float], image: float, cls: float
) -> None:
    """Classifier-free guidance of every leaf, internal guidance of the image alone."""
    made = sampler(guidance=Guidance(**guidance), internal=Internal(**internal))
    assert velocities(made) == {"image": round(image, 4), "cls": round(cls, 4)}


def test_the_head_is_asked_for_only_in_its_interval() -> None:
    network = Formula()
    made = sampler(network, steps=4, internal=Internal(scale=1.78, low=0.3, high=0.8))
    end = made.latents(REQUEST)
    assert [(t[0], want) for _, t, _, want in network.calls] == [
        (1.0, ()),
        (0.75, ("base",)),
        (0.5, ("base",)),
        (0.25, ()),
    ]
    assert end["image"].shape == (2, 3, 8, 8) and end["cls"].shape == (2, LEAF)


def test_internal_guidance_of_scale_one_is_none() -> None:
    plain, guided = (
        sampler(internal=internal).latents(REQUEST)
        for internal in (Internal(), Internal(scale=1.0, low=0.1))
    )
    assert torch.equal(plain["image"], guided["image"])


@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
def test_last_step_to_the_data(prediction: str, solver: str) -> None:
    """Predicted data as they are, guided as velocities would be. The last step starts at 1/200, or
    at 0.04 for the SDE: both are below the floor of x-prediction's velocity, 0.05.
    """
    network, steps = Formula(), 200
    fields = {"solver": solver, "steps": steps, "guidance": Guidance(scale=3.0)}
    objective = flow(prediction, base=Head(), reg=Token())
    end = sampler(network, objective, final="data", **fields).latents(REQUEST)
    if prediction == "x":
        assert torch.equal(end["image"], torch.full_like(end["image"], 4.0))
        assert torch.equal(end["cls"], torch.full_like(end["cls"], 40.0))
        floored = sampler(network, objective, **fields).latents(REQUEST)
        assert (floored["image"] - 4.0).abs().max() > 1e-3
    elif solver != "sde":
        other = sampler(network, objective, **fields).latents(REQUEST)
        assert torch.allclose(other["image"], end["image"], atol=1e-5)


def test_velocities_are_combined_in_float32() -> None:
    """Also where a network speaks bfloat16: 9 (c - n) would keep two digits of it."""

    class Half(Formula):
        def forward(self, *given: Any, **more: Any) -> Prediction:
            found = super().forward(*given, **more)
            return Prediction({name: leaf.bfloat16() for name, leaf in found.state.items()})

    made = sampler(Half(1.01, 1.0), guidance=Guidance(scale=9.0))
    end = made.latents(REQUEST)
    assert end["image"].dtype == torch.float32
    exact = 1 + 9 * (torch.tensor(1.01).bfloat16().item() - 1)
    assert velocities(made)["image"] == pytest.approx(exact, abs=1e-4)


class TestMeanVelocity:
    """Networks that are told the length of the step (MeanFlow)."""

    def told(self, **fields: Any) -> list[tuple[str, float, float]]:
        network = Formula()
        sampler(network, MeanVelocity(FACTS, {}), **fields).latents(REQUEST)
        return [(kind, t[0], h[0]) for kind, t, h, _ in network.calls]

    def test_one_step(self) -> None:
        assert self.told() == [("label", 1.0, 1.0)]

    def test_two_steps(self) -> None:
        assert self.told(steps=2) == [("label", 1.0, 0.5), ("label", 0.5, 0.5)]

    def test_guided(self) -> None:
        calls = self.told(steps=2, guidance=Guidance(scale=2.0, high=0.9))
        assert sorted(calls) == [("label", 0.5, 0.5), ("label", 1.0, 0.5), ("null", 0.5, 0.5)]

    def test_last_step_to_the_data_is_the_whole_rest(self) -> None:
        assert self.told(steps=2, final="data") == [("label", 1.0, 0.5), ("label", 0.5, 0.5)]

    def test_heun_asks_at_a_time(self) -> None:
        assert [h for _, _, h in self.told(steps=2, solver="heun")] == [0.0, 0.0, 0.5]

    def test_a_network_that_guides_itself_has_one_branch(self) -> None:
        network = Formula()
        made = sampler(network, GuidesItself(FACTS, {}), guidance=Guidance(scale=3.0))
        assert velocities(made)["image"] == 2.0
        assert made.counts().network_calls == 1
        assert {kind for kind, *_ in network.calls} == {"label"}


class TestRefusals:
    @pytest.mark.parametrize("field", [{"scale": 1.5}, {"low": 0.1}, {"high": 0.5}])
    def test_internal_guidance_needs_a_head(self, field: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match=r"sampling.internal.*terms.internal=on"):
            sampler(objective=flow(reg=Token()), internal=Internal(**field))

    def test_a_scale_of_leaves_needs_leaves(self) -> None:
        with pytest.raises(ConfigError, match=r"sampling.guidance.leaves=1.5.*terms.reg=on"):
            sampler(objective=flow(base=Head()), guidance=Guidance(scale=2.0, leaves=1.5))

    def test_a_network_that_guides_itself_has_one_scale(self) -> None:
        with pytest.raises(ConfigError, match=r"sampling.guidance.leaves=1.5.*is told one"):
            sampler(objective=GuidesItself(FACTS, {"reg": Token()}), guidance=Guidance(leaves=1.5))

    @pytest.mark.parametrize(
        "make, words",
        [
            (lambda: Internal(scale=-1.0), "sampling.internal.scale=-1.0"),
            (lambda: Internal(null_scale=-1.0), "sampling.internal.null_scale=-1.0"),
            (lambda: Internal(low=0.5, high=0.5), "sampling.internal.low=0.5"),
            (
                lambda: Sampling(internal=Internal(scale=2.0, null_scale=1.5)),
                "sampling.internal.null_scale=1.5 has no effect with sampling.guidance.scale=1",
            ),
            (lambda: Auto(scale=1.5), "sampling.auto.scale=1.5 has no effect without"),
            (lambda: Auto(high=0.9), "sampling.auto.high=0.9 has no effect without"),
            (lambda: Auto(weights="raw"), "sampling.auto.weights=raw has no effect without"),
            (lambda: Auto(run="x"), "sampling.auto.run has no effect with sampling.auto.scale=1"),
        ],
    )
    def test_values(self, make: Callable[[], object], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            make()
