"""A run that starts from the averaged weights of another one."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny import checkpoints, final, overrides, tiny, trained

from nanogen import run_folder
from nanogen.cli.app import app
from nanogen.errors import ConfigError
from nanogen.run import build


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    trained(tiny("animals/pixels-v", "train.images=16"), folder)
    return folder


def test_the_averages_are_what_training_begins_with(first):
    parts = build(tiny("animals/pixels-v", f"train.start={first}"))
    run_folder.start(parts)
    stored = final(first)
    assert parts.model.trained()
    for name, p in parts.model.trained().items():
        assert torch.equal(p, stored[f"ema/{name}"]), name


def test_the_command_trains_on_and_resumes(first, tmp_path):
    """Other images, rate and length; the clock begins at zero."""
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v")]
    arguments += [f"train.start={first}", "optimiser.lr=0", "optimiser.adamw.lr=0", "train.ema=0.5"]
    app([*arguments, "train.images=16", "--out", str(tmp_path / "next")], standalone_mode=False)
    assert checkpoints(tmp_path / "next") == [16]
    old, new = final(first), final(tmp_path / "next")
    # At a rate of zero the weights stay what they were at the start.
    for name in (name for name in new if name.startswith("ema/")):
        torch.testing.assert_close(new[name], old[name])


def test_a_run_that_has_begun_resumes_without_it(first, tmp_path):
    """Its own checkpoints hold all that it needs; only to start over needs the other run."""
    shutil.copytree(first, tmp_path / "other")
    arguments = ["train", "animals/pixels-v", *overrides("animals/pixels-v", "train.images=32")]
    arguments += [f"train.start={tmp_path / 'other'}", "--out", str(tmp_path / "next")]
    app([*arguments, "--max-minutes", "0"], standalone_mode=False)
    shutil.rmtree(tmp_path / "other")
    app(arguments, standalone_mode=False)
    assert checkpoints(tmp_path / "next")[-1] == 32
    with pytest.raises(ConfigError, match="has no checkpoint"):
        app([*arguments, "--fresh"], standalone_mode=False)
    assert checkpoints(tmp_path / "next")[-1] == 32, "refused before anything is removed"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["tokenizer.patch=4"], "train.start=.* does not fit this run.*size mismatch"),
        (["backbone.depth=2"], "train.start=.* does not fit this run.*Missing key"),
    ],
)
def test_another_architecture_is_refused(first, fields, named):
    parts = build(tiny("animals/pixels-v", *fields, f"train.start={first}"))
    with pytest.raises(ConfigError, match=named) as refusal:
        run_folder.start(parts)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    parts = build(tiny("animals/pixels-v", f"train.start={tmp_path}"))
    with pytest.raises(ConfigError, match="has no checkpoint; train that run first"):
        run_folder.start(parts)
