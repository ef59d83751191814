"""Pixel MeanFlow: the network predicts the data, the loss is that of velocities."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import chz
import mean_fields as fields
import pytest
import torch
from mean_fields import FACTS, Tiny, Told, batch, inputs
from scipy import stats
from torch import Tensor

from nanogen.conditioners.labels import Labels
from nanogen.errors import ConfigError
from nanogen.objectives.base import Step, Term
from nanogen.objectives.gate import GatedTerm, GateFields
from nanogen.objectives.improved_meanflow import SCALARS
from nanogen.objectives.pixel_meanflow import PixelMeanFlow, PixelMeanFlowConfig
from nanogen.sampling.generate import Sampler
from nanogen.sampling.settings import Sampling
from nanogen.tokenizers.pixels import Pixels
from nanogen.types import Request, State


def pixel(terms: dict[str, Term] | None = None, **given: object) -> PixelMeanFlow:
    return PixelMeanFlowConfig(**given).build(FACTS, terms or {})


def column(x: Tensor) -> Tensor:
    return x[:, None, None, None]


@pytest.mark.parametrize("tangent", ["boundary", "head"])
def test_one_image_has_no_loss(tangent: str) -> None:
    """A network that knows the only image there is has its exact mean velocities. Its head predicts
    the image too.
    """
    image = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    given = dataclasses.replace(inputs(batch(400)), latents=image.expand(400, -1, -1, -1))
    objective = pixel(power=0.0, instantaneous=0.3, uniform=0.5, tangent=tangent)
    network = Told(
        lambda asked: {"image": image.expand_as(asked["state"]["image"])},
        tuple(objective.own_heads),
    )
    parts = objective(network, given).parts
    loss = parts["meanflow"]
    where = objective.intervals(given.batch.keys)
    # Below the floor the divisor no longer follows t, so that only what does not move is exact.
    exact = (where.t > 0.05) | (where.length == 0)
    assert exact.sum() > 300 and (where.t < 0.05).any()
    assert loss[exact].max() < 1e-4
    assert tangent == "boundary" or parts["velocity"].max() < 1e-4


def test_loss_by_hand() -> None:
    """V of u = (z - x_hat) / max(t, floor), whose derivative goes through the division too."""
    objective, given = pixel(time_floor=0.3, instantaneous=0.3), inputs(batch(40))
    network, seen = Tiny(scalars=SCALARS), []
    slope = objective.slope
    objective.slope = lambda *given: seen.append(given[1:]) or slope(*given)
    step: list[Step] = []
    collected = objective.collected
    objective.collected = lambda name, one: step.append(one) or collected(name, one)
    loss = objective(network, given).parts["meanflow"]
    ((query, direction),) = seen

    def u(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        x_hat = network(
            {"image": z}, t, given.condition, interval=t - r, scalars=query.scalars
        ).state["image"]
        return (z - x_hat) / column(t.clamp(min=0.3))

    t, length = query.t, query.interval
    ends, rates = (query.noisy["image"], t, t - length), (direction["image"], t * 0 + 1, t * 0)
    now, rate = torch.func.jvp(u, ends, rates)
    error = (now + column(length) * rate - step[0].target["image"]).square().sum((1, 2, 3))
    assert (t < 0.3).any() and (t > 0.3).any()
    assert torch.allclose(loss, error / (error + 0.01), rtol=1e-5)
    # What is not guided learns the clamped velocity of the path.
    low, high = query.scalars["guidance_low"], query.scalars["guidance_high"]
    outside = (t < low) | (t > high)
    clamped = (query.noisy["image"] - fields.latents(given.batch)) / column(t.clamp(min=0.3))
    assert outside.any()
    assert torch.allclose(step[0].target["image"][outside], clamped[outside], atol=1e-5)


def test_one_step_returns_the_predicted_data() -> None:
    image = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    network = Told(lambda asked: {"image": image.expand_as(asked["state"]["image"])})
    sampling = Sampling(steps=1, shift_base=None)
    sampler = Sampler(network, pixel(), Labels(4), Pixels(4, 8), {}, sampling, torch.device("cpu"))
    found = sampler.latents(Request(torch.arange(2), labels=torch.arange(2)))["image"]
    assert torch.allclose(found, image.expand(2, -1, -1, -1), atol=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 0.1, 1.0])
def test_law_of_the_times(uniform: float) -> None:
    objective = pixel(uniform=uniform, instantaneous=1.0)
    t = objective.intervals(torch.arange(30_000)).t.double().numpy()
    law = stats.norm(0.69, 0.8)

    def mixed(x):
        return uniform * x + (1 - uniform) * law.cdf(torch.logit(torch.from_numpy(x)).numpy())

    assert stats.kstest(t, mixed).pvalue > 0.01


class Distance(Term):
    """What a perceptual term does: compares the predicted data with the data."""

    needs_data = True
    weight = 0.4

    def loss(self, step: Step) -> Tensor:
        assert step.data is not None
        return (step.data["image"] - step.clean["image"]).abs().mean((1, 2, 3))


class Plain(Term):
    """A term that looks at no data keeps its loss."""

    def loss(self, step: Step) -> Tensor:
        return step.t


def test_perceptual_terms_are_weighed_by_their_size() -> None:
    given = inputs(batch(20))
    network = Told(lambda asked: {"image": asked["state"]["image"] / 2})
    objective = pixel({"distance": Distance(), "plain": Plain()}, epsilon=0.1)
    losses, t = objective(network, given), objective.intervals(given.batch.keys).t
    latents, noise = fields.latents(given.batch), fields.noise(given.batch)
    x_hat = (column(1 - t) * latents + column(t) * noise) / 2
    size = (x_hat - latents).abs().mean((1, 2, 3))
    assert torch.allclose(losses.parts["distance"], size / (size + 0.1), rtol=1e-5)
    assert torch.allclose(losses.parts["plain"], t)
    assert losses.weights == {"meanflow": 1.0, "distance": 0.4, "plain": 1.0}


def test_means_over_the_compared_samples_are_refused() -> None:
    @chz.chz
    class Fields(GateFields):
        term: ClassVar[str] = "near"

    class Near(GatedTerm):
        def distance(self, found: Tensor, images: Tensor, rows: Tensor) -> Tensor:
            return found.flatten(1).mean(1)

    near = Near(Fields(weight=1.0, normalise_by="gated"), FACTS)
    with pytest.raises(ConfigError, match="terms.near.normalise_by=gated"):
        pixel({"near": near})
    assert pixel({"near": Near(Fields(weight=1.0), FACTS)}).predicts_data


def test_velocity_is_wide_and_floored() -> None:
    noisy: State = {"image": torch.randn(2, 3, 4, 4), "cls": torch.randn(2, 5)}
    guess = {name: torch.zeros_like(x).bfloat16() for name, x in noisy.items()}
    found = pixel().velocity(guess, noisy, torch.tensor([0.01, 0.5]))
    for name, x in noisy.items():
        assert found[name].dtype == torch.float32
        assert torch.allclose(
            found[name], x / torch.tensor([0.05, 0.5]).view(2, *[1] * (x.ndim - 1))
        )


@pytest.mark.parametrize(
    "given, named",
    [({"uniform": 1.1}, "uniform"), ({"time_floor": 0.0}, "time_floor")]
    + [({"guidance_most": 0.5}, "guidance_most"), ({"time_std": 0.0}, "time_std")],
)
def test_refusals(given: dict[str, object], named: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=named):
        PixelMeanFlowConfig(**given)
