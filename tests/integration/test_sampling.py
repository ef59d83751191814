"""`nanogen sample` and `nanogen eval` on trained runs, and what they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import WORDS, invoke, tiny, trained

from nanogen.bench import record
from nanogen.run_folder import open_run
from nanogen.sampling.grid import picture
from nanogen.types import Request


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    trained(tiny("animals/pixels-v", "train.images=64"), folder / "animals")
    trained(tiny("scenes/pixels-x", "train.images=32", *WORDS), folder / "scenes")
    return folder


def drawn(folder: Path) -> dict[tuple[str, int], bytes]:
    """(caption, seed) -> the bytes of the file."""
    found = json.loads((folder / "samples.json").read_text())["samples"]
    files = {path.name for path in folder.glob("0*.png")}
    assert files == {row["file"] for row in found}
    return {(row["caption"], row["seed"]): (folder / row["file"]).read_bytes() for row in found}


def test_classes_by_number_and_name(runs, tmp_path, monkeypatch, capsys):
    run, out = str(runs / "animals"), str(tmp_path / "out")
    assert (
        invoke(monkeypatch, "sample", run, "--classes", "0-1,cat", "--seeds", "3,5-6", "--out", out)
        == 0
    )
    assert capsys.readouterr().out == f"{out}: 9 images, grid.png and samples.json\n"
    names = open_run(runs / "animals").parts.task.source.classes
    assert list(drawn(tmp_path / "out")) == [
        (name, seed) for name in (names[0], names[1], "cat") for seed in (3, 5, 6)
    ]
    about = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (about["run"], about["seen"], about["weights"]) == ("animals/pixels-v", 64, "ema")
    assert about["sampling"]["steps"] == 2 and about["sampling"]["guidance"]["scale"] == 3.0
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        # A row for each class, a column for each seed.
        assert 3 * 96 < grid.width < 4 * 96 and grid.height > 3 * 96


def test_defaults_draw_into_the_run_and_replace_what_was_there(runs, monkeypatch):
    run = runs / "animals"
    assert invoke(monkeypatch, "sample", str(run), "--seeds", "0-1") == 0
    assert len(drawn(run / "drawn")) == 20
    assert invoke(monkeypatch, "sample", str(run), "--seeds", "0", "--classes", "4") == 0
    assert len(drawn(run / "drawn")) == 1


def test_prompts_from_a_file_and_from_the_line(runs, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red cat\n\n  three dogs \nein grüner Igel\n".encode())
    run, out = str(runs / "scenes"), tmp_path / "out"
    assert (
        invoke(
            monkeypatch, "sample", run, "--prompts", str(file), "--seeds", "7", "--out", str(out)
        )
        == 0
    )
    found = drawn(out)
    assert list(found) == [("a red cat", 7), ("three dogs", 7), ("ein grüner Igel", 7)]
    other = tmp_path / "other"
    assert (
        invoke(
            monkeypatch,
            "sample",
            run,
            "--prompt",
            "three dogs",
            "--seeds",
            "6-7",
            "--out",
            str(other),
        )
        == 0
    )
    # A sample depends on its caption and seed, whatever is drawn beside it.
    assert drawn(other)["three dogs", 7] == found["three dogs", 7]
    assert drawn(other)["three dogs", 6] != found["three dogs", 7]


@pytest.mark.parametrize("name", ["animals", "scenes"])
def test_same_images_any_batch(runs, tmp_path, monkeypatch, name):
    found = {}
    for batch in (1, 7, 16):
        out = tmp_path / str(batch)
        arguments = ["sample", str(runs / name), f"sampling.batch={batch}", "--seeds", "0-3"]
        assert invoke(monkeypatch, *arguments, "--out", str(out)) == 0
        found[batch] = drawn(out)
    assert found[1] == found[7] == found[16]
    assert len(set(found[1].values())) == len(found[1]) >= 16


def test_raw_and_averaged_weights_differ(runs):
    request = Request(torch.arange(4), labels=torch.arange(4))
    images = [
        open_run(runs / "animals", weights).parts.sampler().draw(request)
        for weights in ("ema", "raw")
    ]
    assert not torch.equal(*images)


def test_eval_writes_records_and_prints_json(runs, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "animals", run)
    arguments = ["eval", str(run), "--metrics", "accuracy-animals", "evaluation.samples=50"]
    assert invoke(monkeypatch, *arguments, "--json") == 0
    tables = json.loads(capsys.readouterr().out)
    (one,) = record.read(run / "records")
    assert (one.metric, one.n, one.seen, one.weights) == ("accuracy-animals", 50, 64, "ema")
    assert one.value in [cell["value"] for row in tables[0]["rows"] for cell in row]
    assert invoke(monkeypatch, *arguments, "--weights", "raw") == 0
    assert {r.weights for r in record.read(run / "records")} == {"ema", "raw"}


def test_records_say_what_sampling_cost(runs, tmp_path, monkeypatch):
    """Other samplers of the same weights are other records, with their network calls."""
    common = ["eval", str(runs / "animals"), "--metrics", "accuracy-animals", "--out"]
    common += [str(tmp_path), "evaluation.samples=50", "sampling.steps=4"]
    auto = [f"sampling.auto.run={runs / 'animals'}", "sampling.auto.scale=1.5"]
    for more in (
        ["sampling.guidance.scale=1"],
        ["sampling.guidance.scale=2", "sampling.guidance.high=0.6"],
        ["sampling.solver=heun", "sampling.guidance.scale=1", "sampling.final=data"],
        ["sampling.solver=sde", "sampling.diffusion=sigma", "sampling.guidance.scale=1"],
        ["sampling.guidance.scale=1", *auto],
    ):
        assert invoke(monkeypatch, *common, *more) == 0
    found = [r.sampler for r in record.read(tmp_path)]
    costs = [(s["evaluations"], s["network_calls"], s["guided_steps"]) for s in found]
    # Plain, guided, Heun, SDE, and with a second network.
    assert sorted(costs) == [(4, 4, 0), (4, 4, 0), (4, 6, 2), (4, 8, 0), (7, 7, 0)]
    said = {name: value for s in found for name, value in s.items() if isinstance(value, str)}
    assert (said["final"], said["diffusion"]) == ("data", "sigma")
    assert [s["auto_seen"] for s in found if "auto_seen" in s] == [64]


def test_samplers_on_the_command_line(runs, tmp_path, monkeypatch, capsys):
    """Each draws other images from the same seed; what has no effect is one line and exit 2."""
    run, pictures = str(runs / "animals"), {}
    for name, more in {
        "euler": [],
        "heun": ["sampling.solver=heun"],
        "sde": ["sampling.solver=sde"],
        "unguided": ["sampling.guidance.scale=1"],
    }.items():
        out = tmp_path / name
        arguments = ["sample", run, "--classes", "4", "--seeds", "0", "--out", str(out)]
        assert invoke(monkeypatch, *arguments, "sampling.steps=4", *more) == 0
        (pictures[name],) = drawn(out).values()
    assert len(set(pictures.values())) == 4
    capsys.readouterr()
    for override, words in {
        "sampling.internal.scale=1.5": "terms.internal=on",
        "sampling.guidance.leaves=1.5": "terms.reg=on",
        "sampling.diffusion=sigma": "sampling.solver=sde",
        "sampling.auto.scale=1.5": "sampling.auto.run",
        "sampling.final=noise": "sampling.final",
    }.items():
        assert invoke(monkeypatch, "sample", run, override, "--out", str(tmp_path / "no")) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err and override.partition("=")[0] in err


def test_eval_of_drawn_images_is_eval_of_the_run(runs, tmp_path, monkeypatch, capsys):
    """The same fifty samples: drawn to files and measured, or measured as they are drawn."""
    run, images = str(runs / "animals"), str(tmp_path / "images")
    metrics = ["--metrics", "accuracy-animals"]
    assert (
        invoke(monkeypatch, "sample", run, "--classes", "0-9", "--seeds", "0-4", "--out", images)
        == 0
    )
    out = ["--out", str(tmp_path / "records")]
    assert invoke(monkeypatch, "eval", "--images", images, *metrics, *out) == 0
    (one,) = record.read(tmp_path / "records")
    opened = open_run(runs / "animals")
    network = one.facts["network"] if "network" in one.facts else "animals-cnn"
    from nanogen.metrics.reference import load_encoder

    logits = []
    for label in range(10):
        request = Request(torch.arange(5), labels=torch.full((5,), label))
        for _, batch in opened.parts.sampler().stream(request):
            logits.append(load_encoder(str(network), torch.device("cpu"))(batch)["logits"])
    guesses = torch.cat(logits).argmax(1)
    share = (guesses == torch.arange(10).repeat_interleave(5)).double().mean().item()
    assert (one.value, one.n) == (pytest.approx(share), 50)


def test_eval_of_real_images_without_captions(tmp_path, monkeypatch, capsys, caplog):
    """Any folder of images: those of other sizes are cropped, one that is broken is named and
    counted; too few that are whole are refused.
    """
    task = tiny("animals/pixels-v").task.build(0)
    folder = tmp_path / "real"
    folder.mkdir()
    for index in range(101):
        image = picture(task.source.read("held-out", index, 0).image)
        image.resize((56, 84)).save(folder / f"{index}.png")
    arguments = ["eval", "--images", str(folder), "--metrics", "is-animals"]
    arguments += ["--out", str(tmp_path / "records")]
    assert invoke(monkeypatch, *arguments) == 0
    assert 1 < record.read(tmp_path / "records")[0].value <= 10
    (folder / "77.png").write_bytes((folder / "77.png").read_bytes()[:80])
    arguments[-1] = str(tmp_path / "again")
    assert invoke(monkeypatch, *arguments) == 0
    assert "skipped 77.png: cannot be decoded" in caplog.text
    (one,) = record.read(tmp_path / "again")
    assert (one.n, one.skipped) == (100, 1)
    capsys.readouterr()
    (folder / "5.png").unlink()
    assert invoke(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert "needs at least 100 samples, not 99" in err and "1 of 100 could not be read" in err


def test_samples_json_of_other_images_is_refused(runs, tmp_path, monkeypatch, capsys):
    images = tmp_path / "images"
    run = str(runs / "animals")
    assert invoke(monkeypatch, "sample", run, "--seeds", "0-4", "--out", str(images)) == 0
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(images / "other.png")
    capsys.readouterr()
    arguments = ["eval", "--images", str(images), "--metrics", "accuracy-animals"]
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path / "records")) == 2
    said = capsys.readouterr().err
    assert "1 of 51 images" in said and "have no caption or class (first: 'other.png')" in said
