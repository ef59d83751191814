"""Killed without warning, in training and in saving: the same command goes on to the same bits."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
from tiny import (
    assert_same_run,
    checkpoints,
    final,
    forked,
    invoke,
    overrides,
    tiny,
    trained,
    unclocked,
    unlike,
)

from nanogen import files
from nanogen.errors import CheckpointError
from nanogen.run import Run
from nanogen.train import checkpoint

SHORT = ("train.images=48", "train.sample_every=16")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Run, Path]:
    run = tiny("animals/pixels-x", *SHORT)
    folder = tmp_path_factory.mktemp("plain")
    trained(run, folder)
    return run, folder


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.part*")]


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(plain, tmp_path, seed):
    run, folder = plain
    moments = random.Random(seed)

    def work(delay: float) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, delay)
        trained(run, tmp_path)

    for _ in range(5):
        # The alarm's default action ends the process as abruptly as a SIGKILL does.
        assert forked(lambda: work(moments.uniform(0.05, 0.6))) in (0, -signal.SIGALRM)
    trained(run, tmp_path)
    assert_same_run(folder, tmp_path)
    assert leftovers(tmp_path) == []


class Countdown:
    """Kills the process at the n-th call of any wrapped function, half-way through what it does."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def wrap(self, owner: object, name: str) -> None:
        plain = getattr(owner, name)

        def wrapped(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                if name == "save_file":
                    plain(*arguments, **options)
                    os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **options)

        setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    "call",
    [pytest.param(n, marks=[] if n % 3 == 0 else pytest.mark.slow) for n in range(1, 23)],
)
def test_kill_during_save_keeps_previous(plain, tmp_path, call):
    """Every file operation of the second save in turn: writing, flushing, hashing, renaming."""
    run, folder = plain
    trained(run, tmp_path, stop_at=16)
    before = final(tmp_path)

    def work() -> None:
        countdown = Countdown(call)
        for name in ("save_file", "_hash", "write_text"):
            countdown.wrap(checkpoint, name)
        countdown.wrap(files, "_flush")
        countdown.wrap(Path, "rename")
        countdown.wrap(shutil, "rmtree")
        trained(run, tmp_path)

    # Four hashes check the checkpoint that is resumed from, before anything is written.
    assert forked(work) == -signal.SIGKILL
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None
    if newest.name == f"{16:012d}":
        assert unlike(before, final(tmp_path)) == []
    trained(run, tmp_path)
    assert unlike(final(folder), final(tmp_path)) == []
    assert unclocked(folder) == unclocked(tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimiser.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_checkpoint_is_skipped_with_reason(plain, tmp_path, caplog, name, damage):
    run, folder = plain
    shutil.copytree(folder, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / f"{48:012d}" / name
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    trained(run, tmp_path / "run")
    assert f"{48:012d} is skipped: {name} is" in caplog.text
    # It was trained again from the one before, and takes the place of the broken one.
    assert_same_run(folder, tmp_path / "run")


def test_a_broken_list_of_hashes_is_noticed(plain, tmp_path, caplog):
    _, folder = plain
    for number, text in enumerate(["", "{", "[]", "null", '{"model.safetensors": 3}']):
        copy = tmp_path / str(number)
        shutil.copytree(folder / "checkpoints", copy)
        (copy / f"{48:012d}" / checkpoint.HASHES).write_text(text)
        assert checkpoint.latest(copy) == copy / f"{32:012d}"
    assert caplog.text.count("is skipped") == 5


def test_no_whole_checkpoint_is_an_error_and_not_a_fresh_start(plain, tmp_path):
    run, folder = plain
    shutil.copytree(folder, tmp_path / "run")
    for file in (tmp_path / "run").glob("checkpoints/*/ema.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints .* is whole"):
        trained(run, tmp_path / "run")
    assert len(unclocked(tmp_path / "run")) == len(unclocked(folder))


def test_stopping_behind_a_broken_checkpoint_loses_nothing(plain, tmp_path):
    """Newer broken checkpoints must not count among those that are kept."""
    _, folder = plain
    run = tiny("animals/pixels-x", *SHORT, "train.keep=1")
    trained(run, tmp_path, stop_at=16)
    (tmp_path / "checkpoints" / f"{48:012d}").mkdir()
    trained(run, tmp_path, stop_at=24)
    assert checkpoints(tmp_path) == [40, 48]
    trained(run, tmp_path)
    assert checkpoints(tmp_path) == [48]
    assert unlike(final(folder), final(tmp_path)) == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(tmp_path, keep):
    trained(tiny("animals/pixels-v", "train.images=64", f"train.keep={keep}"), tmp_path)
    assert checkpoints(tmp_path) == [16, 32, 48, 64][-keep:]


def test_disk_full_keeps_previous_and_says_so(plain, tmp_path, monkeypatch, capsys):
    run, folder = plain
    trained(run, tmp_path, stop_at=16)
    save = checkpoint.save_file

    def full(tensors, file):
        if file.name == "ema.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save(tensors, file)

    arguments = ["train", "animals/pixels-x", *overrides("animals/pixels-x", *SHORT)]
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "save_file", full)
        assert invoke(broken, *arguments, "--out", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: cannot save checkpoint")
    assert "No space left on device" in err
    assert checkpoints(tmp_path) == [16] and leftovers(tmp_path) == []
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path)) == 0
    assert_same_run(folder, tmp_path)


def test_a_real_limit_on_writing_keeps_previous(plain, tmp_path, capfd):
    """The same from the kernel: the library that writes tensors reports it in its own way."""
    run, folder = plain
    trained(run, tmp_path, stop_at=16)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.MonkeyPatch.context() as patch:
            arguments = overrides("animals/pixels-x", *SHORT)
            raise SystemExit(
                invoke(patch, "train", "animals/pixels-x", *arguments, "--out", str(tmp_path))
            )

    assert forked(work) == 1
    err = capfd.readouterr().err
    assert "error: cannot save checkpoint" in err and "Traceback" not in err
    assert checkpoints(tmp_path) == [16] and leftovers(tmp_path) == []
    trained(run, tmp_path)
    assert unlike(final(folder), final(tmp_path)) == []
