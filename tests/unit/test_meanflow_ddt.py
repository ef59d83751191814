"""MeanFlow with a real network: half precision, further leaves and heads, captions, compilation."""

from __future__ import annotations

import dataclasses

import mean_fields as fields
import pytest
import torch
from mean_fields import FACTS, as_it_is, batch, ddt, doubles, inputs, meanflow, of_path, query
from torch import Tensor

from nanogen import rng
from nanogen.conditioners.labels import Labels
from nanogen.model import Model
from nanogen.objectives import mean_velocity, path
from nanogen.objectives.base import Term
from nanogen.objectives.internal_guidance import InternalConfig
from nanogen.objectives.mean_velocity import derivative
from nanogen.objectives.meanflow import MeanFlow
from nanogen.types import (
    Batch,
    ConditionSpec,
    LabelCondition,
    State,
    TextCondition,
    Wiring,
)


def model(objective: MeanFlow) -> Model:
    return Model(ddt(objective.wiring), objective, Labels(4), dropout=0.2)


def losses(of: Model, given: Batch) -> dict[str, Tensor]:
    assert given.labels is not None
    return of(given, fields.latents(given), LabelCondition(given.labels))[0]


class TestWithDdt:
    @pytest.mark.parametrize("precision", ["fp32", "autocast"])
    @pytest.mark.parametrize("instantaneous", [0.0, 1.0])
    def test_every_weight_learns_in_half_precision(
        self, instantaneous: float, precision: str
    ) -> None:
        """Passes without a gradient share an autocast region with the one that has it."""
        objective = meanflow(kappa=0.5, instantaneous=instantaneous, jvp_precision=precision)
        made = model(objective)
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(made, batch(16))["meanflow"]
        loss.mean().backward()
        assert loss.dtype == torch.float32
        silent = [n for n, p in made.trained().items() if p.grad is None or not p.grad.any()]
        assert not silent

    def test_precision_of_the_derivative(self) -> None:
        """In float32 it is the same within autocast; in bfloat16 it is a per cent off."""
        network, z = ddt(Wiring(interval=True)), doubles(8, 3, 4, 4).float()
        asked = query(z, torch.full((8,), 0.8), torch.full((8,), 0.5))
        direction = {"image": doubles(8, 3, 4, 4, seed=1).float()}
        plain = derivative(network, asked, direction, as_it_is)["image"]
        with torch.autocast("cpu", torch.bfloat16):
            full = derivative(network, asked, direction, as_it_is, "fp32")["image"]
            half = derivative(network, asked, direction, as_it_is, "autocast")["image"].float()
        assert torch.equal(full, plain)
        assert 1e-4 < (half - plain).norm() / plain.norm() < 0.05

    def test_leaves_are_learned_along(self) -> None:
        """REG: V and its weight are those of each leaf, the derivative that of the joint state."""

        class Token(Term):
            leaves = {"cls": 6}
            weight = 0.03

            def clean_leaves(self, batch: Batch) -> State:
                return {"cls": rng.normal(1, "cls", batch.keys, (6,))}

        given = batch(24)
        objective = meanflow({"reg": Token()}, instantaneous=0.3)
        made = model(objective)
        made.dropout = 0.0
        parts, weights = made(given, fields.latents(given), LabelCondition(given.labels))
        assert weights == {"meanflow": 1.0, "cls": 0.03, "meanflow_error": 0.0}

        where = objective.intervals(given.keys)
        t, r = where.t, where.t - where.length
        noise = rng.normal(5, "noise/cls", given.keys, (6,))
        cls = rng.normal(1, "cls", given.keys, (6,))
        v = of_path(given), noise - cls
        z = (
            path.mix(fields.latents(given), fields.noise(given), t),
            path.mix(cls, noise, t),
        )

        def u(image: Tensor, cls: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            state = {"image": image, "cls": cls}
            found = made.backbone(state, t, LabelCondition(given.labels), interval=t - r).state
            return found["image"], found["cls"]

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
            now, slopes = torch.func.jvp(u, (*z, t), (*v, torch.ones_like(t)))
        for leaf, u_leaf, slope, goal in zip(("meanflow", "cls"), now, slopes, v, strict=True):
            error = (u_leaf + path.along(t - r, u_leaf) * slope - goal).square().flatten(1).sum(1)
            assert torch.allclose(parts[leaf], error / (error + 0.01), rtol=1e-5)
            if leaf == "meanflow":
                # What is logged: the mean square over the 48 elements of the image.
                assert torch.allclose(parts["meanflow_error"], error / 48, rtol=1e-5)
        sum(part.mean() for part in parts.values()).backward()
        assert all(p.grad.any() for p in made.trained().values())

    def test_internal_guidance_learns_the_same_target(self) -> None:
        term = InternalConfig(block=1).build(FACTS)
        objective = meanflow({"internal": term}, instantaneous=0.3, kappa=0.5)
        made, seen = model(objective), []
        collected = objective.collected
        objective.collected = lambda name, step: seen.append(step) or collected(name, step)
        parts = losses(made, batch(12))
        (step,) = seen
        v = step.velocity["image"] - step.prediction.state["image"]  # (t - r) du/dt
        error = (step.prediction.heads["base"] + v - step.target["image"]).square().sum((1, 2, 3))
        assert torch.allclose(parts["internal"], error / (error + 0.01), rtol=1e-4)
        assert torch.equal(step.times(batch(12).keys), step.t)

    def test_captions_of_any_length(self) -> None:
        """A sample's loss does not depend on the captions beside it."""
        objective = meanflow(kappa=0.5, instantaneous=0.3)
        network = ddt(objective.wiring, ConditionSpec(width=8, tokens=6))
        given, mask = (
            batch(8),
            torch.arange(6)[None] < torch.tensor([1, 6, 0, 3, 2, 5, 4, 1])[:, None],
        )
        condition = TextCondition(torch.randn(8, 6, 8) * mask[..., None], mask)
        null = TextCondition(torch.zeros(8, 0, 8), torch.zeros(8, 0, dtype=torch.bool))
        asked = dataclasses.replace(inputs(given), condition=condition, null=null)
        whole = objective(network, asked).parts["meanflow"]
        for row in range(8):
            rows = torch.tensor([row])
            alone = dataclasses.replace(
                inputs(batch(1, first=row)), condition=condition.at(rows), null=null.at(rows)
            )
            found = objective(network, alone).parts["meanflow"]
            assert torch.allclose(found[0], whole[row], rtol=1e-5)

    @pytest.mark.slow
    def test_compiled_and_eager_runs_take_the_same_steps(self, monkeypatch) -> None:
        """What is learned at a step is decided outside of anything that is compiled."""
        moved: list[int] = []
        real = mean_velocity.derivative

        def counted(network, asked, *more):
            moved.append(len(asked.t))
            return real(network, asked, *more)

        monkeypatch.setattr(mean_velocity, "derivative", counted)

        def run(compiled: bool) -> tuple[list[int], Tensor]:
            made, sequence, values = model(meanflow(mixing="step", kappa=0.5)), [], []
            if compiled:
                made.backbone.compile(backend="eager")
            for step in range(24):
                moved.clear()
                loss = losses(made, batch(8, first=8 * step))["meanflow"]
                loss.mean().backward()
                sequence.append(sum(moved))
                values.append(loss.detach())
            gradients = [p.grad.flatten() for p in made.trained().values()]
            return sequence, torch.cat([*values, *gradients])

        (eager, plain), (same, found) = run(False), run(True)
        assert eager == same and set(eager) == {0, 8}
        assert torch.allclose(found, plain, rtol=1e-6, atol=1e-6)
