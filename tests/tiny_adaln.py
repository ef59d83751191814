"""Small JiT and PixNerd with their inputs, for the tests of both."""

from __future__ import annotations

import torch

from nanogen.backbones.adaln import AdalnTransformer
from nanogen.backbones.jit import JitConfig
from nanogen.backbones.pixnerd import PixnerdConfig
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    State,
    TextCondition,
    Wiring,
)

LATENT = LatentSpec(channels=3, height=8, width=12, patch=4)
LABELS, TEXT = ConditionSpec(classes=10), ConditionSpec(width=8, tokens=6)
JIT = JitConfig(depth=3, width=32, heads=2, bottleneck=8, context_tokens=5)
JIT_OF_TEXT = JitConfig(depth=3, width=32, heads=2, bottleneck=8)
PIXNERD = PixnerdConfig(depth=2, width=32, heads=2, field_depth=2, field_width=8)
ALL = Wiring(leaves={"cls": 6}, interval=True, scalars=("scale",), heads={"base": 2})
TIMES = torch.tensor([0.1, 0.5, 0.9])


def configs(condition: ConditionSpec) -> dict[str, JitConfig | PixnerdConfig]:
    return {"jit": JIT if condition.classes else JIT_OF_TEXT, "pixnerd": PIXNERD}


def build(
    name: str, condition: ConditionSpec = LABELS, wiring: Wiring | None = None
) -> AdalnTransformer:
    torch.manual_seed(0)
    return configs(condition)[name].build(LATENT, condition, wiring or Wiring())


def awake(model: AdalnTransformer) -> AdalnTransformer:
    """With all weights moved away from where they start, in double precision."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator) * 0.1
    return model.double().eval()


def inputs(wiring: Wiring | None = None, count: int = 3) -> State:
    generator = torch.Generator().manual_seed(2)
    shapes = {"image": (LATENT.channels, LATENT.height, LATENT.width)}
    shapes |= {name: (width,) for name, width in (wiring or Wiring()).leaves.items()}
    return {
        name: torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def caption(*lengths: int) -> TextCondition:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(len(lengths), 6, 8, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    return TextCondition(features * mask[..., None], mask)


def given(condition: ConditionSpec) -> Condition:
    if condition.classes:
        return LabelCondition(torch.tensor([0, 3, 10]))
    return caption(6, 2, 0)


def told(wiring: Wiring) -> dict:
    """The numbers that a backbone of this wiring is called with."""
    numbers = torch.tensor([0.0, 0.3, 0.8], dtype=torch.float64)
    return {
        "interval": numbers if wiring.interval else None,
        "scalars": {name: 1 + 5 * numbers for name in wiring.scalars} or None,
    }


def run(model: AdalnTransformer, condition: Condition) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs(), TIMES.double(), condition).state["image"]
