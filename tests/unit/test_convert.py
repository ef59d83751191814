"""`nanogen convert`: published files in, the same files out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_rae_layout import CHANNELS, GRID, published

from nanogen.cli.convert import main
from nanogen.encoders import vision
from nanogen.errors import ConfigError, UserError
from nanogen.tokenizers import statistics
from nanogen.tokenizers.rae_files import open_rae


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    row = vision.EncoderRow("narrow-vit", "", "MIT", CHANNELS, 2, 6, 100)
    known = vision.find
    monkeypatch.setattr(
        "nanogen.tokenizers.rae_convert.find", lambda name: row if name == row.name else known(name)
    )
    torch.save(published(), tmp_path / "decoder.pt")
    return tmp_path / "decoder.pt"


def stats(tmp_path: Path) -> Path:
    shape = (CHANNELS, GRID, GRID)
    torch.save({"mean": torch.randn(shape), "var": torch.rand(shape)}, tmp_path / "stats.pt")
    return tmp_path / "stats.pt"


def test_there_and_back(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs.pt"
    main("rae-decoder", decoder, ours, "ours", "narrow-vit", stats(tmp_path), 2)
    assert capsys.readouterr().out == f"written: {ours}\n"
    files = open_rae(str(ours))
    assert files.about is not None and files.statistics is not None
    assert (files.about.encoder, files.about.image_size) == ("narrow-vit", 6)
    main("rae-decoder", ours, theirs, "diffusion-bench")
    again = torch.load(theirs, weights_only=True)
    assert again.keys() == published().keys()
    for name, tensor in published().items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor), name


@pytest.mark.parametrize("space", ["unit", "encoder"])
def test_output_space(decoder: Path, tmp_path: Path, space: str) -> None:
    """The first RAE code trained decoders of pixels as their encoder is fed them."""
    main("rae-decoder", decoder, tmp_path / "o", "ours", "narrow-vit", None, 2, space)
    about = open_rae(str(tmp_path / "o")).about
    assert about is not None and about.output_space == space


@pytest.mark.parametrize("what", ["rae-decoder", "rae-statistics"])
def test_a_bad_target_is_refused_before_reading(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("nanogen.tokenizers.rae_convert.import_decoder", read)
    monkeypatch.setattr("nanogen.tokenizers.rae_convert.convert_statistics", read)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to .*/file: .*; choose another OUT"):
        main(what, decoder, tmp_path / "file" / "s.safetensors")
    (tmp_path / "s.safetensors").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        main(what, decoder, tmp_path / "s.safetensors")


def test_statistics_there_and_back(tmp_path: Path) -> None:
    file = stats(tmp_path)
    main("rae-statistics", file, tmp_path / "s.safetensors")
    main("rae-statistics", tmp_path / "s.safetensors", tmp_path / "again.pt", "diffusion-bench")
    one, two = (torch.load(f, weights_only=True) for f in (file, tmp_path / "again.pt"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert statistics.load(tmp_path / "s.safetensors", (CHANNELS, GRID, GRID))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("rae-decodr", "decoder.pt", "out"), "nothing is called 'rae-decodr'; did you mean"),
        (("rae-decoder", "decoder.pt", "out"), "add --encoder"),
        (("rae-decoder", "decoder.pt", "out", "ours", "dinov2-vit-b"), "say it with --heads"),
        (
            ("rae-decoder", "decoder.pt", "out", "ours", "dinov2-vit-b", None, 2),
            "decodes 6 channels, but dinov2-vit-b has 768",
        ),
        (("rae-decoder", "decoder.pt", "out", "theirs"), "--to 'theirs'"),
        (("rae-decoder", "nothing.pt", "out", "ours", "narrow-vit"), "there is no file"),
        (("rae-decoder", "decoder.pt", "decoder.pt"), "is there already"),
        (("rae-decoder", "decoder.pt", "out.pt", "diffusion-bench"), "no folder of ours"),
        (("rae-statistics", "decoder.pt", "out", "ours", "dinov2-vit-b"), "leave them out"),
        (("rae-statistics", "decoder.pt", "out.safetensors"), "holds no mean"),
        (("rae-statistics", "decoder.pt", "out"), "OUT .*let the name end in .safetensors"),
        (("rae-statistics", "decoder.pt", "s.foo", "diffusion-bench"), "let the name end in .pt"),
        (("rae-decoder", "decoder.pt", "out.bin", "diffusion-bench"), "let the name end in .pt"),
        (
            ("rae-decoder", "decoder.pt", "out", "ours", "narrow-vit", None, 2, "pixels"),
            "--output-space 'pixels'",
        ),
        (
            ("rae-statistics", "decoder.pt", "o.safetensors", "ours", "", None, None, "unit"),
            "leave them out",
        ),
    ],
)
def test_refusals(decoder: Path, tmp_path: Path, arguments, message: str) -> None:
    what, source, target, *rest = arguments
    with pytest.raises((ConfigError, UserError), match=message):
        main(what, tmp_path / source, tmp_path / target, *rest)
    assert not list(tmp_path.glob("o*"))
