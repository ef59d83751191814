"""`nanogen eval` with the metrics of the literature, from the command to the records.

Everything that they need of others is tiny and random, in the real formats, in a real store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_geneval
from PIL import Image
from tiny import invoke, tiny, trained
from tiny_assets import tiny_assets
from tiny_pipelines import write_pipeline

from nanogen.bench import outcomes, record
from nanogen.bench.record import Record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("eval")
    with tiny_assets(folder / "assets"):
        yield folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    trained(tiny("scenes/pixels-v", "train.images=8", "sampling.batch=8"), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def images(place: Path) -> Path:
    """Noise of 40 px, four for each of the tiny set's prompts, with captions beside."""
    folder = place / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
        prompt = tiny_geneval.PROMPTS[number % len(tiny_geneval.PROMPTS)]
        rows.append({"file": f"{number:06d}.png", "caption": prompt, "seed": number})
    (folder / "samples.json").write_text(json.dumps({"samples": rows}))
    return folder


def found(folder: Path) -> dict[str, Record]:
    return {one.metric: one for one in record.read(folder)}


def test_a_run_draws_for_each_set_of_prompts(run, tmp_path, monkeypatch):
    arguments = ["eval", str(run), "--metrics", "geneval,clip-score,geneval[compat=reference]"]
    settings = ["evaluation.samples=10", "evaluation.images_per_prompt=2"]
    assert invoke(monkeypatch, *arguments, *settings, "--out", str(tmp_path)) == 0
    records = found(tmp_path)
    assert {"geneval", "geneval[compat=reference]", "clip-score"} <= set(records)
    assert records["geneval"].n == 12 and records["clip-score"].n == 10
    kept = outcomes.read(tmp_path, records["geneval"])
    assert kept is not None and set(kept.prompts) == set(tiny_geneval.PROMPTS)


def test_images_with_captions(images, tmp_path, monkeypatch, capsys, caplog):
    whole = (images / "000005.png").read_bytes()
    (images / "000005.png").write_bytes(whole[: len(whole) // 2])
    arguments = ["eval", "--images", str(images), "--metrics", "geneval,fid[reference=jit-in256]"]
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "needs at least 256 samples, not 24" in said
    arguments[-1] = "geneval,image-reward"
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path)) == 0
    (images / "000005.png").write_bytes(whole)
    assert "skipped 000005.png" in caplog.text
    records = found(tmp_path)
    assert records["geneval"].n == 23 and records["geneval"].skipped == 1
    assert records["image-reward"].n == 23


def test_other_captions_are_refused(images, tmp_path, monkeypatch, capsys):
    arguments = ["eval", "--images", str(images), "--metrics", "dpg", "--out", str(tmp_path)]
    assert invoke(monkeypatch, *arguments) == 2
    assert "is not one of its" in capsys.readouterr().err


def test_a_pipeline_draws_and_is_compared(place, images, tmp_path, monkeypatch, capsys):
    pipeline = write_pipeline(place / "pipeline", "StableDiffusion3Pipeline")
    arguments = ["eval", "--pipeline", str(pipeline), "--metrics", "geneval"]
    arguments += ["evaluation.images_per_prompt=4", "pipeline.steps=1"]
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path / "one")) == 0
    more = ["pipeline.seed=1", "--compare", str(tmp_path / "one")]
    assert invoke(monkeypatch, *arguments, *more, "--out", str(tmp_path / "two")) == 0
    said = capsys.readouterr().out
    assert "sampler.seed" in said
    assert "Compared prompt by prompt" in said
    assert found(tmp_path / "one")["geneval"].sampler["steps"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "vqascore", "evaluation.samples=9"], "evaluation.samples=9 has no effect"),
        (["--metrics", "vqascore", "pipeline.steps=9"], "pipeline.* has no effect on --images"),
        (["--metrics", "geneval,accuracy-animals"], "have no images in common"),
        (["--metrics", "fid[reference=nothing]"], "nothing"),
        (["--metrics", "fid50k"], "fid50k"),
        (["--metrics", "vqascore", "machine.threads=0"], "machine.threads=0"),
        (["--metrics", "vqascore", "evaluation.precision=fp8"], "evaluation.precision"),
    ],
)
def test_one_clear_line(images, tmp_path, monkeypatch, capsys, arguments, message):
    status = invoke(
        monkeypatch, "eval", "--images", str(images), *arguments, "--out", str(tmp_path)
    )
    said = capsys.readouterr().err
    assert status == 2 and message in said and len(said.strip().splitlines()) == 1
    assert record.read(tmp_path) == []
