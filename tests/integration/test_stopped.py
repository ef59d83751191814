"""Asked to stop by a signal or a time limit: save, say so, status 0; the same command goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tiny import (
    checkpoints,
    final,
    invoke,
    overrides,
    pictures,
    start,
    tiny,
    trained,
    unlike,
    wait_for,
)

from nanogen import run_folder
from nanogen.evaluation import measure
from nanogen.evaluation.online import measured
from nanogen.run import build
from nanogen.sampling.generate import Sampler
from nanogen.train import loop
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.train.loop import train

WATCHED = (
    "evaluation.metrics=accuracy-animals",
    "evaluation.samples=50",
    "evaluation.every=24",
    "sampling.batch=10",
    "train.images=48",
    "train.sample_every=24",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = tiny("animals/pixels-v", *WATCHED)
    folder = tmp_path_factory.mktemp("plain")
    trained(run, folder)
    return run, folder


def signal_at_draw(monkeypatch, number: int, which: signal.Signals) -> None:
    """Send a signal to this process while batch `number` of samples is being drawn."""
    draw, calls = Sampler.draw, []

    def counted(self, request):
        calls.append(request)
        if len(calls) == number:
            os.kill(os.getpid(), which)
        return draw(self, request)

    monkeypatch.setattr(Sampler, "draw", counted)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_during_training_saves_and_says_so(plain, tmp_path, monkeypatch, capsys, which):
    run, folder = plain
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v", *WATCHED)]
    arguments += ["--out", str(tmp_path)]
    step = DiffusionTrainer.step

    def interrupted(self, stream):
        if self.progress.steps == 2:
            os.kill(os.getpid(), which)
        return step(self, stream)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTrainer, "step", interrupted)
        assert invoke(patch, *arguments) == 0
    said = capsys.readouterr().out
    assert f"stopped by {which.name} at 24 images; the same command continues" in said
    assert "done" not in said
    assert checkpoints(tmp_path) == [16, 24]
    assert invoke(monkeypatch, *arguments) == 0
    assert "done" in capsys.readouterr().out
    assert unlike(final(folder), final(tmp_path)) == []


# A grid takes four batches of samples; then the evaluation takes five.
@pytest.mark.parametrize(
    ("batch", "at"),
    [(2, 24), (6, 24), (11, 48), (16, 48)],
    ids=["grid", "evaluation", "last grid", "last evaluation"],
)
def test_signal_during_samples_and_evaluation_is_not_lost(
    plain, tmp_path, monkeypatch, capsys, batch, at
):
    run, folder = plain
    with monkeypatch.context() as patch:
        signal_at_draw(patch, batch, signal.SIGTERM)
        trained(run, tmp_path)
    assert f"stopped by SIGTERM at {at} images" in capsys.readouterr().out
    assert checkpoints(tmp_path)[-1] == at
    assert not measured(run, tmp_path / "records", at)
    trained(run, tmp_path)
    assert_pictures_and_records_equal(folder, tmp_path)
    assert unlike(final(folder), final(tmp_path)) == []


def assert_pictures_and_records_equal(a, b) -> None:
    assert pictures(a) == pictures(b)
    names = {path.name for path in (a / "records").iterdir()}
    assert names == {path.name for path in (b / "records").iterdir()}
    assert len(names) == 2


def test_what_is_measured_is_not_measured_again(plain, monkeypatch):
    run, folder = plain
    calls = []
    monkeypatch.setattr(measure, "evaluate", lambda *given: calls.append(given))
    trained(run, folder)
    assert calls == []


def test_time_limit_stops_and_continues(plain, tmp_path, monkeypatch, capsys):
    run, folder = plain
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v", *WATCHED)]
    arguments += ["--out", str(tmp_path)]
    assert invoke(monkeypatch, *arguments, "--max-minutes", "0") == 0
    assert "stopped by the time limit at 8 images" in capsys.readouterr().out
    assert invoke(monkeypatch, *arguments, "--max-minutes", "10") == 0
    assert_pictures_and_records_equal(folder, tmp_path)
    assert unlike(final(folder), final(tmp_path)) == []


def test_the_second_interrupt_ends_at_once(tmp_path, monkeypatch, capsys):
    # A shell in the background ignores interrupts, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = tiny("animals/pixels-v")
    parts = build(run)
    run_folder.prepare(run, tmp_path, fresh=False)

    def twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DiffusionTrainer, "_accumulate", twice)
    with pytest.raises(KeyboardInterrupt):
        train(DiffusionTrainer(parts), tmp_path, loop.Hooks())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_to_the_whole_group_spares_the_readers(tmp_path):
    """A scheduler signals every process of a job: the trainer must still get its data and save."""
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v", "train.images=8000")]
    arguments += ["machine.workers=1", "train.log_every=8", "--out", str(tmp_path)]
    process = start(arguments)
    log = tmp_path / "log.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size > 0, process, 60)
    os.killpg(process.pid, signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped by SIGTERM" in out and "Traceback" not in err
    assert time.monotonic() - began < 20
    assert len(checkpoints(tmp_path)) >= 1
