"""The same command resumes, and nothing shows that it stopped."""

from __future__ import annotations

from pathlib import Path

import chz
import pytest
from tiny import (
    WORDS,
    assert_same_run,
    checkpoints,
    final,
    pictures,
    tiny,
    trained,
    unclocked,
    unlike,
)

from nanogen import config
from nanogen.errors import CheckpointError
from nanogen.run import Run

MEANFLOW = (
    "objective=meanflow",
    "objective.kappa=0.5",
    "sampling.steps=1",
    "sampling.guidance.scale=1",
    "sampling.guidance.high=1",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Run, Path]:
    """A run that was never stopped."""
    run = tiny("animals/pixels-v", "train.sample_every=32")
    folder = tmp_path_factory.mktemp("plain")
    trained(run, folder)
    return run, folder


@pytest.mark.parametrize("stop_at", [8, 16, 40, 56], ids=lambda seen: f"stop-{seen}")
def test_resume_is_bit_equal(plain, tmp_path, stop_at):
    """Stops before the first checkpoint, on one, and between two log lines."""
    run, folder = plain
    trained(run, tmp_path, stop_at)
    assert checkpoints(tmp_path)[-1] == stop_at
    trained(run, tmp_path)
    assert unlike(final(folder), final(tmp_path)) == []
    assert unclocked(folder) == unclocked(tmp_path)
    assert pictures(folder) == pictures(tmp_path)


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("animals/pixels-v", ["optimiser=adamw"]),
        ("animals/pixels-x", ["optimiser=muon"]),
        ("animals/pixels-x", ["optimiser=adamw"]),
        ("scenes/pixels-v", ["optimiser=muon", *WORDS]),
        ("scenes/pixels-x", ["optimiser=adamw", *WORDS]),
        ("animals/pixels-v", [*MEANFLOW, "terms.reg=on", "terms.reg.encoder=animals-vit"]),
        ("animals/pixels-perceptual", ["optimiser=gmuon"]),
    ],
    ids=["v-adamw", "x-muon", "x-adamw", "words-muon", "words-adamw", "meanflow-reg", "pdino"],
)
def test_every_kind_of_run_resumes_bit_equal(tmp_path, preset, more):
    run = tiny(preset, "train.images=40", "train.sample_every=40", *more)
    trained(run, tmp_path / "plain")
    trained(run, tmp_path / "stopped", stop_at=24)
    assert checkpoints(tmp_path / "stopped")[-1] == 24
    trained(run, tmp_path / "stopped")
    assert_same_run(tmp_path / "plain", tmp_path / "stopped")


def test_words_are_trained_averaged_and_stored(tmp_path):
    # Gradients reach the words once the head and the modulations have left zero.
    run = tiny("scenes/pixels-v", "train.images=48", *WORDS)
    parts = trained(run, tmp_path)
    stored = final(tmp_path)
    names = [name for name in stored if name.startswith("ema/learned_conditioner")]
    assert len(names) == 2
    assert any(not stored[name].equal(stored[name.replace("ema/", "model/")]) for name in names)
    assert sum(p.numel() for p in parts.model.trained().values()) == sum(
        v.numel() for k, v in stored.items() if k.startswith("ema/")
    )


def test_machine_settings_may_change_on_resume(plain, tmp_path):
    """Micro-batches change the order of sums only; readers change nothing at all."""
    run, folder = plain
    trained(run, tmp_path / "workers", stop_at=24)
    machine = chz.replace(run.machine, workers=1)
    trained(chz.replace(run, machine=machine), tmp_path / "workers")
    assert unlike(final(folder), final(tmp_path / "workers")) == []

    trained(run, tmp_path / "micro", stop_at=24)
    machine = chz.replace(run.machine, micro_batch=3)
    trained(chz.replace(run, machine=machine), tmp_path / "micro")
    plain_loss = [line["flow"] for line in unclocked(folder)]
    assert [line["flow"] for line in unclocked(tmp_path / "micro")] == pytest.approx(
        plain_loss, rel=1e-4
    )


def test_a_finished_run_is_left_alone(plain, tmp_path):
    run, folder = plain
    before = {p: p.stat().st_mtime_ns for p in folder.glob("checkpoints/*/*")}
    trained(run, folder)
    assert {p: p.stat().st_mtime_ns for p in folder.glob("checkpoints/*/*")} == before


def test_a_grid_that_a_kill_prevented_is_drawn_after_the_resume(plain, tmp_path):
    """A kill may fall between a checkpoint and the samples that are due with it."""
    run, folder = plain
    trained(run, tmp_path, stop_at=32)
    assert pictures(tmp_path) == {}
    trained(run, tmp_path)
    assert pictures(tmp_path) == pictures(folder)
    assert list(pictures(folder)) == ["000000000032.png", "000000000064.png"]


def test_another_run_in_the_folder_is_refused_and_nothing_is_lost(plain):
    run, folder = plain
    before = final(folder)
    other = config.override(run, ["seed=43", "backbone.depth=2"])
    with pytest.raises(CheckpointError, match="backbone.depth: 1 there, 2 here, seed: 42 there"):
        trained(other, folder)
    assert unlike(before, final(folder)) == []


def test_evaluation_and_samples_do_not_disturb_training(plain, tmp_path):
    run, folder = plain
    watched = config.override(
        run,
        [
            "evaluation.metrics=accuracy-animals",
            "evaluation.samples=50",
            "evaluation.every=24",
            "train.sample_every=8",
        ],
    )
    trained(watched, tmp_path)
    assert unlike(final(folder), final(tmp_path)) == []
    assert unclocked(folder) == unclocked(tmp_path)
    assert len(pictures(tmp_path)) == 8
    assert len(list((tmp_path / "records").glob("*.json"))) == 3
