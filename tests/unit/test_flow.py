"""The flow objective: its targets, its condition dropout, and terms that plug into it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from nanogen import rng
from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.errors import ConfigError
from nanogen.model import Model
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Step, Term
from nanogen.objectives.flow import Flow, FlowConfig
from nanogen.sampling.generate import Sampler, Sampling
from nanogen.sampling.guidance import Guidance
from nanogen.tokenizers.pixels import Pixels
from nanogen.types import (
    Batch,
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    Prediction,
    Request,
    State,
    TextCondition,
    Wiring,
)

LATENT = LatentSpec(3, 8, 8, 4)
FACTS = Facts(seed=5, latent=LATENT, image_size=8, feature_width=16, decode=lambda x: (x + 1) / 2)
CLASSES = 4


class Recording:
    """A network that predicts a given state, and remembers what it was asked."""

    def __init__(self, predict=None) -> None:
        self.predict = predict or (lambda state, t: path.leafwise(torch.zeros_like, state))
        self.calls: list[tuple[State, Tensor, Condition]] = []

    def __call__(
        self,
        state: State,
        t: Tensor,
        condition: Condition,
        *,
        want: Iterable[str] = (),
        **_: object,
    ) -> Prediction:
        self.calls.append((state, t, condition))
        return Prediction(self.predict(state, t))


def flow(terms: dict[str, Term] | None = None, **fields: object) -> Flow:
    return FlowConfig(**{"shift_base": None} | fields).build(FACTS, terms or {})


def batch(count: int = 6, first: int = 0) -> Batch:
    keys = torch.arange(first, first + count)
    return Batch(rng.uniform(0, "images", keys, 192).view(-1, 3, 8, 8), keys, labels=keys % CLASSES)


def inputs(given: Batch) -> Inputs:
    kept = torch.ones(len(given), dtype=torch.bool)
    null = LabelCondition(torch.full_like(given.labels, CLASSES))
    return Inputs(given, given.images * 2 - 1, LabelCondition(given.labels), kept, null)


def seen_noise(given: Batch, state: State, t: Tensor) -> Tensor:
    """The noise that was mixed in, from what the network was shown."""
    latents, t = given.images * 2 - 1, t[:, None, None, None]
    return (state["image"] - (1 - t) * latents) / t


def test_exact_velocity_has_no_loss() -> None:
    given = batch(50)
    network = Recording()
    flow()(network, inputs(given))
    state, t, _ = network.calls[0]
    noise = seen_noise(given, state, t)
    perfect = Recording(lambda state, t: {"image": noise - (given.images * 2 - 1)})
    assert flow()(perfect, inputs(given)).parts["flow"].max() < 1e-6


def test_target_is_not_clamped_near_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """At t = 0.001 the target of v-prediction is still e - x: a zero prediction costs |e - x|^2."""
    monkeypatch.setattr(path, "logit_normal", lambda n, *_: torch.full_like(n, 1e-3))
    given = batch()
    found = flow()(Recording(), inputs(given)).parts["flow"]
    noise = rng.normal(5, "noise/image", given.keys, (3, 8, 8))
    expected = (noise - (given.images * 2 - 1)).square().flatten(1).mean(1)
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("floor", [0.05, 0.2])
def test_x_prediction_weighs_by_time(floor: float) -> None:
    """The loss of a predicted image is |x_hat - x|^2 / max(t, floor)^2."""
    given, guess = batch(2000), torch.zeros(3, 8, 8)
    network = Recording(lambda state, t: {"image": guess.expand_as(state["image"])})
    found = flow(prediction="x", time_floor=floor)(network, inputs(given)).parts["flow"]
    t = network.calls[0][1]
    error = (guess - (given.images * 2 - 1)).square().flatten(1).mean(1)
    assert (t < floor).any() and (t > floor).any()
    assert torch.allclose(found, error / t.clamp(min=floor) ** 2, rtol=1e-3)


def test_exact_x_prediction_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the floor too."""
    monkeypatch.setattr(path, "logit_normal", lambda n, *_: torch.full_like(n, 0.01))
    given = batch()
    network = Recording(lambda state, t: {"image": given.images * 2 - 1})
    assert flow(prediction="x")(network, inputs(given)).parts["flow"].max() < 1e-9


def test_clamped_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code's: below the floor the best velocity is too small by t / floor."""
    monkeypatch.setattr(path, "logit_normal", lambda n, *_: torch.full_like(n, 0.01))
    given = batch()
    noise = rng.normal(5, "noise/image", given.keys, (3, 8, 8))
    v = noise - (given.images * 2 - 1)
    short = Recording(lambda state, t: {"image": v * 0.01 / 0.05})
    assert flow(target="clamped")(short, inputs(given)).parts["flow"].max() < 1e-9
    exact = Recording(lambda state, t: {"image": v})
    found = flow(target="clamped")(exact, inputs(given)).parts["flow"]
    assert torch.allclose(found, v.square().flatten(1).mean(1) * 0.8**2, rtol=1e-3)


def test_times_and_noise_follow_from_the_key() -> None:
    """Which batch a sample is in changes nothing of what the network is shown."""
    together, apart = Recording(), Recording()
    flow()(together, inputs(batch(6)))
    for key in (4, 1):
        flow()(apart, inputs(batch(1, first=key)))
    state, t, _ = together.calls[0]
    for (one, time, _), key in zip(apart.calls, (4, 1), strict=True):
        assert torch.equal(one["image"][0], state["image"][key]) and time[0] == t[key]


def test_law_of_the_times() -> None:
    keys = torch.arange(20_000)
    given = Batch(torch.zeros(len(keys), 3, 1, 1), keys, labels=keys % CLASSES)
    network = Recording()
    facts = Facts(5, LatentSpec(16, 32, 32, 2), 256, 16, lambda x: x)
    FlowConfig(time_mean=-0.4, time_std=0.8).build(facts, {})(network, inputs(given))
    law = stats.norm(-0.4 + math.log(2), 0.8)
    logits = torch.logit(network.calls[0][1].double())
    assert stats.kstest(logits.numpy(), law.cdf).pvalue > 0.01


def test_velocity_is_float32_under_autocast() -> None:
    noisy, t = {"image": torch.randn(2, 3, 8, 8)}, torch.tensor([0.3, 0.7])
    half = {"image": torch.randn(2, 3, 8, 8).bfloat16()}
    for prediction in ("v", "x"):
        assert flow(prediction=prediction).velocity(half, noisy, t)["image"].dtype == torch.float32


@pytest.mark.parametrize(
    "fields, named",
    [({"time_std": 0.0}, "time_std"), ({"time_floor": 0.0}, "time_floor")]
    + [
        ({"prediction": "e"}, "prediction"),
        ({"time_mean": math.inf}, "time_mean=inf"),
        ({"time_std": math.inf}, "time_std=inf"),
        ({"time_floor": 1.0}, "time_floor"),
        ({"time_floor": 0.1}, "no effect"),
        ({"target": "clamped", "prediction": "x"}, "no effect"),
        ({"target": "short"}, "target"),
    ],
)
def test_refusals(fields: dict[str, object], named: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=named):
        FlowConfig(**fields)


class Captions:
    """Three tokens for each sample, of its label's value; the null has none."""

    spec = ConditionSpec(width=2, tokens=3)
    fingerprint = "captions"

    def encode(self, given: Batch | Request) -> TextCondition:
        features = given.labels[:, None, None].expand(-1, 3, 2).float() + 1
        return TextCondition(features, torch.ones(len(given.labels), 3, dtype=torch.bool))

    def null(self, count: int) -> TextCondition:
        return TextCondition(torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.bool))


class Network(nn.Module):
    """`Recording` as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()

    def forward(self, *given, **more) -> Prediction:
        return self.recording(*given, **more)


class TestDropout:
    def batch(self, count: int) -> Batch:
        keys = torch.arange(count)
        return Batch(torch.zeros(count, 3, 1, 1), keys, labels=keys % CLASSES)

    def condition(self, conditioner, count: int, dropout: float = 0.1) -> Condition:
        model = Model(Network(), flow(), conditioner, dropout)
        given = self.batch(count)
        model(given, given.images, conditioner.encode(given))
        return model.backbone.recording.calls[0][2]

    def test_rate_of_labels(self) -> None:
        found = self.condition(Labels(CLASSES), 20_000)
        null = found.ids == CLASSES
        assert null.float().mean().item() == pytest.approx(0.1, abs=0.01)
        assert torch.equal(found.ids[~null], (torch.arange(20_000) % CLASSES)[~null])
        # It hits all classes alike.
        hit = torch.bincount(torch.arange(20_000)[null] % CLASSES, minlength=CLASSES)
        assert stats.chisquare(hit.numpy()).pvalue > 0.01

    def test_tokens_and_mask_go_together(self) -> None:
        found = self.condition(Captions(), 5_000)
        real = found.mask.any(1)
        assert (~real).float().mean().item() == pytest.approx(0.1, abs=0.015)
        assert torch.equal(found.mask.all(1), real)
        assert not found.features[~real].any()
        labels = torch.arange(5_000) % CLASSES
        assert torch.equal(found.features[real][:, 0, 0], labels[real].float() + 1)

    @pytest.mark.parametrize("dropout, expected", [(0.0, 0), (0.999999, 100)])
    def test_ends(self, dropout: float, expected: int) -> None:
        found = self.condition(Labels(CLASSES), 100, dropout)
        assert int((found.ids == CLASSES).sum()) == expected

    def test_objectives_are_told_whose_condition_was_kept(self) -> None:
        conditioner, given, told = Labels(CLASSES), self.batch(1_000), []
        model = Model(Network(), flow(), conditioner, 0.1)
        model.objective.register_forward_hook(lambda _, asked, losses: told.append(asked[1]))
        model(given, given.images, conditioner.encode(given))
        (inputs,) = told
        assert torch.equal(inputs.kept, inputs.condition.ids != CLASSES)
        assert 0 < int((~inputs.kept).sum()) < 200

    def test_when_all_are_dropped_no_text_is_left(self) -> None:
        assert self.condition(Captions(), 20, 0.999999).features.shape == (20, 0, 2)


class TokenTerm(Term):
    """What REG does: one more leaf, a vector of each image, is denoised along."""

    leaves = {"token": 4}
    weight = 0.03

    def clean_leaves(self, batch: Batch) -> State:
        return {"token": batch.images.flatten(1)[:, :4] * 2 - 1}


class AlignTerm(Term):
    """What REPA does: a head on a block's tokens learns to tell something of the image."""

    want = ("block1",)
    weight = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 1)

    def loss(self, step: Step) -> Tensor:
        tokens = step.prediction.features["block1"][:, -LATENT.tokens :]
        return (self.head(tokens).mean((1, 2)) - step.batch.images.flatten(1).mean(1)).square()


class TestTerms:
    def model(self) -> Model:
        torch.manual_seed(0)
        terms = {"reg": TokenTerm(), "repa": AlignTerm()}
        leaves = {leaf: w for term in terms.values() for leaf, w in term.leaves.items()}
        config = DdtConfig(
            depth=2, width=16, heads=2, decoder_depth=1, decoder_width=24, decoder_heads=2
        )
        backbone = config.build(LATENT, ConditionSpec(classes=CLASSES), Wiring(leaves))
        return Model(backbone, flow(terms), Labels(CLASSES), 0.1)

    def losses(self, model: Model, given: Batch):
        return model(given, given.images * 2 - 1, LabelCondition(given.labels))

    def test_losses_and_weights(self) -> None:
        parts, weights = self.losses(self.model(), batch())
        assert weights == {"flow": 1.0, "token": 0.03, "repa": 0.5}
        assert {name: part.shape for name, part in parts.items()} == dict.fromkeys(weights, (6,))
        # The network starts at zero, so the loss of a leaf is the size of its target.
        noise = rng.normal(5, "noise/token", batch().keys, (4,))
        target = noise - (batch().images.flatten(1)[:, :4] * 2 - 1)
        assert torch.allclose(parts["token"], target.square().mean(1))

    def test_one_forward_pass(self) -> None:
        model = self.model()
        calls = []
        model.backbone.register_forward_hook(lambda *_: calls.append(1))
        self.losses(model, batch())
        assert len(calls) == 1

    def test_leaves_share_the_time_but_not_the_noise(self) -> None:
        network = Recording()
        flow({"reg": TokenTerm()})(network, inputs(batch()))
        state, t, _ = network.calls[0]
        clean = batch().images.flatten(1)[:, :4] * 2 - 1
        token_noise = (state["token"] - (1 - t[:, None]) * clean) / t[:, None]
        image_noise = seen_noise(batch(), state, t).flatten(1)
        assert torch.allclose(
            token_noise, rng.normal(5, "noise/token", batch().keys, (4,)), atol=1e-3
        )
        assert not torch.allclose(token_noise, image_noise[:, :4], atol=0.1)

    def test_heads_are_trained_and_stored(self) -> None:
        model = self.model()
        assert "objective.terms.repa.head.weight" in model.trained()
        parts, weights = self.losses(model, batch())
        sum(weights[name] * part.mean() for name, part in parts.items()).backward()
        assert model.objective.terms["repa"].head.weight.grad.any()
        # Through the feature the term also reaches the encoder, which the zero heads do not yet.
        assert model.backbone.blocks[0].attn.q.weight.grad.any()

    def test_sampling_needs_no_word_of_them(self) -> None:
        model = self.model()
        sampler = Sampler(
            model.backbone,
            model.objective,
            Labels(CLASSES),
            Pixels(4, 8),
            model.leaves,
            Sampling(steps=3, shift_base=None, solver="heun", guidance=Guidance(scale=2.0)),
            torch.device("cpu"),
        )
        assert sampler.noise(torch.arange(2))["token"].shape == (2, 4)
        assert sampler.draw(Request(torch.arange(2), labels=torch.tensor([0, 1]))).shape == (
            2,
            3,
            8,
            8,
        )

    def test_x_prediction_holds_for_every_leaf(self) -> None:
        given = batch(50)
        clean = {"image": given.images * 2 - 1, "token": given.images.flatten(1)[:, :4] * 2 - 1}
        parts = flow({"reg": TokenTerm()}, prediction="x")(
            Recording(lambda state, t: clean), inputs(given)
        ).parts
        # Exact where t is above the floor; below it both leaves are off by the same known factor.
        assert (parts["token"] < 1e-4).float().mean() > 0.9
