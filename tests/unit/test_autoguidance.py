"""Guidance by a bad model: its closed form, its branches, and the runs that it may be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import chz
import pytest
import torch
from conftest import tiny_run

from nanogen import config
from nanogen.errors import CheckpointError, ConfigError
from nanogen.evaluation import online
from nanogen.files import writable_folder
from nanogen.objectives.path import leafwise
from nanogen.run import Parts, Run, build
from nanogen.run_folder import open_run, prepare
from nanogen.sampling.autoguidance import opened
from nanogen.sampling.guidance import Auto, Guidance, autoguided, guided
from nanogen.sampling.schedule import times
from nanogen.sampling.solvers import Field, euler
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.train.loop import train
from nanogen.types import LabelCondition, Request, State

STD = 0.5


def gaussian(mean: float, std: float = STD) -> Field:
    def field(state: State, t: float, to: float) -> State:
        variance = (1 - t) ** 2 * std**2 + t**2
        slope = (t - (1 - t) * std**2) / variance
        return leafwise(lambda x: slope * (x - (1 - t) * mean) - mean, state)

    return field


def start() -> State:
    return {"image": torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]}


def auto(scale: float, **fields: float) -> Auto:
    return Auto(run="somewhere", scale=scale, **fields)


def test_with_classifier_free_guidance() -> None:
    """On the conditional branch first: of Gaussians of one variance, the mean that comes out is
    n + s ((b + a (c - b)) - n).
    """
    good = autoguided(gaussian(0.7), gaussian(0.2), auto(1.5))
    field = guided(good, gaussian(-0.3), Guidance(scale=3.0))
    mean = -0.3 + 3 * (0.2 + 1.5 * (0.7 - 0.2) + 0.3)
    end = euler(field, start(), times(4000))["image"]
    assert (end - (mean + STD * start()["image"])).abs().max() < 1e-3


def test_in_an_interval() -> None:
    """Unguided down to t = 0.9, then towards 0.2 + 3 (0.7 - 0.2)."""
    field = autoguided(gaussian(0.7), gaussian(0.2), auto(3.0, high=0.9))
    end = euler(field, start(), times(20_000))["image"]
    shift = 0.1 * (0.7 - 1.7) / math.sqrt(0.01 * STD**2 + 0.81)
    assert (end - (1.7 + STD * (start()["image"] + shift))).abs().max() < 2e-4


def test_of_itself_is_none() -> None:
    plain = euler(gaussian(0.7), start(), times(50))["image"]
    found = euler(autoguided(gaussian(0.7), gaussian(0.7), auto(4.0)), start(), times(50))["image"]
    assert torch.allclose(found, plain, rtol=0, atol=1e-14)


def test_scale_zero_is_the_bad_model_alone() -> None:
    def never(state: State, t: float, to: float) -> State:
        raise AssertionError("the good network is not needed")

    found = euler(autoguided(never, gaussian(0.2), auto(0.0)), start(), times(5))["image"]
    assert torch.equal(found, euler(gaussian(0.2), start(), times(5))["image"])


def test_the_bad_model_runs_only_in_its_interval() -> None:
    asked: list[float] = []

    def bad(state: State, t: float, to: float) -> State:
        asked.append(t)
        return leafwise(torch.zeros_like, state)

    euler(autoguided(gaussian(0.7), bad, auto(2.0, low=0.3, high=0.8)), start(), times(4))
    assert asked == [0.75, 0.5]


ALIKE = ("animals/pixels-v", "tokenizer.patch=7")


def trained(folder: Path, *overrides: str) -> Path:
    """A run folder with one checkpoint, after a moment of training."""
    run = tiny_run(*overrides, "train.images=16", "train.save_every=16", "optimiser.lr=0.1")
    parts = build(run)
    hooks = online.hooks(parts, folder)
    prepare(run, writable_folder(folder), fresh=False)
    train(DiffusionTrainer(parts), folder, hooks)
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller than the runs that it guides, with its null class untrained."""
    folder = tmp_path_factory.mktemp("bad") / "run"
    return trained(
        folder,
        *ALIKE,
        "backbone.depth=1",
        "train.condition_dropout=0",
        "sampling.guidance.scale=1",
    )


def run_with(*overrides: str) -> Run:
    return config.override(tiny_run(*ALIKE), ["sampling.steps=4", *overrides])


def built(*overrides: str) -> Parts:
    """A model whose output is not zero."""
    parts = build(run_with(*overrides))
    generator = torch.Generator().manual_seed(0)
    for p in parts.model.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    parts.model.eval()
    return parts


def test_a_sampler_asks_both_networks(bad: Path) -> None:
    """Steps start at 1, 3/4, 1/2 and 1/4: three with the bad model, two with the null class."""
    interval = ("sampling.auto.high=0.9", "sampling.guidance.scale=2", "sampling.guidance.high=0.6")
    parts = built(f"sampling.auto.run={bad}", "sampling.auto.scale=1.5", *interval)
    sampler = parts.sampler()
    assert sampler.bad is not None
    labels: list[list[int]] = []
    hook = sampler.bad.backbone.register_forward_hook(  # ty: ignore[unresolved-attribute]
        lambda _, given, out: labels.append(given[2].ids.tolist())
    )
    request = parts.task.request(0, 3)
    guided_images = sampler.draw(request)
    hook.remove()
    assert labels == [request.labels.tolist()] * 3
    counts = sampler.counts()
    assert (counts.evaluations, counts.auto_calls, counts.guided_steps) == (4, 3, 2)
    assert counts.network_calls == 4 + 3 + 2
    facts = sampler.facts()
    assert (facts["auto"], facts["auto_interval"], facts["auto_seen"]) == (1.5, [0.0, 0.9], 16)
    assert (facts["auto_run"], facts["auto_weights"], facts["auto_calls"]) == (str(bad), "ema", 3)
    plain = parts.sampler(chz.replace(parts.run.sampling, auto=Auto()))
    assert (guided_images - plain.draw(request)).abs().max() > 1e-3


def test_the_bad_model_reads_conditions_with_its_own_conditioner(bad: Path) -> None:
    parts = built(f"sampling.auto.run={bad}", "sampling.auto.scale=1.5", "sampling.steps=2")
    sampler = parts.sampler()
    assert sampler.bad is not None
    told, real = [], sampler.bad.conditioner.encode

    class Apart:
        """The other model's, whose classes are numbered the other way round."""

        def encode(self, request: Request) -> LabelCondition:
            return LabelCondition(9 - real(request).ids)

    sampler = dataclasses.replace(
        sampler,
        bad=dataclasses.replace(sampler.bad, conditioner=Apart()),  # ty: ignore[invalid-argument-type]
    )
    for network in (sampler.backbone, sampler.bad.backbone):
        network.register_forward_hook(  # ty: ignore[unresolved-attribute]
            lambda _, asked, __: told.append(asked[2].ids.tolist())
        )
    sampler.draw(Request(torch.arange(2), labels=torch.tensor([2, 3])))
    assert [2, 3] in told and [7, 6] in told


def test_a_run_guided_by_its_own_weights_is_unguided(bad: Path) -> None:
    """The very network, out of its own folder."""
    overrides = ["sampling.steps=4", f"sampling.auto.run={bad}", "sampling.auto.scale=3"]
    guided_by_itself = open_run(bad, overrides=overrides).parts
    plain = open_run(bad, overrides=["sampling.steps=4"]).parts
    request = plain.task.request(0, 4)
    assert guided_by_itself.sampler().counts().auto_calls == 4
    found = guided_by_itself.sampler().draw(request)
    assert (found - plain.sampler().draw(request)).abs().max() <= 1e-5


def test_weights_are_averaged_or_raw(bad: Path) -> None:
    parts = built()
    networks = [
        opened(Auto(run=str(bad), scale=2.0, weights=weights), parts) for weights in ("ema", "raw")
    ]
    a, b = (dict(one.backbone.named_parameters()) for one in networks)  # type: ignore[union-attr]
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_unknown_weights(bad: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling.auto.weights='best': choose ema or raw"):
        opened(Auto(run=str(bad), scale=2.0, weights="best"), built())


def test_threads_of_this_process_stay(bad: Path) -> None:
    before = torch.get_num_threads()
    built(f"sampling.auto.run={bad}", "sampling.auto.scale=2").sampler()
    assert torch.get_num_threads() == before


def fitted(folder: Path, preset: str, *overrides: str) -> Parts:
    guidance = f"sampling.auto.run={folder}", "sampling.auto.scale=1.5"
    return build(tiny_run(preset, *overrides, *guidance))


def test_patches_may_differ(bad: Path) -> None:
    assert fitted(bad, ALIKE[0], "tokenizer.patch=4").sampler().bad is not None


@pytest.mark.parametrize(
    "preset, overrides, words",
    [
        (
            ALIKE[0],
            ("terms.reg=on", "terms.reg.encoder=animals-vit"),
            "leaves: none beside the image there, cls 64 here",
        ),
        (
            "scenes/pixels-v",
            ("conditioner=words",),
            "latent space: 3x28x28 there, 3x40x40 here",
        ),
    ],
    ids=["leaves", "space"],
)
def test_runs_that_do_not_fit(
    bad: Path, preset: str, overrides: tuple[str, ...], words: str
) -> None:
    parts = fitted(bad, preset, *overrides)
    with pytest.raises(ConfigError) as caught:
        parts.sampler()
    message = str(caught.value)
    assert words in message and f"sampling.auto.run={bad}" in message and "\n" not in message


def test_before_training(bad: Path, tmp_path: Path) -> None:
    parts = built("sampling.auto.run=nowhere", "sampling.auto.scale=2", "train.sample_every=16")
    with pytest.raises(CheckpointError, match="nowhere is not a run folder"):
        online.hooks(parts, tmp_path)


TOLD = ("objective=improved-meanflow", "sampling.guidance.high=1")
ONE_STEP = (
    "objective=drifting",
    "objective.group=4",
    "sampling.steps=1",
    "sampling.guidance.scale=1",
    "sampling.guidance.high=1",
)


def test_a_scale_that_the_bad_model_has_not_learned(tmp_path: Path) -> None:
    """Said before the first sample is drawn, and of the run that it is about."""
    folder = trained(
        tmp_path / "bad",
        *(ALIKE[0], *TOLD, "objective.guidance_most=3", "sampling.guidance.scale=2"),
    )
    with pytest.raises(ConfigError) as caught:
        fitted(folder, ALIKE[0], *TOLD, "sampling.guidance.scale=6").sampler()
    message = str(caught.value)
    assert message.startswith(f"sampling.auto.run={folder}: sampling.guidance.scale=6")
    assert "from 1 to objective.guidance_most=3" in message and "\n" not in message


def test_a_generator_of_one_step_guides_no_flow(tmp_path: Path) -> None:
    folder = trained(tmp_path / "bad", ALIKE[0], *ONE_STEP)
    with pytest.raises(ConfigError, match="velocity: of one step there, at a time here"):
        fitted(folder, ALIKE[0]).sampler()
