"""Loss or gradient not finite: the step is skipped and counted; many in a row end the run."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import checkpoints, final, invoke, overrides, tiny, trained, unclocked, unlike

from nanogen.train import checkpoint
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.train.trainer import BAD_STEPS


def poison(monkeypatch, steps, value: float, where: str) -> None:
    """Make loss or gradient of the given steps `value`."""
    losses = DiffusionTrainer._losses

    def poisoned(self, batch):
        parts, weights = losses(self, batch)
        if self.progress.steps in steps and where == "loss":
            parts = {name: part * value for name, part in parts.items()}
        if self.progress.steps in steps and where == "gradient":
            for part in parts.values():
                part.register_hook(lambda gradient: gradient * value)
        return parts, weights

    monkeypatch.setattr(DiffusionTrainer, "_losses", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_is_skipped_and_counted(tmp_path, monkeypatch, where, value):
    run = tiny("animals/pixels-v", "train.images=48", "train.log_every=16")
    poison(monkeypatch, {2, 4, 5}, value, where)
    trained(run, tmp_path)
    lines = unclocked(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 1, 3]
    assert all(math.isfinite(v) for line in lines for v in line.values())
    # The last window holds no finite step, so its line says nothing of the loss.
    assert [line.get("flow") is None for line in lines] == [False, False, True]
    assert all(bool(value.isfinite().all()) for value in final(tmp_path).values())


def test_a_skipped_step_changes_nothing(tmp_path, monkeypatch):
    """Weights, averages and moments after a skipped last step are those from before it."""
    run = tiny("animals/pixels-v", "train.images=16", "train.save_every=8")
    poison(monkeypatch, {1}, math.nan, "gradient")
    trained(run, tmp_path)
    good, skipped = (tmp_path / "checkpoints" / f"{seen:012d}" for seen in (8, 16))
    for name in ("model", "ema", "optimiser"):
        file = f"{name}.safetensors"
        assert (good / file).read_bytes() == (skipped / file).read_bytes()


def test_many_bad_steps_end_the_run_with_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["train", "animals/pixels-v"]
    arguments += overrides("animals/pixels-v", "train.images=400", "--out", str(tmp_path))
    with monkeypatch.context() as patch:
        poison(patch, range(3, 1000), math.nan, "loss")
        assert invoke(patch, *arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(
        "error: flow=nan, loss=nan, gradient_norm=nan for 10 steps up to image 96"
    )
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None and int(newest.name) <= 8 * (3 + BAD_STEPS)
    assert all(bool(value.isfinite().all()) for value in final(tmp_path).values())


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path, monkeypatch):
    run = tiny("animals/pixels-v", "train.images=160", "train.log_every=160")
    poison(monkeypatch, range(0, 20, 2), math.nan, "loss")
    trained(run, tmp_path)
    assert unclocked(tmp_path)[-1]["skipped"] == 10


def test_resuming_between_bad_steps_is_bit_equal(tmp_path, monkeypatch):
    run = tiny("animals/pixels-v", "train.log_every=40")
    poison(monkeypatch, {1, 3, 6}, math.nan, "loss")
    trained(run, tmp_path / "plain")
    trained(run, tmp_path / "stopped", stop_at=32)
    trained(run, tmp_path / "stopped")
    assert unlike(final(tmp_path / "plain"), final(tmp_path / "stopped")) == []
    assert unclocked(tmp_path / "plain") == unclocked(tmp_path / "stopped")
    assert checkpoints(tmp_path / "stopped") == [48, 64]
    assert torch.tensor([line["skipped"] for line in unclocked(tmp_path / "plain")])[-1] == 3
