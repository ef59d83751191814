"""Two processes do what one does: the same batches, losses, weights, samples and records."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    WORDS,
    checkpoints,
    command,
    final,
    overrides,
    pictures,
    ranks,
    tiny,
    trained,
    unclocked,
    unlike,
)

from nanogen import dist, files, run_folder
from nanogen.bench import outcomes, record
from nanogen.data.loader import batches
from nanogen.errors import ConfigError
from nanogen.evaluation import measure, online
from nanogen.evaluation.subjects import DrawnByRun
from nanogen.metrics.base import Metric
from nanogen.run import build
from nanogen.train import checkpoint, loop
from nanogen.train.diffusion import DiffusionTrainer

TEN = ("train.images=80", "train.log_every=8", "train.sample_every=40", "train.save_every=40")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    trained(tiny("animals/pixels-v", *TEN), folder)
    return folder


def assert_close(a: Path, b: Path, tolerance: float) -> None:
    """Losses of every step, weights and averages; moments are sums of squares of small numbers."""
    losses = [line["loss"] for line in unclocked(a)]
    assert len(losses) >= 5
    assert [line["loss"] for line in unclocked(b)] == pytest.approx(losses, rel=tolerance)
    mine, theirs = final(a), final(b)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if not name.startswith("optimiser"):
            torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("world", "micro"), [(2, None), (1, 4), (2, 2), (2, 3), (3, None)], ids=str
)
def test_same_losses_and_weights(alone, tmp_path, world, micro):
    """1 x 8 against 2 x 4, 1 x (4 + 4), 2 x (2 + 2), 2 x (3 + 1) and 2 + 3 + 3."""
    run = tiny("animals/pixels-v", *TEN, f"machine.micro_batch={micro}")
    folder = tmp_path / "run"
    assert ranks(world, tmp_path / "store", lambda: trained(run, folder)) == [0] * world
    assert_close(alone, folder, 1e-5)
    assert list(pictures(folder)) == list(pictures(alone))


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("animals/pixels-x", ["optimiser=adamw"]),
        ("scenes/pixels-v", WORDS),
        # Nearly all micro-batches have no caption left, yet each must send its gradients.
        ("scenes/pixels-v", [*WORDS, "train.condition_dropout=0.9", "machine.micro_batch=1"]),
        ("animals/pixels-v", ["optimiser=gmuon", "optimiser.lr=0.01", "machine.micro_batch=2"]),
        ("animals/pixels-v", ["objective=meanflow", "objective.mixing=sample"]),
        ("animals/pixels-v", ["objective=meanflow", "objective.mixing=step"]),
        ("animals/pixels-v", ["terms.reg.encoder=animals-vit", "machine.micro_batch=2"]),
    ],
    ids=["x-adamw", "words-muon", "captions-dropped", "gmuon", "mf-sample", "mf-step", "reg"],
)
def test_other_kinds_of_run_agree_too(tmp_path, preset, more):
    run = tiny(preset, "train.images=40", "train.log_every=8", *more)
    trained(run, tmp_path / "one")
    assert ranks(2, tmp_path / "store", lambda: trained(run, tmp_path / "two")) == [0, 0]
    assert_close(tmp_path / "one", tmp_path / "two", 1e-5)


def test_averages_start_equal_on_every_rank(tmp_path):
    """Whatever weights a process has drawn, all start from those of the first."""

    def work() -> None:
        parts = build(tiny("animals/pixels-v"))
        with torch.no_grad():
            for p in parts.model.parameters():
                p.add_(dist.rank())
        save_file(DiffusionTrainer(parts).ema.values, tmp_path / f"{dist.rank()}.safetensors")

    assert ranks(2, tmp_path / "store", work) == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert unlike(first, second) == []
    fresh = dict(build(tiny("animals/pixels-v")).model.trained())
    assert unlike(first, {name: p.detach() for name, p in fresh.items()}) == []


def test_resume_on_other_world_size_keeps_global_order(alone, tmp_path):
    run, folder = tiny("animals/pixels-v", *TEN), tmp_path / "run"
    trained(run, folder, stop_at=40)
    assert ranks(2, tmp_path / "store", lambda: trained(run, folder)) == [0, 0]
    assert_close(alone, folder, 1e-5)


def test_one_reduction_of_gradients_in_each_step(tmp_path):
    def work() -> None:
        run = tiny("animals/pixels-v", "train.batch=16", "machine.micro_batch=2")
        trainer, calls = DiffusionTrainer(build(run)), []

        def counted(state, bucket):
            calls.append(bucket.buffer().numel())
            reduced = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
            return reduced.then(lambda done: done.value()[0] / dist.world())

        trainer.network.register_comm_hook(None, counted)
        stream = batches(trainer.parts.task, 0, 16, 2, 0)
        sent = []
        for _ in range(3):
            calls.clear()
            trainer.step(stream)
            sent.append(sum(calls))
        size = sum(p.numel() for p in trainer.parts.model.trained().values())
        assert sent == [size] * 3, (sent, size)

    assert ranks(2, tmp_path / "store", work) == [0, 0]


@pytest.mark.parametrize(
    ("preset", "metrics"),
    [
        ("animals/pixels-v", "accuracy-animals"),
        pytest.param(
            "animals/pixels-v",
            "pr-animals,fd-animals,is-animals",
            marks=pytest.mark.slow,
        ),
        pytest.param("scenes/pixels-v", "scene-eval", marks=pytest.mark.slow),
    ],
)
def test_evaluation_gives_the_same_records(tmp_path, preset, metrics):
    more = [] if preset.startswith("animals") else WORDS
    run = tiny(preset, "train.images=8", *more)
    trained(run, tmp_path / "run")
    samples = ["evaluation.samples=270", f"evaluation.metrics={metrics}", "sampling.batch=50"]

    def measured(out: str) -> None:
        opened = run_folder.open_run(tmp_path / "run", "ema", samples)
        subject = DrawnByRun(opened)
        measure.evaluate(subject, online.plan_of(opened.parts, tmp_path / out))

    measured("one")
    assert ranks(2, tmp_path / "store", lambda: measured("two")) == [0, 0]
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()} and len(names) >= 1
    for name in (name for name in names if name.endswith(outcomes.SUFFIX)):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name in (name for name in names if name.endswith(record.SUFFIX)):
        one, two = (json.loads((tmp_path / f / name).read_text()) for f in ("one", "two"))
        assert two["value"] == one["value"] and two["standard_error"] == one["standard_error"]
        assert two["n"] == one["n"]


def test_only_the_first_rank_writes(alone, tmp_path):
    run, folder = tiny("animals/pixels-v", *TEN), tmp_path / "run"

    def refuse(*_) -> None:
        raise AssertionError("a process other than the first wrote")

    def work() -> None:
        if dist.rank() > 0:
            for owner in (files, run_folder, checkpoint):
                for name in {"whole_file", "whole_folder", "write_text"} & set(vars(owner)):
                    setattr(owner, name, refuse)
            loop.Log = refuse
        trained(run, folder)

    assert ranks(2, tmp_path / "store", work) == [0, 0]
    assert_close(alone, folder, 1e-5)


def test_signal_on_one_rank_stops_all_and_saves_once(alone, tmp_path, capfd):
    run, folder = tiny("animals/pixels-v", *TEN), tmp_path / "run"

    def work() -> None:
        # The signal comes to the second process only.
        trained(run, folder, stop_at=24 if dist.rank() == 1 else None)

    assert ranks(2, tmp_path / "first", work) == [0, 0]
    assert "stopped by another process at 24 images" in capfd.readouterr().out
    assert checkpoints(folder) == [24]
    assert ranks(2, tmp_path / "second", lambda: trained(run, folder)) == [0, 0]
    assert_close(alone, folder, 1e-5)


def test_signal_on_one_rank_ends_an_evaluation_on_all(tmp_path):
    """Shares of 27 and 28 samples: the processes draw 6 and 6 batches of at most 5."""
    more = ["evaluation.metrics=accuracy-animals", "evaluation.samples=55", "sampling.batch=5"]
    run, folder = tiny("animals/pixels-v", "train.images=8", *more), tmp_path / "run"

    def work() -> None:
        update, calls = Metric.add, []

        def counted(self, name, amount):
            calls.append(name)
            if len(calls) == 5 and dist.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(self, name, amount)

        Metric.add = counted
        trained(run, folder)
        assert len(calls) < 12

    assert ranks(2, tmp_path / "store", work) == [0, 0]
    assert checkpoints(folder) == [8] and record.read(folder / "records") == []


def test_nan_on_one_rank_skips_the_step_on_all(tmp_path):
    run, folder = tiny("animals/pixels-v", "train.images=40"), tmp_path / "run"

    def work() -> None:
        losses, calls = DiffusionTrainer._losses, []

        def poisoned(self, batch):
            parts, weights = losses(self, batch)
            calls.append(None)
            bad = float("nan") if dist.rank() == 1 and len(calls) == 2 else 1.0
            return {name: part * bad for name, part in parts.items()}, weights

        DiffusionTrainer._losses = poisoned
        parts = trained(run, folder)
        weights = {name: p.detach() for name, p in parts.model.trained().items()}
        save_file(weights, tmp_path / f"{dist.rank()}.safetensors")

    assert ranks(2, tmp_path / "store", work) == [0, 0]
    assert unclocked(folder)[-1]["skipped"] == 1
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert unlike(first, second) == []
    assert all(bool(value.isfinite().all()) for value in first.values())


def test_more_processes_than_images_is_an_error(tmp_path):
    def work() -> None:
        with pytest.raises(ConfigError, match="train.batch=1 gives 2 processes less"):
            DiffusionTrainer(build(tiny("animals/pixels-v", "train.batch=1")))

    assert ranks(2, tmp_path / "store", work) == [0, 0]


@pytest.mark.slow
def test_torchrun(alone, tmp_path):
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v", *TEN)]
    done = command([*arguments, "--out", str(tmp_path)], processes=2)
    assert done.returncode == 0, done.stderr
    assert "= 2 processes" in done.stdout and done.stdout.count("done:") == 1
    assert_close(alone, tmp_path, 1e-5)
