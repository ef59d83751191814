"""Opening a trained run: what it was trained with stays, how it is used may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogen import config
from nanogen.errors import CheckpointError, ConfigError
from nanogen.recipes import preset
from nanogen.run_folder import CONFIG, open_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config.write(preset("animals/pixels-v"), tmp_path / CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    "override",
    ["seed=7", "name=animals/other", "budget=full", "train.batch=8", "objective.prediction=x"],
)
def test_a_record_cannot_claim_another_training(folder: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=f"^{override} does not fit this run: it was trained"):
        open_run(folder, overrides=["sampling.steps=2", override])


def test_how_a_run_is_used_may_change(folder: Path) -> None:
    used = ["sampling.guidance.scale=1.5", "evaluation.samples=300", "machine.device=cpu"]
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        open_run(folder, overrides=used)
