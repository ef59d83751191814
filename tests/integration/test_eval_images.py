"""`nanogen eval --images` without `--metrics`: what the images can serve is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import invoke, tiny

from nanogen.bench import record
from nanogen.sampling.grid import picture

NAMES = Callable[[int, str], str]


def images(folder: Path, preset: str, count: int, name: NAMES) -> None:
    """Real held-out images, each in a file that is named by its number and class or caption."""
    source = tiny(preset).task.build(0).source
    for index in range(count):
        sample = source.read("held-out", index % source.count("held-out"), index)
        label = "" if sample.label is None else source.classes[sample.label]
        file = folder / f"{name(index, label)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(sample.image).save(file)
        if sample.text:
            file.with_suffix(".txt").write_text(sample.text)


def evaluated(folder: Path, monkeypatch, *more: str) -> set[str]:
    out = folder.parent / "records"
    assert invoke(monkeypatch, "eval", "--images", str(folder), *more, "--out", str(out)) == 0
    return {one.metric for one in record.read(out)}


def test_images_without_classes(tmp_path, monkeypatch, caplog):
    images(tmp_path / "all", "animals/pixels-v", 120, lambda index, label: str(index))
    found = evaluated(tmp_path / "all", monkeypatch)
    assert found == {"is-animals", "pr-animals/precision", "pr-animals/recall"}
    said = [entry.getMessage() for entry in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("left out: metric fd-animals needs at least 256 samples, not 120")
    assert said[0].endswith("136 more images are needed")
    assert said[1].startswith("left out: accuracy-animals needs images of known classes")


def test_images_in_folders_of_their_classes(tmp_path, monkeypatch, caplog):
    images(tmp_path / "all", "animals/pixels-v", 60, lambda index, label: f"{label}/{index}")
    assert evaluated(tmp_path / "all", monkeypatch) == {"accuracy-animals"}
    assert len(caplog.records) == 3


def test_images_with_captions(tmp_path, monkeypatch, caplog):
    """Not by how much they are like animals, which the captions say nothing of."""
    images(tmp_path / "all", "scenes/pixels-v", 30, lambda index, label: str(index))
    found = evaluated(tmp_path / "all", monkeypatch)
    assert {name.partition("/")[0] for name in found} == {"scene-eval"} and not caplog.records


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["evaluation.repeats=2"], "evaluation.repeats has no effect"),
        (["--reference", "scenes/pixels-v"], "no metric of scene-eval suits these images"),
    ],
)
def test_nothing_is_said_before_an_error(tmp_path, monkeypatch, capsys, caplog, more, message):
    images(tmp_path / "all", "animals/pixels-v", 60, lambda index, label: f"{label}/{index}")
    assert invoke(monkeypatch, "eval", "--images", str(tmp_path / "all"), *more) == 2
    assert message in capsys.readouterr().err and not caplog.records
