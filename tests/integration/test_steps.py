"""Steps of training by hand: the clipped gradient of the mean loss, the scheduled rate of each
group, then the average.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny

from nanogen.run import build
from nanogen.train.diffusion import DiffusionTrainer

RATES = {"muon": (0.02, 0.003), "adamw": (0.003,)}
"""of the groups: matrices, then the rest"""
FACTORS = (0.5, 1.0, 1.0, 0.5)
"""of four steps: up for two, then down to 0"""


@pytest.mark.parametrize("ema_warmup", [False, True])
@pytest.mark.parametrize("optimiser", RATES)
def test_steps_by_hand(optimiser: str, ema_warmup: bool) -> None:
    rates = RATES[optimiser]
    own = [f"optimiser.lr={rates[0]}"] + [f"optimiser.adamw.lr={rate}" for rate in rates[1:]]
    fields = ["train.images=32", "schedule.warmup=16", "train.clip=0.3", "train.ema=0.7"]
    fields += [f"optimiser={optimiser}", *own, f"train.ema_warmup={ema_warmup}"]
    run = tiny("animals/pixels-v", *fields)
    trainer, parts = DiffusionTrainer(build(run)), build(run)
    batches = [trainer.task.batch(np.arange(start, start + 8)) for start in (0, 8, 16, 24)]
    stream = iter(batches)
    seen = [trainer.step(stream) for _ in batches]

    weights, norms = parts.model.trained(), []
    steps = run.optimiser.build(weights)
    average = {name: p.detach().clone() for name, p in weights.items()}
    for number, (batch, factor) in enumerate(zip(batches, FACTORS, strict=True)):
        losses, _ = parts.model(batch, parts.latents(batch), parts.conditioner.encode(batch))
        losses["flow"].mean().backward()
        norm = torch.stack([p.grad.square().sum() for p in weights.values()]).sum().sqrt()
        norms.append(norm.item())
        for p in weights.values():
            p.grad *= min(1.0, 0.3 / norm.item())
        for group, rate in zip(steps.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        steps.step()
        steps.zero_grad()
        decay = min(0.7, (1 + number) / (10 + number)) if ema_warmup else 0.7
        for name, p in weights.items():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    assert max(norms) > 0.3, "nothing was clipped"
    assert [values["gradient_norm"] for values in seen] == pytest.approx(norms, rel=1e-4)
    assert [values["learning_rate_factor"] for values in seen] == list(FACTORS)
    for name, p in trainer.parts.model.trained().items():
        torch.testing.assert_close(p, weights[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trainer.ema.values[name], average[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_the_forward_pass(precision: str) -> None:
    """Weights stay in float32, and so do the losses."""
    trainer = DiffusionTrainer(build(tiny("animals/pixels-v", f"train.precision={precision}")))
    kinds = []
    block = trainer.parts.model.backbone.blocks[0].mlp.w1
    block.register_forward_hook(lambda _, given, found: kinds.append(found.dtype))
    losses, _ = trainer._losses(trainer.task.batch(np.arange(8)))
    assert kinds == [torch.bfloat16 if precision == "bf16" else torch.float32]
    assert losses["flow"].dtype == torch.float32
    assert {p.dtype for p in trainer.parts.model.trained().values()} == {torch.float32}
