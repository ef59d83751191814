"""Does MeanFlow learn to draw in one step? Classes of one fixed latent each, learned by heart.

The bounds are three times what the published implementation reaches on the same problem. Times are
drawn by the law that it takes where no other is named, logit-normal(0, 1). At MeanFlow's own mean
of -0.4 the end t = 1, where one step starts, is hardly seen within so few steps: one step then
comes to 0.09 to 0.34, two steps to 0.014 to 0.10. A network that has learned instantaneous
velocities alone does not come near.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from nanogen import rng
from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.model import Model
from nanogen.objectives.base import Facts
from nanogen.objectives.improved_meanflow import ImprovedMeanFlowConfig
from nanogen.objectives.mean_velocity import MeanVelocityConfig
from nanogen.objectives.meanflow import MeanFlowConfig
from nanogen.objectives.pixel_meanflow import PixelMeanFlowConfig
from nanogen.sampling.guidance import Guidance
from nanogen.sampling.schedule import times
from nanogen.sampling.solvers import euler
from nanogen.train.adamw import AdamWConfig
from nanogen.train.schedule import Schedule
from nanogen.types import Batch, LabelCondition, LatentSpec, State

CLASSES, BATCH, STEPS = 10, 40, 800
LATENT = LatentSpec(4, 8, 8, 2)
LABELS = torch.arange(CLASSES)
TRUTH = rng.normal(1, "truth", LABELS, (4, 8, 8))
ONE, TWO = 3 * 0.056, 3 * 0.0037
"""bounds of the mean squared error in one and in two steps"""


@functools.cache
def trained(config: MeanVelocityConfig, dropout: float = 0.0) -> Model:
    torch.manual_seed(0)
    facts = Facts(0, LATENT, 8, 64, lambda latents: latents, blocks=3, batch=BATCH)
    backbone = DdtConfig(
        depth=3, width=64, heads=2, decoder_depth=1, decoder_width=96, decoder_heads=2
    )
    objective, labels = config.build(facts, {}), Labels(CLASSES)
    made = backbone.build(LATENT, labels.spec, objective.wiring)
    model = Model(made, objective, labels, dropout)
    images = STEPS * BATCH
    schedule = Schedule(warmup=50 * BATCH, decay_start=int(0.6 * images), final=0.01)
    optimiser = AdamWConfig(lr=2e-3).build(model.trained())
    (group,) = optimiser.param_groups
    for seen in range(0, images, BATCH):
        keys = torch.arange(seen, seen + BATCH)
        labels = keys % CLASSES
        given = Batch(None, keys, labels=labels)
        parts, weights = model(given, TRUTH[labels], LabelCondition(labels))
        sum(weights[name] * part.mean() for name, part in parts.items()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        group["lr"] = 2e-3 * schedule.factor(seen, BATCH, images)
        optimiser.step()
        optimiser.zero_grad()
    return model


@torch.no_grad()
def error(model: Model, steps: int) -> float:
    """Mean squared error of one sample of each class."""
    told = model.objective.scalars_of(Guidance())

    def rows(value: float) -> Tensor:
        return torch.full((CLASSES,), value)

    def field(state: State, t: float, to: float) -> State:
        found = model.backbone(
            state,
            rows(t),
            LabelCondition(LABELS),
            interval=rows(t - to),
            scalars={name: rows(value) for name, value in told.items()} or None,
        )
        return model.objective.velocity(found.state, state, rows(t))

    noise = {"image": rng.normal(2, "start", LABELS, (4, 8, 8))}
    return (euler(field, noise, times(steps))["image"] - TRUTH).square().mean().item()


def meanflow(**fields: object) -> MeanFlowConfig:
    return MeanFlowConfig(**{"shift_base": None, "time_mean": 0.0} | fields)


def improved(**fields: object) -> ImprovedMeanFlowConfig:
    return ImprovedMeanFlowConfig(**{"shift_base": None, "time_mean": 0.0} | fields)


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["sample", "step"])
def test_one_and_two_steps(mixing: str) -> None:
    model = trained(meanflow(mixing=mixing))
    assert error(model, 1) < ONE and error(model, 2) < TWO


@pytest.mark.slow
def test_velocities_alone_do_not_suffice() -> None:
    """What a run comes to whose every step has r = t."""
    assert error(trained(meanflow(instantaneous=1.0)), 1) > ONE


@pytest.mark.slow
def test_pixel_meanflow() -> None:
    """With its own times."""
    model = trained(PixelMeanFlowConfig(), dropout=0.1)
    assert error(model, 1) < ONE and error(model, 2) < TWO


@pytest.mark.slow
@pytest.mark.parametrize("tangent", ["boundary", "head"])
def test_improved_meanflow(tangent: str) -> None:
    """In one step, without guidance. It learns every scale in the steps in which MeanFlow learns
    none, and is worse in two steps than its bound: 0.036 and, with the head, 0.016.
    """
    assert error(trained(improved(tangent=tangent), dropout=0.1), 1) < ONE
