"""Write tests/golden/backbone.safetensors: a tiny DDT's weights, inputs and outputs.

    python scripts/make_golden.py

The file pins the numbers of the backbone: a change that moves them changes every checkpoint. Run it
only when that is meant. It holds two variants, `label` with an extra leaf and `text` with masks of
every kind: `<variant>/weights/<name>`, `<variant>/in/<name>` and `<variant>/out/<leaf>`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanogen import rng
from nanogen.backbones.ddt import Ddt, DdtConfig
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
LATENT = LatentSpec(channels=2, height=4, width=6, patch=2)
KEYS = torch.arange(3)
REAL = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])
"""full, partly and not at all: the last is a null caption"""


def variants() -> dict[str, tuple[Ddt, State, Condition]]:
    """The models with their weights drawn by name, and their inputs."""
    label = CONFIG.build(LATENT, ConditionSpec(classes=3), {"cls": 5})
    text = CONFIG.build(LATENT, ConditionSpec(width=8, tokens=5), Wiring())
    image = {"image": rng.normal(0, "image", KEYS, (2, 4, 6))}
    features = rng.normal(0, "features", KEYS, (5, 8)) * REAL[..., None]
    return {
        "label": (
            drawn(label),
            image | {"cls": rng.normal(0, "cls", KEYS, (5,))},
            LabelCondition(torch.tensor([0, 2, 3])),
        ),
        "text": (drawn(text), image, TextCondition(features, REAL)),
    }


def drawn(model: Ddt) -> Ddt:
    """Every weight from its name alone, none of them zero: the output is not trivial."""
    for name, p in model.named_parameters():
        noise = rng.normal(0, name, torch.zeros(1, dtype=torch.int64), tuple(p.shape))[0]
        scale = 0.3 if p.ndim > 1 else 0.1
        p.data = noise * scale + (1.0 if "norm" in name and p.ndim == 1 else 0.0)
    return model.eval()


def times() -> Tensor:
    return torch.tensor([0.02, 0.5, 1.0])


def main() -> None:
    tensors: dict[str, Tensor] = {}
    for variant, (model, state, condition) in variants().items():
        with torch.no_grad():
            outputs = model(state, times(), condition).state
        fields = {name: value for name, value in vars(condition).items()}
        groups = {"weights": model.state_dict(), "in": state | fields | {"t": times()}}
        for group, values in (groups | {"out": outputs}).items():
            tensors |= {f"{variant}/{group}/{name}": value for name, value in values.items()}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in tensors.items()}, FILE)
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
