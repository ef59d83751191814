"""MeanFlow: its times, its guided target, what it costs, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import mean_fields as fields
import pytest
import torch
from mean_fields import FACTS, Tiny, Told, batch, inputs, meanflow, of_path
from scipy import stats
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives.base import Step, Term
from nanogen.objectives.meanflow import MeanFlowConfig
from nanogen.sampling.guidance import Guidance
from nanogen.types import (
    LatentSpec,
    Losses,
    State,
)


class TestCost:
    """The network runs no more than it must."""

    def rows(self, kept: Tensor | None = None, **given: object) -> list[int]:
        network = Tiny()
        meanflow(**given)(network, inputs(batch(40), kept))
        return network.rows

    def test_only_moving_samples_have_a_derivative(self) -> None:
        moving = int((meanflow().intervals(torch.arange(40)).length > 0).sum())
        assert 0 < moving < 20
        assert self.rows() == [40, moving]

    def test_without_moving_samples_there_is_none(self) -> None:
        assert self.rows(instantaneous=1.0) == [40]

    @pytest.mark.parametrize(
        "omega, kappa, branches", [(1.0, 0.0, 0), (2.0, 0.0, 1), (0.5, 0.5, 1), (1.0, 0.5, 2)]
    )
    def test_branches_of_a_guided_target(self, omega: float, kappa: float, branches: int) -> None:
        kept = torch.arange(40) % 10 != 0
        rows = self.rows(kept, instantaneous=1.0, omega=omega, kappa=kappa)
        assert rows == [40, *[36] * branches]
        config = MeanFlowConfig(instantaneous=0.5, omega=omega, kappa=kappa)
        assert config.passes == 3 + 2 * 0.5 + branches

    def test_interval_of_guidance(self) -> None:
        t = meanflow(instantaneous=1.0).intervals(torch.arange(40)).t
        inside = int(((t >= 0.3) & (t <= 0.6)).sum())
        rows = self.rows(instantaneous=1.0, kappa=0.5, guidance_low=0.3, guidance_high=0.6)
        assert 0 < inside < 40 and rows == [40, inside, inside]


class TestGuidedTarget:
    def test_fixed_point(self) -> None:
        """With omega 1 and kappa 1/2 it is guidance of scale 2: a network that has it is right."""
        given = batch(40)
        null = rng.normal(3, "null", given.keys, (3, 4, 4))
        kept = torch.arange(40) % 4 != 0

        def guided(asked: dict) -> State:
            # The network runs on those that are kept, or on all.
            rows = torch.arange(40) if len(asked["t"]) == 40 else kept.nonzero()[:, 0]
            own = null[rows] + 2 * (of_path(given)[rows] - null[rows])
            unknown = (asked["condition"].ids == fields.CLASSES)[:, None, None, None]
            return {"image": torch.where(unknown, null[rows], own)}

        objective = meanflow(instantaneous=1.0, kappa=0.5, power=0.0)
        assert objective.config.scale == 2
        loss = objective(Told(guided), inputs(given, kept)).parts["meanflow"]
        assert loss[kept].max() < 1e-9
        # Without a condition the target is that of the path.
        expected = (of_path(given) - null).square().sum((1, 2, 3))
        assert torch.allclose(loss[~kept], expected[~kept], rtol=1e-5)

    def test_mixture(self) -> None:
        """omega v + (1 - omega - kappa) u_null + kappa u_condition inside the interval, v outside;
        du/dt is taken along it.
        """
        given, network = batch(30), Tiny()
        config = {"omega": 1.5, "kappa": 0.25, "guidance_low": 0.3, "guidance_high": 0.7}
        objective = meanflow(instantaneous=0.5, **config)
        seen: list[Step] = []
        directions = []
        slope = objective.slope
        objective.collected = lambda name, step: seen.append(step) or Losses({}, {})
        objective.slope = lambda *given: directions.append(given[2]) or slope(*given)
        asked = inputs(given)
        objective(network, asked)
        (step,), still = seen, torch.zeros(30)
        with torch.no_grad():
            own = network(step.noisy, step.t, asked.condition, interval=still).state["image"]
            null = network(step.noisy, step.t, asked.null, interval=still).state["image"]
        mixed = 1.5 * of_path(given) - 0.75 * null + 0.25 * own
        inside = ((step.t >= 0.3) & (step.t <= 0.7))[:, None, None, None]
        expected = torch.where(inside, mixed, of_path(given))
        assert inside.any() and not inside.all()
        assert torch.allclose(step.target["image"], expected, atol=1e-6)
        assert directions[0] is step.target

    def test_learned_guidance_leaves_none_to_the_sampler(self) -> None:
        objective = meanflow(kappa=0.5)
        assert objective.guides_itself and objective.scalars_of(Guidance()) == {}
        with pytest.raises(ConfigError, match="scale=2.5.*learned guidance of scale 2"):
            objective.scalars_of(Guidance(scale=2.5))
        plain = meanflow()
        assert not plain.guides_itself and plain.scalars_of(Guidance(scale=2.5)) == {}


class TestIntervals:
    keys = torch.arange(4000)

    def test_shares(self) -> None:
        by_sample = meanflow().intervals(self.keys).length > 0
        assert by_sample.float().mean().item() == pytest.approx(0.25, abs=0.03)
        # 4000 steps of eight samples.
        steps = (meanflow(mixing="step").intervals(torch.arange(32_000)).length > 0).view(-1, 8)
        assert torch.equal(steps.all(1), steps.any(1))
        assert steps[:, 0].float().mean().item() == pytest.approx(0.25, abs=0.03)
        # Steps are independent of each other.
        both = (steps[1:, 0] & steps[:-1, 0]).float().mean().item()
        assert both == pytest.approx(0.25**2, abs=0.02)

    @pytest.mark.parametrize("mixing", ["sample", "step"])
    def test_any_batch_gives_a_sample_its_own(self, mixing: str) -> None:
        objective = meanflow(mixing=mixing)
        whole, some = objective.intervals(self.keys), torch.tensor([5, 17, 18, 3999])
        part = objective.intervals(some)
        assert torch.equal(part.t, whole.t[some]) and torch.equal(part.length, whole.length[some])

    def test_another_seed_decides_anew(self) -> None:
        other = MeanFlowConfig().build(dataclasses.replace(FACTS, seed=6), {})
        first, second = (o.intervals(self.keys).length > 0 for o in (meanflow(), other))
        assert 0.3 < (first != second).float().mean() < 0.45

    @pytest.mark.parametrize("instants", ["single", "later"])
    def test_law(self, instants: str) -> None:
        """Of t and r from two draws, and of t where there is no r: one draw, or the later."""
        found = meanflow(instants=instants, instantaneous=0.5).intervals(torch.arange(20_000))
        one, moving = stats.norm(-0.4, 1.0), found.length > 0
        assert (found.length >= 0).all() and (found.length <= found.t).all()

        def pvalue(times: Tensor, law) -> float:
            return stats.kstest(torch.logit(times.double()).numpy(), law).pvalue

        def later(x):
            return one.cdf(x) ** 2

        assert pvalue(found.t[moving], later) > 0.01
        earlier = (found.t - found.length)[moving]
        assert pvalue(earlier, lambda x: 1 - (1 - one.cdf(x)) ** 2) > 0.01
        alone = one.cdf if instants == "single" else later
        assert pvalue(found.t[~moving], alone) > 0.01

    def test_shift(self) -> None:
        wide = dataclasses.replace(FACTS, latent=LatentSpec(16, 32, 32, 2))
        assert MeanFlowConfig().build(wide, {}).mean == pytest.approx(-0.4 + 0.6931, abs=1e-4)


def test_clamped_target() -> None:
    """The released code's: too small by t / floor below the floor."""
    given, seen = batch(300), []
    objective = meanflow(target="clamped", time_floor=0.4, instantaneous=1.0)
    objective.collected = lambda name, step: seen.append(step) or Losses({}, {})
    objective(Told(fields.zeros), inputs(given))
    factor = (seen[0].t / seen[0].t.clamp(min=0.4))[:, None, None, None]
    assert (factor < 0.9).any() and (factor == 1).any()
    assert torch.allclose(seen[0].target["image"], factor * of_path(given), atol=1e-5)


@pytest.mark.parametrize(
    "given, named",
    [
        ({"time_std": 0.0}, "time_std"),
        ({"time_mean": -math.inf}, "time_mean=-inf"),
        ({"shift_base": 0}, "shift_base"),
        ({"instantaneous": 1.5}, "instantaneous"),
        ({"instants": "both"}, "instants"),
        ({"power": -1.0}, "power"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 0.1, "power": 0.0}, "no effect"),
        ({"jvp_precision": "fp64"}, "jvp_precision"),
        ({"mixing": "batch"}, "mixing"),
        ({"mixing": "step", "instantaneous": 1.0}, "no effect"),
        ({"target": "short"}, "target"),
        ({"time_floor": 0.1}, "no effect"),
        ({"target": "clamped", "time_floor": 1.0}, "time_floor"),
        ({"omega": 0.0}, "omega"),
        ({"kappa": 1.0}, "kappa"),
        ({"kappa": 0.5, "guidance_low": 0.7, "guidance_high": 0.7}, "guidance_low"),
        ({"guidance_high": 0.7}, "no effect"),
    ],
)
def test_refusals(given: dict[str, object], named: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=named):
        MeanFlowConfig(**given)


def test_terms_that_need_data_are_refused() -> None:
    class Perceptual(Term):
        needs_data = True

    with pytest.raises(ConfigError, match="terms.lpips.*pixel-meanflow"):
        meanflow({"lpips": Perceptual()})
