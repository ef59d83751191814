"""A tokenizer and a teacher that are the same network look at a batch once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, unclocked, unlike
from torch import Tensor

from nanogen import config, recipes
from nanogen.encoders.animals_vit import AnimalsVit
from nanogen.encoders.teachers import Teachers
from nanogen.encoders.vision import VisionEncoder, VisionFeatures
from nanogen.run import Parts, build
from nanogen.tokenizers.raw import raw_latents
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.train.loop import Hooks, train

COUNT = 11
"""images of a batch: a group of eight, and one that is filled up"""


def built(preset: str = "animals/rae-reg", *more: str) -> Parts:
    return build(config.override(recipes.preset(preset), [*TINY, "train.images=16", *more]))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the network, look by look."""
    found: list[int] = []
    whole = AnimalsVit.forward

    def forward(self: AnimalsVit, images: Tensor) -> VisionFeatures:
        found.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(AnimalsVit, "forward", forward)
    return found


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teachers, "share", lambda self, encoder: None)


def losses(parts: Parts, *, stored: bool = False) -> dict[str, Tensor]:
    batch = parts.task.batch(np.arange(COUNT))
    if stored:
        batch = replace(batch, raw=raw_latents(parts.tokenizer, batch.images))
    parts.model.train()
    return parts.model(batch, parts.latents(batch), parts.conditioner.encode(batch))[0]


@pytest.mark.parametrize("preset", ["animals/rae-reg", "scenes/rae-reg"])
def test_one_look_and_the_same_losses(preset, looks, monkeypatch):
    parts = built(preset)
    assert parts.shared is not None and parts.shared.network is parts.tokenizer.encoder
    looks.clear()
    together = losses(parts)
    assert looks == [8, 8]
    with monkeypatch.context() as patch:
        apart(patch)
        other = built(preset)
    assert other.shared is None
    looks.clear()
    separate = losses(other)
    assert looks == [8, 8, COUNT]
    assert together.keys() == separate.keys() and "cls" in together
    assert all(torch.equal(together[name], separate[name]) for name in together)


def test_stored_latents_give_the_same_losses(looks):
    parts = built()
    online, cached = losses(parts), losses(parts, stored=True)
    assert all(torch.equal(online[name], cached[name]) for name in online)


def test_a_perceptual_term_finds_what_latents_were_made_of(looks):
    """Generated images are looked at; the real ones were, for their latents."""
    parts = built("animals/rae", "objective.prediction=x", "terms.pdino=on",
                  "terms.pdino.encoder=animals-vit", "terms.pdino.weight=0.1")  # fmt: skip
    looks.clear()
    losses(parts)
    assert looks[:2] == [8, 8] and len(looks) == 3 and looks[2] <= COUNT


def test_training_ends_in_the_same_bits(tmp_path: Path, monkeypatch):
    logs, weights = [], []
    for name in ("together", "apart"):
        with monkeypatch.context() as patch:
            if name == "apart":
                apart(patch)
            parts = built()
        (tmp_path / name).mkdir()
        train(DiffusionTrainer(parts), tmp_path / name, Hooks())
        logs.append(unclocked(tmp_path / name))
        weights.append(dict(parts.model.state_dict()))
    assert logs[0] == logs[1] and unlike(*weights) == []


class Named(VisionEncoder):
    """Features that say how many images were seen beside each."""

    width, grid = 1, 1

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint

    def forward(self, images: Tensor) -> VisionFeatures:
        return VisionFeatures(images.new_full((len(images), 1, 1), len(images)))


def test_only_the_same_network_on_the_same_pixels_is_shared(monkeypatch):
    """The fingerprint says both: weights, size, normalisation."""
    for theirs, group in (("dinov2-vit-b/224/abc", COUNT), ("dinov2-vit-b/256/abc", 8)):
        teachers = Teachers(28)
        teacher = teachers.encoder("animals-vit")
        monkeypatch.setattr(teacher, "_network", Named(theirs))
        encoder = Named("dinov2-vit-b/256/abc")
        found = teachers.share(encoder)
        assert found is (teacher if group == 8 else None)
        assert (teacher.network is encoder) == (group == 8)
        seen = teacher(torch.zeros(COUNT, 3, 28, 28))
        assert seen.patches.shape == (COUNT, 1, 1) and seen.cls is None
        assert seen.patches.unique().tolist() == [group]
