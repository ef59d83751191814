"""Improved MeanFlow: what the network is told, what it learns, and what samplers may ask of it."""

from __future__ import annotations

import mean_fields as fields
import pytest
import torch
from mean_fields import FACTS, Tiny, Told, batch, ddt, inputs, of_path
from scipy import stats
from torch import Tensor

from nanogen import rng
from nanogen.conditioners.labels import Labels
from nanogen.errors import ConfigError
from nanogen.model import Model
from nanogen.objectives import path
from nanogen.objectives.base import Step, Term
from nanogen.objectives.improved_meanflow import (
    SCALARS,
    ImprovedMeanFlow,
    ImprovedMeanFlowConfig,
)
from nanogen.sampling.generate import Sampler
from nanogen.sampling.guidance import Guidance
from nanogen.sampling.settings import Sampling
from nanogen.tokenizers.pixels import Pixels
from nanogen.types import Batch, LabelCondition, Losses, Request, State


def improved(terms: dict[str, Term] | None = None, **given: object) -> ImprovedMeanFlow:
    return ImprovedMeanFlowConfig(**{"shift_base": None} | given).build(FACTS, terms or {})


def network(objective: ImprovedMeanFlow) -> Tiny:
    return Tiny(scalars=SCALARS, heads=tuple(objective.own_heads))


def watched(objective: ImprovedMeanFlow) -> tuple[list[Step], list[State]]:
    """The steps that its terms see, and the directions of its derivatives."""
    steps: list[Step] = []
    directions: list[State] = []
    collected, slope = objective.collected, objective.slope

    def see(name: str, step: Step) -> Losses:
        steps.append(step)
        return collected(name, step)

    def follow(net, query, direction: State) -> State:
        directions.append(direction)
        return slope(net, query, direction)

    objective.collected, objective.slope = see, follow
    return steps, directions


@pytest.mark.parametrize("tangent", ["boundary", "head"])
class TestTarget:
    kept = torch.arange(60) % 5 != 0

    def asked(self, net: Tiny, step: Step, scale: Tensor, condition: LabelCondition) -> Tensor:
        """The instantaneous velocity, guided at all times."""
        still, always = torch.zeros(60), torch.ones(60)
        told = dict(zip(SCALARS, (scale, still, always), strict=True))
        with torch.no_grad():
            found = net(step.noisy, step.t, condition, interval=still, scalars=told)
        return found.heads["velocity"] if net.heads else found.state["image"]

    def test_by_hand(self, tangent: str) -> None:
        """e - x + (1 - 1 / s)(v_c - v_u) inside the interval, e - x outside or without condition;
        du/dt goes along v_c.
        """
        objective, given = improved(tangent=tangent), inputs(batch(60), self.kept)
        steps, directions = watched(objective)
        net = network(objective)
        losses = objective(net, given)
        (step,), (direction,) = steps, directions
        where = objective.intervals(given.batch.keys)
        told = objective.told(given.batch.keys, where)
        inside = (step.t >= told["guidance_low"]) & (step.t <= told["guidance_high"]) & self.kept
        scale = torch.where(inside, told["guidance"], 1.0)
        own = self.asked(net, step, scale, given.condition)
        null = self.asked(net, step, torch.ones(60), given.null)
        share = (1 - 1 / scale)[:, None, None, None]
        target = of_path(given.batch) + share * (own - null)
        assert torch.allclose(step.target["image"], target, atol=1e-5)
        moving = where.length > 0
        assert 0 < int((moving & ~inside).sum()) and 0 < int((moving & inside).sum())
        assert torch.allclose(direction["image"][moving], own[moving], atol=1e-6)

        def u(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
            found = net({"image": z}, t, given.condition, interval=t - r, scalars=told)
            return found.state["image"]

        ends = step.noisy["image"], step.t, step.t - where.length
        rates = own, torch.ones(60), torch.zeros(60)
        now, slope = torch.func.jvp(u, ends, rates)
        error = (now + path.along(where.length, now) * slope - target).square().sum((1, 2, 3))
        assert torch.allclose(losses.parts["meanflow"], error / (error + 0.01), rtol=1e-5)

    def test_fixed_point_is_guidance(self, tangent: str) -> None:
        """A network with v_c = v_u + s (v - v_u), where v is the velocity of the path, is right."""
        objective, given = improved(tangent=tangent, instantaneous=1.0, power=0.0), batch(60)
        null = rng.normal(3, "null", given.keys, (3, 4, 4))
        rows = {60: torch.arange(60), int(self.kept.sum()): self.kept.nonzero()[:, 0]}

        def guided(asked: dict) -> State:
            at = rows[len(asked["t"])]
            scale = asked["scalars"]["guidance"][:, None, None, None]
            own = null[at] + scale * (of_path(given)[at] - null[at])
            unknown = (asked["condition"].ids == fields.CLASSES)[:, None, None, None]
            return {"image": torch.where(unknown, null[at], own)}

        parts = objective(Told(guided, tuple(objective.own_heads)), inputs(given, self.kept)).parts
        assert set(parts) == {"meanflow"} | ({"velocity"} if tangent == "head" else set())
        for part in parts.values():
            assert part[self.kept].max() < 1e-6

    def test_network_runs_on_the_samples_that_need_it(self, tangent: str) -> None:
        objective, given = improved(tangent=tangent), inputs(batch(60), self.kept)
        net = network(objective)
        objective(net, given)
        where = objective.intervals(given.batch.keys)
        told = objective.told(given.batch.keys, where)
        moving = where.length > 0
        guided = (where.t >= told["guidance_low"]) & (where.t <= told["guidance_high"]) & self.kept
        expected = [60, int((moving | guided).sum()), int(guided.sum()), int(moving.sum())]
        assert net.rows == expected and expected[1] < 60

    def test_nothing_but_dropped_samples_that_do_not_move(self, tangent: str) -> None:
        objective = improved(tangent=tangent, instantaneous=1.0)
        net = network(objective)
        losses = objective(net, inputs(batch(8), torch.zeros(8, dtype=torch.bool)))
        assert net.rows == [8] and losses.parts["meanflow"].isfinite().all()


def test_head_has_a_loss_of_its_own() -> None:
    """Adaptively weighted like the other; both are added."""
    objective = improved(tangent="head", head_block=1)
    assert objective.own_heads == {"velocity": 1} and objective.wiring.heads == {"velocity": 1}
    steps, _ = watched(objective)
    net = network(objective)
    losses = objective(net, inputs(batch(20)))
    error = steps[0].prediction.heads["velocity"] - steps[0].target["image"]
    total = error.square().sum((1, 2, 3))
    assert torch.allclose(losses.parts["velocity"], total / (total + 0.01), rtol=1e-5)
    assert losses.weights == {"meanflow": 1.0, "velocity": 1.0}


class TestTold:
    keys = torch.arange(20_000)

    def test_laws(self) -> None:
        objective = improved()
        where = objective.intervals(self.keys)
        told, moving = objective.told(self.keys, where), where.length > 0
        logs = told["guidance"].double().log().numpy()
        assert stats.kstest(logs, stats.uniform(0, torch.tensor(8.0).log()).cdf).pvalue > 0.01
        low, high = told["guidance_low"], told["guidance_high"]
        assert stats.kstest(low[moving].numpy(), stats.uniform(0, 0.5).cdf).pvalue > 0.01
        assert stats.kstest(high[moving].numpy(), stats.uniform(0.5, 0.5).cdf).pvalue > 0.01
        # Without an interval of time there is none of guidance.
        assert not low[~moving].any() and (high[~moving] == 1).all()
        assert moving.float().mean().item() == pytest.approx(0.5, abs=0.02)

    def test_power(self) -> None:
        """Density s^-2 on [1, 5]."""
        objective = improved(guidance_power=2.0, guidance_most=5.0)
        told = objective.told(self.keys, objective.intervals(self.keys))
        scales = told["guidance"].double().numpy()
        assert stats.kstest(scales, lambda s: (1 - 1 / s) / (1 - 1 / 5)).pvalue > 0.01

    def test_any_batch_gives_a_sample_its_own(self) -> None:
        objective, some = improved(), torch.tensor([4, 9, 777])
        whole = objective.told(self.keys, objective.intervals(self.keys))
        part = objective.told(some, objective.intervals(some))
        assert all(torch.equal(part[name], whole[name][some]) for name in SCALARS)


class TestSampling:
    def test_scale_and_interval_are_told(self) -> None:
        """In one step, without a second branch."""
        net = Told(fields.zeros)
        sampler = Sampler(
            net,
            improved(),
            Labels(fields.CLASSES),
            Pixels(4, 8),
            {},
            Sampling(steps=2, shift_base=None, guidance=Guidance(scale=2.5, low=0.1, high=0.9)),
            torch.device("cpu"),
        )
        sampler.draw(Request(torch.arange(3), labels=torch.arange(3)))
        assert [call["interval"].tolist() for call in net.calls] == [[0.5] * 3] * 2
        for call in net.calls:
            found = [call["scalars"][name].tolist() for name in SCALARS]
            assert found == [pytest.approx([value] * 3) for value in (2.5, 0.1, 0.9)]

    @pytest.mark.parametrize(
        "guidance, named",
        [
            (Guidance(scale=0.5), "from 1 to objective.guidance_most=8"),
            (Guidance(scale=8.5), "scale=8.5"),
            (Guidance(scale=2, low=0.6), "contain t = 0.5"),
            (Guidance(scale=2, high=0.4), "contain t = 0.5"),
        ],
    )
    def test_what_was_not_learned_is_refused(self, guidance: Guidance, named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            improved().scalars_of(guidance)


@pytest.mark.parametrize("tangent", ["boundary", "head"])
@pytest.mark.parametrize("instantaneous", [0.0, 1.0])
def test_every_weight_of_a_ddt_learns(tangent: str, instantaneous: float) -> None:
    """In half precision, with a further leaf, whose velocity has no head."""

    class Token(Term):
        leaves = {"cls": 6}

        def clean_leaves(self, batch: Batch) -> State:
            return {"cls": rng.normal(1, "cls", batch.keys, (6,))}

    objective = improved({"reg": Token()}, tangent=tangent, instantaneous=instantaneous)
    made = ddt(objective.wiring)
    model, given = Model(made, objective, Labels(4), dropout=0.2), batch(24)
    with torch.autocast("cpu", torch.bfloat16):
        parts, _ = model(given, fields.latents(given), LabelCondition(given.labels))
    sum(part.mean() for part in parts.values()).backward()
    assert {"meanflow", "cls"} <= set(parts)
    assert not [n for n, p in model.trained().items() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(
    "given, named",
    [
        ({"tangent": "both"}, "tangent"),
        ({"head_block": 1}, "no effect"),
        ({"guidance_most": 1.0}, "guidance_most"),
        ({"guidance_power": -1.0}, "guidance_power"),
        ({"instantaneous": -0.1}, "instantaneous"),
    ],
)
def test_refusals(given: dict[str, object], named: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=named):
        ImprovedMeanFlowConfig(**given)


def test_head_at_a_block_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="objective.head_block=3"):
        improved(tangent="head", head_block=3)


def test_cost() -> None:
    assert ImprovedMeanFlowConfig().passes == 6 and ImprovedMeanFlowConfig().learns_guidance
