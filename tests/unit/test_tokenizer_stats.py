"""`nanogen tokenizer stats`: of encoders and tokenizers, as tables and as a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_rae import tiny_folder
from tiny_vae import write_vae

from nanogen.cli.tokenizer_stats import main
from nanogen.data.animals import Animals
from nanogen.encoders.vision import open_encoder
from nanogen.errors import ConfigError, UserError
from nanogen.tokenizers import statistics

SOURCE = Animals().build()
NUMBERS = [i * SOURCE.count("held-out") // 40 for i in range(40)]
IMAGES = torch.stack([SOURCE.read("held-out", i, i).image for i in NUMBERS]) / 255


def shown(capsys: pytest.CaptureFixture[str], name: str, *overrides: str, **options):
    """The one table as JSON: rows of plain values, and notes."""
    fields = {"split": "held-out", "samples": 40, "batch": 16, "device": "cpu"}
    main(name, list(overrides), as_json=True, **{**fields, **options})
    (table,) = json.loads(capsys.readouterr().out)
    rows = np.array([[cell["value"] for cell in row] for row in table["rows"]], float)
    return rows, table["notes"]


def test_of_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "animals.safetensors"
    rows, notes = shown(capsys, "animals-vit", out=file)
    tokens = open_encoder("animals-vit", 28)(IMAGES).patches.double().numpy()
    np.testing.assert_allclose(rows[:, 1], tokens.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(rows[:, 2], tokens.std((0, 1)), atol=1e-5)
    assert rows.shape == (64, 3)
    assert notes == [
        "Measured: encoder=animals-vit, " + open_encoder("animals-vit", 28).fingerprint + ".",
        "Mean square of a value 1.0000, 1.0000 to 1.0000 over positions; it is 1 everywhere after "
        "a LayerNorm without affine.",
    ]
    found = statistics.load(file, (64, 7, 7))
    place = tokens[:, 7 * 2 + 3]
    np.testing.assert_allclose(found.mean[:, 2, 3], place.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.variance[:, 2, 3], place.var(0), atol=1e-5)


def test_of_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    rows, notes = shown(capsys, "pixels", "patch=4")
    pixels = 2 * IMAGES.double() - 1
    np.testing.assert_allclose(rows[:, 1], pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(rows[:, 4], pixels.std((0, 2, 3), correction=0), atol=1e-6)
    assert "are not about 0 and 1" in notes[2]


def test_of_a_vae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured numbers, put into its config, whiten its latents."""
    pytest.importorskip("diffusers")
    folder = write_vae(tmp_path / "raw", "f8d4", shift_factor=0.0, scaling_factor=1.0)
    options = {"data": "scenes", "split": "train", "size": 40}
    rows, _ = shown(capsys, "vae", f"model={folder}", "patch=1", **options)
    assert rows.shape == (4, 5) and np.array_equal(rows[:, 1:3], rows[:, 3:5])
    vectors = {"latents_mean": rows[:, 1].tolist(), "latents_std": rows[:, 2].tolist()}
    white = write_vae(tmp_path / "white", "f8d4", **vectors)
    again, notes = shown(capsys, "vae", f"model={white}", "patch=1", **options)
    np.testing.assert_allclose(again[:, 1:3], rows[:, 1:3])
    np.testing.assert_allclose(again[:, 3], 0, atol=1e-4)
    np.testing.assert_allclose(again[:, 4], 1, atol=1e-4)
    assert "are about 0 and 1" in notes[2]
    with pytest.raises(ConfigError, match="use tokenizer.posterior=mode"):
        shown(capsys, "vae", f"model={white}", "patch=1", "posterior=sample", **options)


def test_of_a_rae(capsys: pytest.CaptureFixture[str]) -> None:
    """Normalised by its own table, which is made up here, position by position."""
    rows, _ = shown(capsys, "rae", f"decoder={tiny_folder(64)}", data="scenes", size=64)
    assert rows.shape == (64, 5) and not np.allclose(rows[:, 1:3], rows[:, 3:5], atol=0.1)


def test_a_bad_file_is_refused_before_measuring(tmp_path: Path, monkeypatch) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(statistics, "measure", measured)
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for out, message in (
        (tmp_path / "file" / "s.safetensors", "cannot write to .*/file"),
        (tmp_path / "folder.safetensors", "--out .* is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            main("pixels", ["patch=4"], out=out, device="cpu")


def test_train_images_are_not_mirrored(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    shown(capsys, "pixels", "patch=4", split="train", out=file)
    plain = Animals(flip=False).build()
    numbers = [i * plain.count("train") // 40 for i in range(40)]
    pixels = torch.stack([plain.read("train", i, i).image for i in numbers]).double() / 127.5 - 1
    np.testing.assert_allclose(statistics.load(file, (3, 28, 28)).mean, pixels.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("animals-vit", "depth=3"), {}, "an encoder takes path=PATH and nothing else"),
        (("animals-vid",), {}, "'animals-vid'; did you mean .*animals-vit"),
        (("animals-vit",), {"out": Path("s.pt")}, "let the name end so"),
        (("animals-vit",), {"split": "test"}, "unknown split 'test'"),
        (("animals-vit",), {"samples": 10**7}, "of a held-out split of 2000"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shown(capsys, *arguments, **options)
