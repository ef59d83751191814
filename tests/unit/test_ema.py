"""The average of the weights: its closed form, and lending it to a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nanogen.train.ema import Ema


def test_closed_form() -> None:
    """From 0, n steps at weight 1 bring the average to 1 - decay^n."""
    weight = nn.Parameter(torch.zeros(3))
    ema = Ema({"w": weight}, decay=0.9995)
    weight.data.fill_(1.0)
    for step in range(1, 1001):
        ema.update(step)
        if step in (1, 10, 1000):
            assert ema.values["w"].tolist() == pytest.approx([1 - 0.9995**step] * 3, rel=1e-4)


def test_warmup_forgets_the_initial_weights() -> None:
    """With decays (1 + s) / (10 + s) the share of the start after n steps is 9! n! / (n + 9)!."""
    weight = nn.Parameter(torch.zeros(1))
    ema = Ema({"w": weight}, decay=0.9995, warmup=True)
    weight.data.fill_(1.0)
    for step in range(5):
        ema.update(step)
    share = math.factorial(9) * math.factorial(5) / math.factorial(14)
    assert ema.values["w"].item() == pytest.approx(1 - share)
    # Late steps are those of a plain average.
    ema.values["w"].zero_()
    ema.update(10**6)
    assert ema.values["w"].item() == pytest.approx(0.0005, rel=1e-4)


def test_starts_at_the_weights_and_keeps_its_own_copy() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    ema = Ema({"w": weight}, decay=0.9)
    weight.data.add_(1.0)
    assert ema.values["w"].item() == 2.0
    ema.update(1)
    assert ema.values["w"].item() == pytest.approx(0.9 * 2 + 0.1 * 3)


def test_applied_lends_the_averages_and_gives_the_weights_back() -> None:
    layer = nn.Linear(4, 4)
    ema = Ema(dict(layer.named_parameters()), decay=0.5)
    own = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(3)
    trained = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert torch.equal(layer.weight, own)
        raise RuntimeError("inside")
    assert torch.equal(layer.weight, trained)
    assert torch.equal(ema.values["weight"], own)


def test_float32_whatever_the_weights_are() -> None:
    """A step of 0.0005 is below the resolution of bfloat16: an average in it would stand still."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    ema = Ema({"w": weight}, decay=0.9995)
    weight.data.fill_(1.0)
    for step in range(2000):
        ema.update(step)
    assert ema.values["w"].dtype == torch.float32
    assert ema.values["w"].item() == pytest.approx(1 - 0.9995**2000, rel=1e-3)
    with ema.applied():
        assert weight.dtype == torch.bfloat16
