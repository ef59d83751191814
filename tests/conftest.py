"""What all tests share: one thread, and the overrides that make a preset run in seconds."""

from __future__ import annotations

import pytest
import torch

from nanogen import config, recipes
from nanogen.run import Run

# transformers puts another torch.linspace in its place while it loads a model. Torch lists what
# makes tensors when it is first asked, and would not know its own for the rest of the process.
with torch.device("cpu"):
    torch.empty(0)

torch.set_num_threads(1)

TINY = [
    "backbone.depth=2",
    "backbone.width=32",
    "backbone.heads=2",
    "backbone.decoder_depth=1",
    "backbone.decoder_width=48",
    "backbone.decoder_heads=2",
    "train.images=64",
    "train.batch=8",
    "train.log_every=16",
    "train.save_every=32",
    "train.sample_every=0",
    "schedule.warmup=0",
    "sampling.steps=2",
    "sampling.batch=8",
    "evaluation.metrics=",
    "evaluation.samples=8",
    "machine.device=cpu",
]
"""overrides of an embedded preset: a model of a hundred thousand parameters, eight steps"""


def tiny_run(preset: str = "animals/pixels-v", *overrides: str) -> Run:
    """A preset of the embedded tasks at the size of a test."""
    return config.override(recipes.preset(preset), [*TINY, *overrides])


@pytest.fixture
def tiny() -> list[str]:
    """The overrides `TINY`, for the command line."""
    return list(TINY)
