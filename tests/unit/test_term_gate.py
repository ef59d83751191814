"""Perceptual terms look at samples with little noise alone: LPIPS and P-DINO."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_run
from random_vgg import random_vgg
from term_steps import SIZE, batch, encoder, facts, inputs, silhouettes, step
from torch import Tensor

from nanogen.encoders.lpips import Lpips, heads_file, open_lpips
from nanogen.encoders.teachers import Teachers
from nanogen.encoders.vision import open_encoder
from nanogen.errors import ConfigError
from nanogen.objectives.base import Facts, Step
from nanogen.objectives.flow import FlowConfig
from nanogen.objectives.gate import GatedTerm
from nanogen.objectives.lpips import LpipsConfig
from nanogen.objectives.pdino import PdinoConfig
from nanogen.types import LatentSpec, Prediction

T = torch.tensor([0.1, 0.7, 0.69, 0.95, 0.3, 1.0])
BELOW = torch.tensor([True, False, True, False, True, False])
"""at the threshold itself a sample is left out"""
KINDS = [
    pytest.param(
        "lpips", marks=pytest.mark.skipif(heads_file() is None, reason="no package with the heads")
    ),
    "pdino",
]
both = pytest.mark.parametrize("kind", KINDS)


def term(kind: str, given: Facts | None = None, **fields: object) -> GatedTerm:
    if kind == "lpips":
        return LpipsConfig(path=str(random_vgg()), **fields).build(given or facts())
    return PdinoConfig(**{"encoder": "animals-vit"} | fields).build(given or facts())


def guess() -> Tensor:
    """[6, 3, 28, 28] in latents: far from the images, and beyond [-1, 1] in places."""
    x_hat = torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
    assert x_hat.abs().max() > 1.5
    return x_hat.requires_grad_()


def vgg() -> Lpips:
    return open_lpips(str(random_vgg()))


def tokens(images: Tensor) -> Tensor:
    return encoder()(images).patches


def distances(kind: str, x_hat: Tensor) -> Tensor:
    """Of all samples, [6], from the networks themselves."""
    found, images = (x_hat + 1) / 2, silhouettes()
    if kind == "lpips":
        return vgg()(found, images)
    return (tokens(found) - tokens(images)).square().flatten(1).mean(1)


@both
def test_gated_is_masked(kind: str) -> None:
    """What is not computed is what would be multiplied by zero."""
    x_hat, other = guess(), guess()
    found = term(kind).loss(step(T, x_hat))
    masked = distances(kind, other) * BELOW
    assert torch.allclose(found, masked, atol=1e-6) and (found > 0).tolist() == BELOW.tolist()
    found.sum().backward()
    masked.sum().backward()
    assert torch.allclose(x_hat.grad, other.grad, atol=1e-6)
    assert not x_hat.grad[~BELOW].any()
    assert x_hat.grad[BELOW].flatten(1).any(1).all()


@both
def test_a_clamped_prediction_would_be_another(kind: str) -> None:
    x_hat = guess().detach()
    loss = term(kind).loss(step(T, x_hat))[BELOW]
    clamped = term(kind).loss(step(T, x_hat.clamp(-1, 1)))[BELOW]
    assert ((loss - clamped).abs() > 1e-4).all()


@both
def test_the_image_itself_has_no_loss(kind: str) -> None:
    assert term(kind).loss(step(T, silhouettes() * 2 - 1)).abs().max() < 1e-6


@both
def test_other_samples_are_not_looked_at(kind: str) -> None:
    made, seen = term(kind), []
    made.teacher.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    made.loss(step(T, guess()))
    assert seen == ([3] if kind == "lpips" else [3, 3])
    seen.clear()
    made.loss(step(torch.ones(6), guess()))
    assert not seen


@both
@pytest.mark.parametrize("normalise_by", ["batch", "gated"])
def test_nothing_below_the_threshold(kind: str, normalise_by: str) -> None:
    x_hat = guess()
    loss = term(kind, normalise_by=normalise_by).loss(step(torch.full((6,), 0.9), x_hat))
    assert loss.tolist() == [0.0] * 6 and loss.requires_grad
    loss.sum().backward()
    assert x_hat.grad is not None and not x_hat.grad.any()


@both
def test_a_threshold_of_one_compares_all(kind: str) -> None:
    t = T.clamp(max=0.99)
    found = term(kind, threshold=1.0).loss(step(t, guess()))
    assert torch.allclose(found, distances(kind, guess()), atol=1e-6)


@both
def test_mean_over_the_gated(kind: str) -> None:
    """The mean over the batch of what is returned is the mean over those below the threshold."""
    expected = distances(kind, guess())[BELOW].mean()
    found = term(kind, normalise_by="gated").loss(step(T, guess()))
    assert torch.allclose(found.mean(), expected, rtol=1e-5)
    plain = term(kind).loss(step(T, guess()))
    assert torch.allclose(found, 2 * plain)


def part(whole: Step, rows: slice) -> Step:
    given = whole.batch
    some = replace(given, pixels=given.images[rows], keys=given.keys[rows])
    return replace(whole, batch=some, t=whole.t[rows], data={"image": whole.data["image"][rows]})


@both
def test_the_gated_are_counted_over_the_whole_step(kind: str) -> None:
    """Micro-batches, and processes, of any size: also where some have none."""
    made, x_hat = term(kind, normalise_by="gated"), guess().detach()
    whole = step(T, x_hat)
    pieces = [made.loss(part(whole, slice(a, b))) for a, b in ((0, 1), (1, 2), (2, 6))]
    assert torch.allclose(torch.cat(pieces), made.loss(whole), atol=1e-6)


def test_steps_are_counted_apart() -> None:
    """Keys 4 to 7 are the second step of four: two of it lie below the threshold, of the first
    three.
    """
    below = torch.tensor([True, True, False, True, False, False, True, True])
    t = torch.where(below, 0.2, 0.9)
    made = term("pdino", facts(batch=4), normalise_by="gated")
    whole = replace(step(T, guess()), times=lambda keys: t[keys])
    keys = torch.tensor([1, 3, 6, 7, 2, 0])
    found = made.loss(replace(whole, batch=replace(whole.batch, keys=keys), t=t[keys]))
    plain = term("pdino").loss(replace(whole, t=t[keys]))
    scale = torch.tensor([4 / 3, 4 / 3, 2.0, 2.0, 1.0, 4 / 3])
    assert torch.allclose(found, scale * plain, rtol=1e-5)


def test_times_that_are_not_known_ahead() -> None:
    made = term("pdino", normalise_by="gated")
    with pytest.raises(ConfigError, match=r"terms\.pdino\.normalise_by=gated .* choose batch"):
        made.loss(replace(step(T, guess()), times=None))


@pytest.mark.skipif(heads_file() is None, reason="no package with the heads")
def test_the_released_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per sample 1[t < 0.7] (0.1 LPIPS + 0.01 mean square of tokens), as a mean over the batch."""
    known = facts()
    terms = {kind: term(kind, known) for kind in ("lpips", "pdino")}
    flow = FlowConfig(prediction="x").build(known, terms)
    monkeypatch.setattr(flow, "times", lambda keys: T[keys])
    x_hat = guess().detach()
    losses = flow(lambda *_, **__: Prediction({"image": x_hat}), inputs(batch()))
    assert losses.weights == {"flow": 1.0, "lpips": 0.1, "pdino": 0.01}
    perceptual = sum(losses.weights[kind] * losses.parts[kind].mean() for kind in terms)
    lpips, square = distances("lpips", x_hat), distances("pdino", x_hat)
    expected = (BELOW * (0.1 * lpips + 0.01 * square)).sum() / 6
    assert torch.allclose(perceptual, expected, rtol=1e-5)


def test_mean_squares_are_correlations() -> None:
    """Of tokens without affine: |a - b|^2 / D = 2 (1 - corr)."""
    found = term("pdino", threshold=1.0).loss(step(T.clamp(max=0.9), guess().detach()))
    a = tokens((guess().detach() + 1) / 2).double().numpy()
    b = tokens(silhouettes()).double().numpy()
    for row in range(6):
        corr = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a[row], b[row], strict=True)])
        assert found[row].item() == pytest.approx(2 * (1 - corr), rel=1e-3)


def test_cosine_of_tokens() -> None:
    found = term("pdino", loss="cosine").loss(step(T, guess().detach()))
    a, b = tokens((guess().detach() + 1) / 2), tokens(silhouettes())
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    assert torch.allclose(found, (1 - cosine.mean(1)) * BELOW, atol=1e-6)


def test_scenes() -> None:
    """At 40 px, where the encoder is fed other pixels than there are; the gradient passes."""
    latent = LatentSpec(3, 40, 40, 5)
    known = facts(latent=latent, image_size=40, teachers=Teachers(40))
    images = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    x_hat = (images * 2 - 1 + 0.3 * torch.randn_like(images)).requires_grad_()
    given = step(T, x_hat)
    given = replace(given, batch=replace(given.batch, pixels=images))
    loss = term("pdino", known).loss(given)
    sees = open_encoder("animals-vit", 40)
    gap = sees((x_hat + 1) / 2).patches - sees(images).patches
    assert torch.allclose(loss, gap.square().flatten(1).mean(1) * BELOW, atol=1e-6)
    loss.sum().backward()
    assert x_hat.grad[BELOW].flatten(1).any(1).all()


@both
def test_the_network_learns_nothing(kind: str) -> None:
    made = term(kind)
    made.loss(step(T, guess())).sum().backward()
    weights = list(made.teacher.network.parameters())
    assert weights and all(p.grad is None and not p.requires_grad for p in weights)
    assert not list(made.parameters()) and not made.state_dict()
    made.train()
    assert not made.teacher.network.training


@both
def test_in_float32_under_autocast(kind: str) -> None:
    x_hat = guess().detach().bfloat16()
    exact = term(kind).loss(step(T, x_hat.float()))
    with torch.autocast("cpu", torch.bfloat16):
        found = term(kind).loss(step(T, x_hat))
    assert found.dtype == torch.float32 and torch.equal(found, exact)


REFUSED = [
    ("threshold=0", r"threshold=0\.0: must be above 0 and at most 1"),
    ("threshold=1.5", r"threshold=1\.5: must be above 0 and at most 1"),
    ("threshold=-0.1", r"threshold=-0\.1: must be above 0"),
    ("weight=0", r"weight=0\.0: must be above 0; terms\.\w+=off"),
    ("normalise_by=mean", "normalise_by=mean does not fit: .*'batch', 'gated'"),
]


@pytest.mark.parametrize("kind", ["lpips", "pdino"])
@pytest.mark.parametrize("field, message", REFUSED, ids=lambda value: str(value)[:20])
def test_refusals(kind: str, field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"terms\.{kind}\.{message}"):
        tiny_run("animals/pixels-x", f"terms.{kind}.{field}")


@pytest.mark.parametrize("config", [LpipsConfig, PdinoConfig])
def test_a_threshold_that_all_pass_gates_nothing(config: type) -> None:
    with pytest.raises(ConfigError, match="normalise_by=gated has no effect with threshold=1"):
        config(threshold=1.0, normalise_by="gated")
    config(threshold=1.0)


@both
def test_velocities_are_refused(kind: str) -> None:
    known = facts()
    with pytest.raises(ConfigError, match=rf"terms\.{kind} compares predicted images"):
        FlowConfig(prediction="v").build(known, {kind: term(kind, known)})


def test_small_images_are_refused() -> None:
    known = facts(image_size=8, teachers=Teachers(8))
    with pytest.raises(ConfigError, match=r"terms\.lpips needs images of at least 16 px"):
        LpipsConfig().build(known)
    term("pdino", known)
    with pytest.raises(ConfigError, match=r"terms\.pdino: encoder 'animals-vit' takes images of"):
        known.known_teachers().open(torch.device("cpu"))


def test_the_loss_of_p_dino_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match=r"terms\.pdino\.loss='l1': choose mse or cosine"):
        PdinoConfig(loss="l1")


def test_a_missing_trunk_names_the_field() -> None:
    known = facts()
    LpipsConfig(path="nowhere/vgg16.pth").build(known)
    if heads_file() is not None:
        with pytest.raises(ConfigError, match=r"terms\.lpips\.path=nowhere"):
            known.known_teachers().open(torch.device("cpu"))


def test_images_are_asked_for() -> None:
    """A cache of latents then reads them as well."""
    assert term("pdino").needs_images and term("pdino").needs_data
