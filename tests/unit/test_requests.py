"""What an evaluation asks a model to draw: exactly so many, every class and prompt alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from nanogen.data.base import Source
from nanogen.evaluation import subjects
from nanogen.evaluation.settings import Evaluation
from nanogen.metrics.blocks import blocks
from nanogen.tasks.class_conditional import ClassConditional


def test_fifty_of_each_class_in_whatever_blocks() -> None:
    """50,000 samples of ImageNet's 1,000 classes, as the published protocol has it."""
    names = tuple(f"class {k}" for k in range(1_000))
    source = cast(Source, SimpleNamespace(classes=names, count=lambda split: 1))
    task = ClassConditional(source, seed=0)
    drawn = [task.request(block.start, block.stop).labels for block in blocks(50_000, 96)]
    labels = torch.cat([part for part in drawn if part is not None])
    assert torch.equal(torch.bincount(labels), torch.full((1_000,), 50))


def test_every_prompt_as_often_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample i shows prompt i % P, so that its noise does not depend on how many there are."""
    prompts = SimpleNamespace(texts=("a", "b", "c"), images=4)
    monkeypatch.setattr(subjects.registry, "get", lambda kind, name: lambda: prompts)
    assert subjects.samples_of("set", Evaluation()) == 12
    assert subjects.samples_of("set", Evaluation(images_per_prompt=1)) == 3
    request = subjects.prompted("set", 0, 12)
    assert request.texts == ("a", "b", "c") * 4
    assert request.indices.tolist() == list(range(12))
    assert subjects.prompted("set", 5, 7).texts == ("c", "a")
