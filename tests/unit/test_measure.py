"""What is kept of an evaluation is continued with the same networks only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image
from tiny_contrastive import clip_folder, pictures, tiny_store

from nanogen import store
from nanogen.data.base import Source
from nanogen.errors import UserError
from nanogen.evaluation.measure import KEPT, Plan, evaluate
from nanogen.evaluation.subjects import Given
from nanogen.images.open import open_images
from nanogen.metrics.base import Context
from nanogen.metrics.clip_score import CLIP_L

COUNT = 4


def subject(folder: Path) -> Given:
    """Images with captions, of which each is a block of its own."""
    folder.mkdir()
    for number, image in enumerate(pictures(COUNT)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"cow {number}")
    return replace(Given(open_images(folder, batch=1)), batch=1)


def stopping(after: int):
    """What is called before each batch, and ends the evaluation."""
    calls = iter(range(after))

    def check() -> None:
        if next(calls, None) is None:
            raise UserError("stopped")

    return check


def test_blocks_of_other_weights_are_measured_anew(tmp_path: Path) -> None:
    source = cast(Source, SimpleNamespace(prompts=tuple, fingerprint="none"))
    context = Context(source, torch.device("cpu"))
    images = subject(tmp_path / "images")
    plan = Plan(("clip-score",), context, tmp_path / "out")
    with tiny_store(tmp_path / "store", CLIP_L):
        with pytest.raises(UserError, match="stopped"):
            evaluate(images, replace(plan, check=stopping(2)))
        assert list((plan.out / KEPT).glob("*/*"))
        store.prepare(CLIP_L, clip_folder(tmp_path / "other", seed=77, ends_at=2))
        (continued,) = evaluate(images, plan)
        (whole,) = evaluate(images, replace(plan, out=tmp_path / "whole"))
    assert continued.value == whole.value
