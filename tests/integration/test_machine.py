"""What a machine may be asked to do differently changes no result: compiling, recomputing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tiny import final, tiny, trained, unclocked, unlike
from torch import nn

from nanogen import config
from nanogen.errors import ConfigError
from nanogen.run import build
from nanogen.train.diffusion import DiffusionTrainer

SIZES = {
    "ddt": [],
    "lightning-dit": [
        "backbone=lightning-dit",
        "backbone.depth=2",
        "backbone.width=32",
        "backbone.heads=2",
    ],
}


@dataclass
class Traced:
    """What was compiled: modules, and the graphs that came of them."""

    modules: list[nn.Module] = field(default_factory=list)
    graphs: list[torch.fx.GraphModule] = field(default_factory=list)


@pytest.fixture
def traced(monkeypatch) -> Traced:
    """`Module.compile` traces as ever, but graphs run as they are: quicker to build."""
    found, original = Traced(), nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        found.graphs.append(graph)
        return graph.forward

    def compile(module: nn.Module) -> None:
        found.modules.append(module)
        original(module, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile)
    torch._dynamo.reset()
    return found


def test_only_the_backbone_is_compiled_and_names_stay(traced):
    plain = DiffusionTrainer(build(tiny("animals/pixels-v")))
    trainer = DiffusionTrainer(build(tiny("animals/pixels-v", "machine.compile=True")))
    assert traced.modules == [trainer.parts.model.backbone]
    for group, tensors in plain.groups().items():
        assert trainer.groups()[group].keys() == tensors.keys()
    assert trainer.network is trainer.parts.model


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["objective=meanflow", "objective.mixing=step"], ["objective=meanflow"]],
    ids=["flow", "mf-step", "mf-sample"],
)
def test_compiled_training_takes_the_same_steps(traced, tmp_path, more):
    """All that is drawn and decided is drawn and decided outside of compiled code: were it traced,
    every step would be the first.
    """
    run = tiny("animals/pixels-v", "train.log_every=8", *more)
    trained(run, tmp_path / "plain")
    assert not traced.graphs
    trained(config.override(run, ["machine.compile=True"]), tmp_path / "compiled")
    assert len(traced.modules) == 1 and traced.graphs
    lines = [unclocked(tmp_path / folder) for folder in ("plain", "compiled")]
    norms = [[line["gradient_norm"] for line in found] for found in lines]
    assert len(norms[0]) == 8 and len(set(norms[0])) == 8
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    plain, compiled = final(tmp_path / "plain"), final(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    for name in plain:
        if name.startswith(("model/", "ema/")):
            torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["flow", "meanflow"])
@pytest.mark.parametrize("backbone", SIZES)
def test_recomputed_training_is_bit_equal(tmp_path, backbone, objective):
    run = tiny("animals/pixels-v", f"objective={objective}", "train.images=24")
    run = config.override(run, SIZES[backbone])
    trained(run, tmp_path / "plain")
    parts = trained(config.override(run, ["machine.recompute=True"]), tmp_path / "again")
    assert parts.model.backbone.recompute is True
    assert unlike(final(tmp_path / "plain"), final(tmp_path / "again")) == []


def test_recomputing_keeps_less(monkeypatch):
    """Bytes that the forward pass saves for the backward pass."""

    def saved(*more: str) -> int:
        sizes = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        trainer = DiffusionTrainer(build(tiny("animals/pixels-v", "backbone.depth=4", *more)))
        trainer.parts.model.train()
        batch = trainer.task.batch(np.arange(8))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._losses(batch)
        return sum(sizes)

    assert saved("machine.recompute=True") < 0.5 * saved()


def test_a_backbone_that_cannot_is_named():
    parts = build(tiny("animals/pixels-v", "machine.recompute=True"))
    assert parts.run.identity().machine.recompute is False
    del parts.model.backbone.recompute
    with pytest.raises(ConfigError, match="machine.recompute=True: this backbone keeps all"):
        DiffusionTrainer(parts)
