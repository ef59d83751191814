"""A loss that couples samples: processes and micro-batches may hold more groups or fewer, and
change nothing; what would cut a group is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import final, ranks, tiny, trained, unclocked

from nanogen import dist
from nanogen.errors import ConfigError
from nanogen.run import build
from nanogen.train.diffusion import DiffusionTrainer

DRIFTING = (
    "objective=drifting",
    "objective.group=2",
    "sampling.steps=1",
    "sampling.guidance.high=1",
    "train.images=40",
    "train.log_every=8",
    "train.save_every=40",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    trained(tiny("animals/pixels-v", *DRIFTING), folder)
    return folder


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 2), (4, None)], ids=str)
def test_same_losses_and_weights(alone, tmp_path, world, micro):
    run = tiny("animals/pixels-v", *DRIFTING, f"machine.micro_batch={micro}")
    folder = tmp_path / "run"
    assert ranks(world, tmp_path / "store", lambda: trained(run, folder)) == [0] * world
    losses = [line["drift"] for line in unclocked(alone)]
    assert len(losses) == 5
    assert [line["drift"] for line in unclocked(folder)] == pytest.approx(losses, rel=1e-4)
    mine, theirs = final(alone), final(folder)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if not name.startswith("optimiser"):
            torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["train.batch=9"], r"train\.batch=9: would cut the groups of 2 images"),
        (["machine.micro_batch=3"], r"machine\.micro_batch=3"),
    ],
)
def test_a_run_that_cuts_groups_is_refused(more, named):
    with pytest.raises(ConfigError, match=named):
        build(tiny("animals/pixels-v", *DRIFTING, *more))


def test_processes_that_cut_groups_are_refused(monkeypatch):
    parts = build(tiny("animals/pixels-v", *DRIFTING))
    monkeypatch.setattr(dist, "world", lambda: 3)
    with pytest.raises(ConfigError, match="3 processes: would cut"):
        DiffusionTrainer(parts)
