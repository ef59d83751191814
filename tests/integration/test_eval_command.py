"""`nanogen eval` with the metrics of the literature, from the command to the records.

Everything that they need of others is tiny and random, in the real formats, in a real store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chz
import numpy as np
import pytest
import tiny_geneval
from PIL import Image
from tiny import invoke, ranks, tiny, trained
from tiny_assets import tiny_assets
from tiny_pipelines import write_pipeline

from nanogen import registry
from nanogen.bench import outcomes, record
from nanogen.bench.record import Record
from nanogen.evaluation import foreign, online
from nanogen.evaluation.measure import evaluate
from nanogen.evaluation.subjects import Given
from nanogen.images.open import open_images
from nanogen.run_folder import open_run

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


def test_too_few_for_a_set_of_prompts_are_refused(images, tmp_path, monkeypatch, capsys):
    arguments = ["eval", "--images", str(images), "--metrics", "dpg", "--out", str(tmp_path)]
    assert invoke(monkeypatch, *arguments) == 2
    assert (
        f"not 24 samples; {images} holds 24: 1041 more images are needed" in capsys.readouterr().err
    )


def test_images_of_some_prompts_are_refused_before_they_are_measured(
    images, tmp_path, monkeypatch, capsys
):
    """As many images as there are prompts, of half of the prompts."""
    folder = tmp_path / "half"
    folder.mkdir()
    prompts = registry.get("prompts", "dpg")().texts
    (folder / "captions.jsonl").write_text(
        "".join(
            json.dumps({"file_name": f"{n}.png", "text": prompts[n // 2]}) + "\n"
            for n in range(len(prompts))
        )
    )
    for number in range(len(prompts)):
        os.link(images / "000000.png", folder / f"{number}.png")
    arguments = ["eval", "--images", str(folder), "--metrics", "dpg"]
    assert invoke(monkeypatch, *arguments, "--out", str(tmp_path / "out")) == 2
    assert "each of its 1065 prompts, and only 533 of them have any" in capsys.readouterr().err


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
    assert f"{tmp_path / 'two'} against {tmp_path / 'one'}" in said
    assert found(tmp_path / "one")["geneval"].sampler["steps"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "vqascore", "evaluation.samples=9"], "evaluation.samples=9 has no effect"),
        (["--metrics", "vqascore", "pipeline.steps=9"], "pipeline.* has no effect on --images"),
        (["--metrics", "geneval,accuracy-animals"], "have no images in common"),
        (
            ["--metrics", "geneval,scene-eval"],
            "scene-eval would see images at 40 px and the others as they are",
        ),
        (["--metrics", "fid[reference=data]"], "fid[reference=data]: no real images"),
        (["--metrics", "kid,pr"], "kid, pr: no real images to compare with"),
        (["--metrics", "fid[reference=nothing]"], "there is no reference 'nothing'"),
        (
            ["--metrics", "fid,is", "evaluation.precision=bf16"],
            "evaluation.precision=bf16 has no effect on fid, is: they have one of their own",
        ),
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


def test_other_captions_on_any_number_of_processes(images, tmp_path):
    """The data do not know these captions: a process sees those of its own images only."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    rows = json.loads((folder / "samples.json").read_text())["samples"]
    for row in rows:
        row["caption"] = f"a strange thing, {row['seed'] // 3}"
    (folder / "samples.json").write_text(json.dumps({"samples": rows}))

    def work(out: Path) -> None:
        settled = foreign.settle(("image-reward",), foreign.Foreign())
        opened = open_images(folder, batch=4)
        texts = opened.request(0, opened.count()).texts
        plan = foreign._plan(settled, foreign.Foreign(), out, texts or ())
        evaluate(replace(Given(opened), batch=4), plan)

    work(tmp_path / "one")
    assert ranks(2, tmp_path / "store", lambda: work(tmp_path / "two")) == [0, 0]
    (one,), (two,) = record.read(tmp_path / "one"), record.read(tmp_path / "two")
    assert replace(one, seconds=0) == replace(two, seconds=0)
    assert outcomes.read(tmp_path / "one", one) == outcomes.read(tmp_path / "two", two)


def test_records_that_are_replaced_are_compared_as_they_were(run, tmp_path, monkeypatch, capsys):
    arguments = ["eval", str(run), "--metrics", "clip-score", "--out", str(tmp_path)]
    arguments += ["evaluation.samples=20"]
    assert invoke(monkeypatch, *arguments, "evaluation.repeats=2") == 0
    (old,) = record.read(tmp_path)
    assert np.mean(outcomes.read(tmp_path, old).values) == pytest.approx(old.value, rel=1e-9)
    assert invoke(monkeypatch, *arguments, "--compare", str(tmp_path)) == 0
    assert "facts.repeats" in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    arguments += ["--compare", str(tmp_path / "nothing"), "--out", str(tmp_path / "new")]
    assert invoke(monkeypatch, *arguments) == 2
    assert record.read(tmp_path / "new") == []


def test_a_default_that_is_written_out_is_measured_once(run, tmp_path, monkeypatch):
    name = "geneval[compat=official]"
    settings = ["evaluation.images_per_prompt=1", "--out", str(tmp_path)]
    assert invoke(monkeypatch, "eval", str(run), "--metrics", name, *settings) == 0
    trained_run = open_run(run, "ema", settings[:1]).parts.run
    wanted = chz.replace(trained_run.evaluation, metrics=(name,))
    seen = record.read(tmp_path)[0].seen
    assert online.measured(chz.replace(trained_run, evaluation=wanted), tmp_path, seen)


def test_images_are_recorded_as_measured(images, tmp_path, monkeypatch):
    arguments = ["eval", "--images", str(images), "--metrics", "image-reward"]
    arguments += ["evaluation.precision=bf16", "--out", str(tmp_path)]
    assert invoke(monkeypatch, *arguments) == 0
    made = found(tmp_path)["image-reward"]
    # Nobody made these grey levels whole.
    assert (made.precision, made.quantisation) == ("bf16", "")


def test_a_run_is_recorded_as_measured(run, tmp_path, monkeypatch, capsys):
    arguments = ["eval", str(run), "--out", str(tmp_path), "evaluation.precision=bf16"]
    arguments += ["evaluation.samples=24", "evaluation.quantise=truncate"]
    assert invoke(monkeypatch, *arguments, "--metrics", "scene-eval,clip-score") == 0
    records = found(tmp_path)
    assert records["clip-score"].precision == "bf16" and records["scene-eval"].precision == ""
    assert {one.quantisation for one in records.values()} == {"truncate"}
    assert invoke(monkeypatch, *arguments, "--metrics", "scene-eval") == 2
    assert "evaluation.precision has no effect: scene-eval" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "clip-score", "size=8"], "size=8 has no effect on --pipeline"),
        (["--metrics", "clip-score", "classes=5"], "classes=5 has no effect on"),
        (["--metrics", "geneval", "--prompts", "FILE"], "--prompts has no effect on geneval"),
        (["--metrics", "geneval", "evaluation.samples=3"], "evaluation.samples=3 has no effect"),
        (
            ["--metrics", "clip-score", "evaluation.images_per_prompt=3"],
            "evaluation.images_per_prompt=3 has no effect",
        ),
        ([], "name what to measure with --metrics"),
        (["--metrics", "geneval,clip-score"], "clip-score: no prompts to draw; give some with"),
        (["--metrics", "fid"], "fid: no prompts to draw; give some with"),
    ],
)
def test_pipeline_settings_without_effect(place, tmp_path, monkeypatch, capsys, arguments, message):
    model = place / "refused"
    if not model.exists():
        write_pipeline(model, "StableDiffusion3Pipeline")
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n")
    arguments = [str(file) if word == "FILE" else word for word in arguments]
    out = tmp_path / "out"
    capsys.readouterr()
    assert invoke(monkeypatch, "eval", "--pipeline", str(model), *arguments, "--out", str(out)) == 2
    assert message in capsys.readouterr().err and not out.exists()
