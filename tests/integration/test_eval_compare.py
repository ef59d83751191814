"""Several results of a score in one folder, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import invoke, tiny, trained

METRICS = ("--metrics", "is-animals", "evaluation.samples=100")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    trained(tiny("animals/pixels-v", "train.images=8", "sampling.batch=100"), folder)
    return folder


def evaluate(monkeypatch, run: Path, scale: float, out: Path, *more: str) -> int:
    setting = f"sampling.guidance.scale={scale}"
    return invoke(monkeypatch, "eval", str(run), *METRICS, setting, "--out", str(out), *more)


def test_settings_are_paired_or_named(run, tmp_path, monkeypatch, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for out, scales in ((one, (1.5, 2.5)), (two, (2.5, 3.5))):
        for scale in scales:
            assert evaluate(monkeypatch, run, scale, out) == 0
    capsys.readouterr()
    assert invoke(monkeypatch, "compare", str(one), str(two)) == 0
    said = capsys.readouterr().out
    assert "is-animals (sampler.guidance=2.5)" in said
    assert f"only in {one}: class_conditional is-animals (sampler.guidance=1.5)" in said
    assert f"only in {two}: class_conditional is-animals (sampler.guidance=3.5)" in said
    assert "equal on 1 of 1 score." in said


def test_new_results_are_compared_with_those_of_their_settings(run, tmp_path, monkeypatch, capsys):
    before = tmp_path / "before"
    for scale in (1.5, 2.5):
        assert evaluate(monkeypatch, run, scale, before) == 0
    compare = ("--compare", str(before))
    capsys.readouterr()
    assert evaluate(monkeypatch, run, 2.5, tmp_path / "new", *compare, "sampling.steps=3") == 0
    said = capsys.readouterr().out
    assert "is-animals (sampler.guidance=2.5)" in said and "sampler.steps" in said
    assert f"only in {before}: class_conditional is-animals (sampler.guidance=1.5)" in said
    # What was measured is printed before it is said that it has no partner.
    assert evaluate(monkeypatch, run, 9.5, tmp_path / "none", *compare, "--json") == 2
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["rows"] and "sampler.guidance=9.5" in err
    assert len(err.strip().splitlines()) == 1
