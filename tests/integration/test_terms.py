"""All terms in one run, on the embedded data: trained, continued, drawn from, by any processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_vgg import random_vgg
from tiny import WORDS, assert_same_run, final, ranks, tiny, trained, unclocked

from nanogen.encoders.lpips import heads_file
from nanogen.run import Run

TERMS = (
    "terms.internal.block=1",
    "terms.pdino.encoder=animals-vit",
    "terms.pdino.normalise_by=gated",
    "terms.reg.encoder=animals-vit",
    "terms.repa.encoder=animals-vit",
    "terms.repa.block=1",
    "terms.repa.class_token=true",
    "terms.repa.loss=cosine",
    "train.log_every=8",
)
TASKS = {
    "animals": ("animals/pixels-x", "tokenizer.patch=4"),
    "scenes": ("scenes/pixels-x", "tokenizer.patch=5", *WORDS),
}


def run_of(task: str, *more: str) -> Run:
    preset, *fields = TASKS[task]
    return tiny(preset, *fields, *TERMS, *more)


@pytest.mark.parametrize("task", TASKS)
def test_they_train_and_are_drawn_from(task: str, tmp_path: Path) -> None:
    names = {"flow", "cls", "internal", "pdino", "repa"}
    more = ["train.images=16", "train.sample_every=16"]
    if heads_file() is not None:
        names.add("lpips")
        more.append(f"terms.lpips.path={random_vgg()}")
    parts = trained(run_of(task, *more), tmp_path)
    for line in unclocked(tmp_path):
        assert names <= line.keys() and all(line[name] > 0 for name in names)
    stored = final(tmp_path)
    assert not any("teacher" in name for name in stored)
    assert "model/objective.terms.repa.projector.weight" in stored
    assert parts.sampler().noise(torch.arange(2))["cls"].shape == (2, 64)


@pytest.mark.parametrize(("world", "micro"), [(1, 3), (2, 2)], ids=str)
def test_processes_and_micro_batches_make_no_difference(world, micro, tmp_path: Path) -> None:
    trained(run_of("animals"), tmp_path / "alone")
    run, folder = run_of("animals", f"machine.micro_batch={micro}"), tmp_path / "run"
    assert ranks(world, tmp_path / "store", lambda: trained(run, folder)) == [0] * world
    for one, other in zip(unclocked(tmp_path / "alone"), unclocked(folder), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_continued_it_is_the_same(tmp_path: Path) -> None:
    trained(run_of("animals"), tmp_path / "whole")
    trained(run_of("animals"), tmp_path / "parts", stop_at=24)
    trained(run_of("animals"), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
