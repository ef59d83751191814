"""The table of presets: what the published configs say, and how a task is switched."""

from __future__ import annotations

import pytest

from nanogen import recipes
from nanogen.backbones.ddt import DdtConfig
from nanogen.errors import ConfigError
from nanogen.train.optim import AdamWConfig


def test_names() -> None:
    names = recipes.names()
    assert len(set(names)) == len(names)
    for task in recipes.TASKS:
        assert recipes.methods_of(task), f"no method is for {task}"
        assert all(f"{task}/{method}" in names for method in recipes.methods_of(task))


@pytest.mark.parametrize(
    "name, hint",
    [("imagent/jit", "imagenet/jit"), ("animals/pixel-v", "animals/pixels-v")]
    + [("imagenet/jit@papr", "imagenet/jit@paper"), ("animals/pixels-v@paper", "animals/pixels-v")],
)
def test_unknown_presets(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown preset '{name}'; did you mean .*{hint}"):
        recipes.preset(name)


@pytest.mark.parametrize("name", ["imagenet/jit", "t2i/jit", "imagenet/pixnerd", "t2i/pixnerd"])
def test_papers_training(name: str) -> None:
    """arXiv 2606.24888: one backbone and one optimiser for every row."""
    run = recipes.preset(name)
    assert run.backbone == DdtConfig() and run.optimiser == AdamWConfig()
    train = run.train
    assert (train.batch, train.clip, train.ema) == (1024, 1.0, 0.9995)
    assert train.condition_dropout == 0.1 and train.precision == "bf16" and run.seed == 42
    assert (run.sampling.solver, run.sampling.steps) == ("euler", 50)


@pytest.mark.parametrize(
    "name, prediction, mean, std, scale, high",
    [
        ("imagenet/jit", "x", 0.8356, 0.8, 2.6, 0.9),
        ("imagenet/pixnerd", "v", -0.0044, 1.0, 2.4, 0.9),
        ("t2i/jit", "x", 0.8356, 0.8, 6.0, 1.0),
        ("t2i/pixnerd", "v", -0.0044, 1.0, 6.0, 1.0),
    ],
)
def test_methods(
    name: str, prediction: str, mean: float, std: float, scale: float, high: float
) -> None:
    """Effective law of the times, and the guidance of the best published row."""
    run = recipes.preset(name)
    spec = run.tokenizer.build(256).spec
    assert spec.tokens == 256
    assert run.objective.prediction == prediction
    assert run.objective.effective_mean(spec) == pytest.approx(mean, abs=5e-5)
    assert run.objective.time_std == std and run.sampling.shift_base is None
    guidance = run.sampling.guidance
    assert (guidance.scale, guidance.low, guidance.high) == (scale, 0.0, high)


def test_a_method_moves_unchanged() -> None:
    """What a method sets is the same on each of its tasks."""
    for method, recipe in recipes.METHODS.items():
        runs = [recipes.preset(f"{task}/{method}") for task in recipe.tasks]
        for run in runs[1:]:
            assert run.objective == runs[0].objective and run.backbone == runs[0].backbone
            assert run.optimiser == runs[0].optimiser
