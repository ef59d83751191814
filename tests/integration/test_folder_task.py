"""A user's own folder of images, from PNG files to scores, without a line of code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import WORDS, invoke, overrides

from nanogen.bench import record
from nanogen.run_folder import open_run

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 60), "red": (210, 30, 30)}
FOLDER = ("task.data=folder", "task.data.size=28", "tokenizer.patch=7")
EACH = 40


def images(colour: str) -> list[Image.Image]:
    """Noisy squares of one colour, of many sizes."""
    noise = np.random.default_rng(list(COLOURS).index(colour))
    shapes = [(28 + 3 * i, 30 + i) for i in range(EACH)]
    pixels = [np.array(COLOURS[colour]) + noise.integers(-20, 20, (*shape, 3)) for shape in shapes]
    return [Image.fromarray(value.clip(0, 255).astype(np.uint8)) for value in pixels]


@pytest.fixture
def classes(tmp_path) -> Path:
    for colour in COLOURS:
        (tmp_path / "classes" / colour).mkdir(parents=True)
        for number, image in enumerate(images(colour)):
            image.save(tmp_path / "classes" / colour / f"{number:03d}.png")
    return tmp_path / "classes"


def captioned(folder: Path, style: str) -> Path:
    """The same images in one folder, with captions beside them or in one table."""
    folder.mkdir()
    table = []
    for colour in COLOURS:
        for number, image in enumerate(images(colour)):
            name, text = f"{colour}-{number:03d}", f"a {colour} square"
            image.save(folder / f"{name}.png")
            if style == "txt":
                (folder / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
            table.append(json.dumps({"file_name": f"{name}.png", "text": text}))
    if style == "jsonl":
        (folder / "captions.jsonl").write_text("\n".join(table), encoding="utf-8")
    return folder


def test_classes_train_sample_and_are_measured(classes, tmp_path, monkeypatch, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "out"
    arguments = ["train", "animals/pixels-x", *overrides("animals/pixels-v", *FOLDER)]
    arguments += [f"task.data.path={classes}", "train.sample_every=32", "--out", run]
    assert invoke(monkeypatch, *arguments) == 0
    assert open_run(tmp_path / "run").parts.task.source.classes == tuple(COLOURS)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2

    drawn = ["sample", run, "--classes", "red,0-1", "--seeds", "0-33", "--out", str(out)]
    assert invoke(monkeypatch, *drawn) == 0
    rows = json.loads((out / "samples.json").read_text())["samples"]
    assert [row["caption"] for row in rows[::34]] == ["red", "blue", "green"]
    with Image.open(out / rows[0]["file"]) as image:
        assert image.size == (28, 28)

    records = tmp_path / "records"
    measured = ["eval", "--images", str(out), "--metrics", "is-animals", "--out", str(records)]
    assert invoke(monkeypatch, *measured) == 0
    (one,) = record.read(records)
    assert one.n == 102 and 1 <= one.value <= 10
    capsys.readouterr()
    # Other classes than the network knows are not silently taken for them.
    assert (
        invoke(monkeypatch, "eval", run, "--metrics", "accuracy-animals", "evaluation.samples=50")
        == 2
    )
    assert "this data set has others" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["txt", "jsonl"])
def test_captions_train_and_sample(tmp_path, monkeypatch, style):
    data, run, out = captioned(tmp_path / "data", style), tmp_path / "run", tmp_path / "out"
    arguments = ["train", "scenes/pixels-v", *overrides("scenes/pixels-v", *WORDS, *FOLDER)]
    arguments += [f"task.data.path={data}", "--out", str(run)]
    assert invoke(monkeypatch, *arguments) == 0
    source = open_run(run).parts.task.source
    assert set(source.prompts()) <= {f"a {colour} square" for colour in COLOURS}
    assert source.prompts()
    assert invoke(monkeypatch, "sample", str(run), "--seeds", "0-1", "--out", str(out)) == 0
    rows = json.loads((out / "samples.json").read_text())["samples"]
    assert [row["caption"] for row in rows] == [p for p in source.prompts() for _ in range(2)]


def test_a_changed_folder_is_still_the_same_run(classes, tmp_path, monkeypatch):
    """The data is named by its path; images that were added later join the next steps."""
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v", *FOLDER)]
    arguments += [f"task.data.path={classes}", "--out", str(tmp_path / "run")]
    assert invoke(monkeypatch, *arguments, "--max-minutes", "0") == 0
    images("red")[0].save(classes / "red" / "later.png")
    assert invoke(monkeypatch, *arguments) == 0
