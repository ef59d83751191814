"""Write tests/golden/backbone.safetensors: weights, inputs and outputs of tiny backbones.

    python scripts/make_golden.py

The file pins the numbers of the backbones: a change that moves them changes every checkpoint. Run
it only when that is meant. It holds `<variant>/weights/<name>`, `<variant>/in/<name>` and
`<variant>/out/<leaf, head or feature>` of four variants:

    label   DDT with an extra leaf
    text    DDT with masks of every kind
    told    DDT with all that it can be told, a further head, and a feature
    plain   LightningDiT with text, a further head, and a feature
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nanogen import rng
from nanogen.backbones.ddt import DdtConfig
from nanogen.backbones.lightning_dit import LightningDitConfig
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    State,
    TextCondition,
    Wiring,
)

FILE = Path(__file__).parents[1] / "tests" / "golden" / "backbone.safetensors"
CONFIG = DdtConfig(
    depth=2, width=8, heads=2, decoder_depth=1, decoder_width=12, decoder_heads=1, mlp_ratio=2.0
)
PLAIN = LightningDitConfig(depth=2, width=8, heads=2, mlp_ratio=2.0)
LATENT = LatentSpec(channels=2, height=4, width=6, patch=2)
LABELS, TEXT = ConditionSpec(classes=3), ConditionSpec(width=8, tokens=5)
KEYS = torch.arange(3)
TIMES = torch.tensor([0.02, 0.5, 1.0])
REAL = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])
"""full, partly and not at all: the last is a null caption"""


@dataclass(frozen=True)
class Variant:
    """A model with its weights drawn by name, and its inputs."""

    model: nn.Module
    state: State
    condition: Condition
    interval: Tensor | None = None
    scalars: dict[str, Tensor] = field(default_factory=dict)
    want: tuple[str, ...] = ()

    @torch.no_grad()
    def outputs(self) -> dict[str, Tensor]:
        found = self.model(
            self.state,
            TIMES,
            self.condition,
            interval=self.interval,
            scalars=self.scalars or None,
            want=self.want,
        )
        return {**found.state, **found.heads, **found.features}

    def inputs(self) -> dict[str, Tensor]:
        told = vars(self.condition) | {"t": TIMES, "interval": self.interval}
        given = {**self.state, **told, **self.scalars}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def variants() -> dict[str, Variant]:
    label = CONFIG.build(LATENT, LABELS, Wiring({"cls": 5}))
    text = CONFIG.build(LATENT, TEXT, Wiring())
    told = CONFIG.build(LATENT, LABELS, Wiring({"cls": 5}, True, ("scale",), {"base": 1}))
    plain = PLAIN.build(LATENT, TEXT, Wiring(heads={"base": 1}))
    image = {"image": rng.normal(0, "image", KEYS, (2, 4, 6))}
    with_cls = image | {"cls": rng.normal(0, "cls", KEYS, (5,))}
    features = rng.normal(0, "features", KEYS, (5, 8)) * REAL[..., None]
    ids, caption = LabelCondition(torch.tensor([0, 2, 3])), TextCondition(features, REAL)
    return {
        "label": Variant(drawn(label), with_cls, ids),
        "text": Variant(drawn(text), image, caption),
        "told": Variant(
            drawn(told),
            with_cls,
            ids,
            interval=torch.tensor([0.0, 0.2, 1.0]),
            scalars={"scale": torch.tensor([1.0, 2.5, 9.0])},
            want=("base", "block2"),
        ),
        "plain": Variant(drawn(plain), image, caption, want=("base", "block1")),
    }


def drawn(model: nn.Module) -> nn.Module:
    """Every weight from its name alone, none of them zero: the output is not trivial."""
    for name, p in model.named_parameters():
        noise = rng.normal(0, name, torch.zeros(1, dtype=torch.int64), tuple(p.shape))[0]
        scale = 0.3 if p.ndim > 1 else 0.1
        p.data = noise * scale + (1.0 if "norm" in name and p.ndim == 1 else 0.0)
    return model.eval()


def main() -> None:
    tensors: dict[str, Tensor] = {}
    for name, variant in variants().items():
        groups = {
            "weights": variant.model.state_dict(),
            "in": variant.inputs(),
            "out": variant.outputs(),
        }
        for group, values in groups.items():
            tensors |= {f"{name}/{group}/{key}": value for key, value in values.items()}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in tensors.items()}, FILE)
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
