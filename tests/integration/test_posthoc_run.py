"""Averages whose length is chosen after training: kept, resumed, reconstructed, drawn from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import assert_same_run, checkpoints, final, invoke, ranks, tiny, trained, unlike

from nanogen import config, run_folder
from nanogen.bench import record
from nanogen.errors import CheckpointError, ConfigError
from nanogen.run import Run
from nanogen.train import posthoc
from nanogen.train.power_ema import exponent

KEPT = ("train.posthoc=0.05,0.10", "train.posthoc_every=8", "train.keep=1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Run, Path]:
    run, folder = tiny("animals/pixels-v", *KEPT), tmp_path_factory.mktemp("plain")
    trained(run, folder)
    return run, folder


def snapshots(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "averages").glob("[0-9]*"))}


def test_snapshots_outlive_pruning(plain):
    run, folder = plain
    assert checkpoints(folder) == [64]
    assert list(snapshots(folder)) == [f"{seen:012d}.safetensors" for seen in range(8, 65, 8)]
    newest = {
        f"posthoc/{name}": value
        for name, value in load_file(folder / "averages" / "000000000064.safetensors").items()
    }
    stored = {name: value for name, value in final(folder).items() if name.startswith("posthoc/")}
    assert unlike(stored, newest) == []
    weights = [name for name in final(folder) if name.startswith("ema/")]
    assert len(stored) == 2 * len(weights)


def test_averages_are_the_weighted_sums_of_the_weights(tmp_path):
    """The weights after each step, from a run that saves all of them."""
    run = tiny(
        "animals/pixels-v", *KEPT[:2], "train.images=40", "train.save_every=8", "train.keep=9"
    )
    trained(run, tmp_path)
    steps = [
        load_file(tmp_path / "checkpoints" / f"{seen:012d}" / "model.safetensors")
        for seen in range(8, 41, 8)
    ]
    for width in (0.05, 0.1):
        edges = (torch.arange(6, dtype=torch.float64) / 5) ** (exponent(width) + 1)
        for name in ("backbone.blocks.0.attn.q.weight", "backbone.final_layer.linear.bias"):
            expected = sum(
                share * one[name].double() for share, one in zip(edges.diff(), steps, strict=True)
            )
            found = final(tmp_path)[f"posthoc/{width:g}/{name}"]
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stop_at", [8, 24])
def test_resume_is_bit_equal(plain, tmp_path, stop_at):
    run, folder = plain
    trained(run, tmp_path, stop_at)
    trained(run, tmp_path)
    assert_same_run(folder, tmp_path)
    assert snapshots(folder) == snapshots(tmp_path)


def test_a_snapshot_is_there_if_a_later_checkpoint_is(plain, tmp_path, monkeypatch):
    """A kill while the checkpoint of the same moment is written."""
    run, _ = plain

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanogen.train.loop._save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(run, tmp_path)
    assert not checkpoints(tmp_path)
    assert list(snapshots(tmp_path)) == ["000000000008.safetensors", "000000000016.safetensors"]


def test_two_processes_keep_the_same(plain, tmp_path):
    run, folder = plain
    assert ranks(2, tmp_path / "store", lambda: trained(run, tmp_path / "two")) == [0, 0]
    one, two = final(folder), final(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        if name.startswith("posthoc/"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5)
    assert snapshots(folder).keys() == snapshots(tmp_path / "two").keys()


def test_other_results_do_not_change(plain, tmp_path):
    """Weights, averages and moments are those of the same run without them."""
    _, folder = plain
    trained(tiny("animals/pixels-v", "train.keep=1"), tmp_path)
    found = {
        name: value for name, value in final(folder).items() if not name.startswith("posthoc/")
    }
    assert unlike(final(tmp_path), found) == []
    assert not (tmp_path / "averages").exists()


def test_what_another_run_is(plain):
    """Other widths are other results; when snapshots are taken is a habit."""
    run, folder = plain
    assert config.override(run, ["train.posthoc_every=16"]).identity() == run.identity()
    other = config.override(run, ["train.posthoc=0.05"])
    with pytest.raises(CheckpointError, match=r"train.posthoc: \(0.05, 0.1\) there"):
        run_folder.prepare(other, folder, fresh=False)


def test_fresh_removes_them(plain, tmp_path):
    run, folder = plain
    shutil.copytree(folder, tmp_path / "run")
    run_folder.prepare(run, tmp_path / "run", fresh=True)
    assert not (tmp_path / "run" / "averages").exists()


@pytest.fixture
def run(plain, tmp_path) -> Path:
    """A copy of the run folder to write into."""
    return Path(shutil.copytree(plain[1], tmp_path / "run"))


def test_reconstruct_draw_and_measure(run, tmp_path, monkeypatch, capsys):
    assert invoke(monkeypatch, "ema", str(run), "--width", "0.070") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run}/averages/posthoc-0.07.safetensors: from 8 snapshots, ")
    assert out.endswith("% from the exact profile; use it with --weights posthoc-0.07\n")
    pictures = tmp_path / "pictures"
    sample = ["sample", str(run), "--classes", "1", "--seeds", "0", "--out", str(pictures)]
    assert invoke(monkeypatch, *sample, "--weights", "posthoc-0.070") == 0
    about = json.loads((pictures / "samples.json").read_text())
    assert (about["weights"], about["seen"]) == ("posthoc-0.07", 64)
    measure = ["eval", str(run), "--metrics", "accuracy-animals", "evaluation.samples=50"]
    assert invoke(monkeypatch, *measure, "--weights", "posthoc-0.07", "--json") == 0
    (one,) = record.read(run / "records")
    assert (one.weights, one.seen) == ("posthoc-0.07", 64)


def test_a_tracked_width_is_given_back(run):
    posthoc.reconstruct(run, 0.05)
    model = run_folder.open_run(run, "posthoc-0.05").parts.model
    stored = final(run)
    for name, p in model.trained().items():
        torch.testing.assert_close(p.data, stored[f"posthoc/0.05/{name}"], rtol=1e-6, atol=1e-6)
    raw = run_folder.open_run(run, "raw").parts.model
    assert any(not p.equal(raw.trained()[name]) for name, p in model.trained().items())


def test_user_errors(run, tmp_path, monkeypatch, capsys):
    cases = {
        ("ema", str(run), "--width", "0.4"): "--width 0.4: must lie between 0 and 0.2887",
        ("ema", str(tmp_path), "--width", "0.07"): "kept no averages; train with train.posthoc=",
        ("sample", str(run), "--weights", "posthoc-0.06"): f"nanogen ema {run} --width 0.06",
        ("sample", str(run), "--weights", "posthoc"): "choose ema or raw, or posthoc-0.07 after",
    }
    for arguments, text in cases.items():
        assert invoke(monkeypatch, *arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and text in err, err


def test_no_room_for_a_snapshot_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(posthoc, "save_file", full)
    more = ["train.posthoc=0.1", "train.images=16", "train.batch=8", "evaluation.metrics="]
    arguments = ["train", "animals/pixels-v", *more, "schedule.warmup=0", "machine.device=cpu"]
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert "cannot save averages" in err and "No space left" in err
    assert list(tmp_path.glob("averages/*")) == []


def test_settings_of_the_command_line():
    run = tiny("animals/pixels-v", "train.posthoc=0.1")
    assert run.train.posthoc == (0.1,)
    with pytest.raises(ConfigError, match="train.posthoc_every=8 has no effect"):
        tiny("animals/pixels-v", "train.posthoc_every=8")
