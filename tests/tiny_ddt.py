"""A small DDT and a small LightningDiT with their inputs, for the tests of the backbones."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from nanogen.backbones.ddt import Ddt, DdtConfig
from nanogen.backbones.lightning_dit import LightningDitConfig
from nanogen.types import Condition, ConditionSpec, LatentSpec, State, TextCondition, Wiring

SMALL = DdtConfig(
    depth=2, width=32, heads=2, decoder_depth=1, decoder_width=48, decoder_heads=2, mlp_ratio=4.0
)
PLAIN = LightningDitConfig(depth=3, width=32, heads=2, mlp_ratio=4.0)
LATENT = LatentSpec(channels=4, height=8, width=8, patch=2)
LABELS, TEXT = ConditionSpec(classes=10), ConditionSpec(width=32, tokens=16)

Model = TypeVar("Model", bound=nn.Module)


def build(condition: ConditionSpec = LABELS, leaves: dict[str, int] | None = None) -> Ddt:
    torch.manual_seed(0)
    return SMALL.build(LATENT, condition, Wiring(leaves or {}))


def awake(model: Model) -> Model:
    """With what starts at zero moved away from it: at initialisation all outputs are 0."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if not p.any():
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    return model.eval()


def inputs(count: int = 3, **leaves: int) -> State:
    generator = torch.Generator().manual_seed(2)
    state = {"image": torch.randn(count, 4, 8, 8, generator=generator)}
    return state | {
        name: torch.randn(count, width, generator=generator) for name, width in leaves.items()
    }


def caption(lengths: tuple[int, ...], total: int = 16) -> TextCondition:
    features = torch.randn(len(lengths), total, 32, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(total) < torch.tensor(lengths)[:, None]
    return TextCondition(features * mask[..., None], mask)


TIMES = torch.tensor([0.1, 0.5, 0.9])


def run(model: nn.Module, state: State, condition: Condition) -> State:
    with torch.no_grad():
        return model(state, TIMES[: len(condition)], condition).state


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()
