"""REG diffuses the class token of an encoder along with the image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from term_steps import batch, encoder, facts, inputs, silhouettes
from torch import Tensor, nn

from nanogen import rng
from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.encoders.teachers import Teachers
from nanogen.errors import ConfigError
from nanogen.model import Model, parameter_count
from nanogen.objectives import path
from nanogen.objectives.base import Facts
from nanogen.objectives.flow import FlowConfig
from nanogen.objectives.reg import RegConfig
from nanogen.sampling.schedule import times
from nanogen.sampling.solvers import euler
from nanogen.train.adamw import AdamWConfig
from nanogen.train.schedule import Schedule
from nanogen.types import (
    Batch,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    Prediction,
    State,
)


def test_the_clean_leaf_is_the_class_token() -> None:
    term = RegConfig(encoder="animals-vit").build(facts())
    clean = term.clean_leaves(batch())["cls"]
    assert clean.shape == (6, 64) and not clean.requires_grad and clean.dtype == torch.float32
    assert torch.equal(clean, encoder()(silhouettes()).cls)
    # Of the affine-free norm: mean 0, variance 1.
    assert clean.mean(1).abs().max() < 1e-5
    assert torch.allclose(clean.var(1, correction=0), torch.ones(6), atol=1e-3)
    assert term.loss is not None and term.leaves == {"cls": 64} and term.needs_images


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_the_loss_by_hand(prediction: str) -> None:
    """0.03 times the mean square of the leaf's velocity, at the time of the image, beside its."""
    known, seen = facts(), {}
    objective = FlowConfig(prediction=prediction).build(
        known, {"reg": RegConfig(encoder="animals-vit").build(known)}
    )

    def network(state: State, t: Tensor, *_: object, **__: object) -> Prediction:
        seen.update(state, t=t)
        return Prediction(path.leafwise(torch.zeros_like, state))

    losses = objective(network, inputs(batch()))
    assert losses.weights == {"flow": 1.0, "cls": 0.03}
    cls, t = encoder()(silhouettes()).cls, seen["t"][:, None]
    noise = rng.normal(known.seed, "noise/cls", batch().keys, (64,))
    assert torch.allclose(seen["cls"], (1 - t) * cls + t * noise, atol=1e-6)
    error = noise - cls if prediction == "v" else cls / t.clamp(min=0.05)
    assert torch.allclose(losses.parts["cls"], error.square().mean(1), rtol=1e-3)
    expected = losses.parts["flow"] + 0.03 * losses.parts["cls"]
    assert torch.allclose(losses.total(), expected)


@pytest.mark.parametrize(
    "latent, parameters",
    [
        (LatentSpec(4, 32, 32, 2), 615_342_628),
        (LatentSpec(128, 16, 16, 1), 615_930_516),
        (LatentSpec(768, 16, 16, 1), 619_289_876),
    ],
)
def test_published_sizes(latent: LatentSpec, parameters: int) -> None:
    """On the meta device: the width is known without the encoder's files."""
    known = Facts(0, latent, 256, 1152, lambda x: x, 28, 1024, Teachers(256))
    objective = FlowConfig().build(known, {"reg": RegConfig().build(known)})
    assert objective.leaves == {"cls": 768}
    with torch.device("meta"):
        backbone = DdtConfig().build(latent, ConditionSpec(classes=1000), objective.wiring)
    assert parameter_count(backbone) == parameters


def test_two_terms_with_the_same_leaf() -> None:
    known = facts()
    terms = {name: RegConfig(encoder="animals-vit").build(known) for name in ("reg", "other")}
    with pytest.raises(ConfigError, match=r"terms\.reg and terms\.other both add the leaf 'cls'"):
        FlowConfig().build(known, terms)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"terms\.reg\.weight=0\.0: must be above 0"):
        RegConfig(weight=0.0)


CLASSES = 6
LATENT = LatentSpec(4, 8, 8, 2)


def learned(steps: int, many: int) -> Model:
    """A model that knows by heart one latent, and the class token of one silhouette, of each
    class.
    """
    torch.manual_seed(0)
    known, labels = facts(latent=LATENT, feature_width=64, batch=many), Labels(CLASSES)
    terms = {"reg": RegConfig(encoder="animals-vit").build(known)}
    objective = FlowConfig(shift_base=None).build(known, terms)
    sizes = {"depth": 3, "width": 64, "heads": 2}
    sizes |= {"decoder_depth": 1, "decoder_width": 96, "decoder_heads": 2}
    backbone = DdtConfig(**sizes).build(LATENT, labels.spec, objective.wiring)
    model = Model(backbone, objective, labels, dropout=0.0)
    schedule = Schedule(warmup=50 * many, decay_start=int(0.6 * steps * many), final=0.01)
    optimiser = AdamWConfig(lr=2e-3).build(model.trained())
    for seen in range(0, steps * many, many):
        keys = torch.arange(seen, seen + many)
        chosen = keys % CLASSES
        given = Batch(silhouettes()[chosen], keys, labels=chosen)
        parts, weights = model(given, truth()[chosen], LabelCondition(chosen))
        sum(weights[name] * part.mean() for name, part in parts.items()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * schedule.factor(seen, many, steps * many)
        optimiser.step()
        optimiser.zero_grad()
    return model


def truth() -> Tensor:
    return rng.normal(1, "truth", torch.arange(CLASSES), (4, 8, 8))


@torch.no_grad()
def drawn(model: Model) -> State:
    """Image and class token of each class, in 50 joint Euler steps."""
    labels = torch.arange(CLASSES)

    def field(state: State, t: float, to: float) -> State:
        time = torch.full((CLASSES,), t)
        found = model.backbone(state, time, LabelCondition(labels)).state
        return model.objective.velocity(found, state, time)

    noise = {
        "image": rng.normal(2, "start", labels, (4, 8, 8)),
        "cls": rng.normal(2, "cls", labels, (64,)),
    }
    return euler(field, noise, times(50))


@pytest.mark.slow
def test_overfit() -> None:
    """Both are drawn back. That of another class would not do: the tokens tell classes apart."""
    state = drawn(learned(steps=500, many=24))
    assert (state["image"] - truth()).square().mean() < 3 * 0.0047
    cls = encoder()(silhouettes()).cls
    cosines = F.cosine_similarity(state["cls"][:, None], cls[None], dim=-1)
    others = F.cosine_similarity(cls[:, None], cls[None], dim=-1).fill_diagonal_(0)
    assert cosines.diagonal().min() > 0.9 > others.max()
    assert cosines.argmax(1).tolist() == list(range(CLASSES))
