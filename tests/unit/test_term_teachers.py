"""Teachers are opened once, look once, learn nothing, and say in time what does not fit."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from term_steps import SIZE, TOKENIZER, batch, encoder, facts, silhouettes
from tiny_encoders import write_encoder
from torch import Tensor, nn

from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.encoders import teachers as module
from nanogen.encoders.teachers import Teachers
from nanogen.encoders.vision import VisionEncoder, VisionFeatures
from nanogen.errors import ConfigError
from nanogen.model import Model
from nanogen.objectives.base import Facts
from nanogen.objectives.flow import FlowConfig
from nanogen.objectives.pdino import PdinoConfig
from nanogen.objectives.reg import RegConfig
from nanogen.objectives.repa import RepaConfig
from nanogen.types import LabelCondition

CPU = torch.device("cpu")


def model(known: Facts, *names: str) -> Model:
    torch.manual_seed(0)
    configs = {
        "pdino": PdinoConfig(encoder="animals-vit"),
        "reg": RegConfig(encoder="animals-vit"),
        "repa": RepaConfig(encoder="animals-vit", block=1),
    }
    terms = {name: configs[name].build(known) for name in names}
    objective = FlowConfig(prediction="x", time_mean=0.8).build(known, terms)
    sizes = {"depth": 4, "width": 16, "heads": 2}
    sizes |= {"decoder_depth": 1, "decoder_width": 24, "decoder_heads": 2}
    labels = Labels(3)
    backbone = DdtConfig(**sizes).build(TOKENIZER.spec, labels.spec, objective.wiring)
    return Model(backbone, objective, labels, dropout=0.0)


def looks(known: Facts, made: Model) -> list[tuple[int, bool]]:
    """How many images the encoder sees in each pass of a training step, and whether with a
    gradient.
    """
    seen = []
    network = known.known_teachers().encoder("animals-vit", sees_all=False).network
    hook = network.register_forward_pre_hook(
        lambda _, given: seen.append((len(given[0]), given[0].requires_grad))
    )
    given = batch()
    losses, weights = made(given, given.images * 2 - 1, LabelCondition(given.labels))
    sum(weights[name] * part.mean() for name, part in losses.items()).backward()
    hook.remove()
    return seen


def gated(made: Model) -> int:
    return int((made.objective.times(batch().keys) < 0.7).sum())


def test_one_look_serves_all_terms() -> None:
    known = facts()
    made = model(known, "pdino", "reg", "repa")
    assert 0 < gated(made) < 6
    assert looks(known, made) == [(6, False), (gated(made), True)]
    # Another batch is looked at anew, also where its images are the same.
    assert looks(known, made) == [(6, False), (gated(made), True)]


def test_the_order_of_terms_makes_no_difference() -> None:
    """The perceptual term comes first, and still does not look for itself."""
    known = facts()
    made = model(known, "pdino", "repa")
    assert sorted(looks(known, made)) == sorted([(6, False), (gated(made), True)])


def test_alone_the_perceptual_term_looks_at_what_it_compares() -> None:
    known = facts()
    made = model(known, "pdino")
    assert sorted(looks(known, made)) == [(gated(made), False), (gated(made), True)]


def test_rows_are_those_of_the_whole() -> None:
    rows = torch.tensor([4, 0])
    images = silhouettes()
    for sees_all in (False, True):
        teacher = Teachers(SIZE).encoder("animals-vit", sees_all=sees_all)
        found = teacher.rows(images, rows)
        assert torch.allclose(found.patches, encoder()(images).patches[rows], atol=1e-5)
        assert torch.allclose(found.cls, encoder()(images).cls[rows], atol=1e-5)


def test_one_network_for_a_name_and_another_for_another_path() -> None:
    all_of_them = Teachers(SIZE)
    one = all_of_them.encoder("animals-vit", owner="terms.a")
    assert all_of_them.encoder("animals-vit", owner="terms.b") is one
    assert all_of_them.encoder("animals-vit", "elsewhere") is not one
    assert one.owners == ["terms.a", "terms.b"]


def test_nothing_is_opened_before_it_is_asked() -> None:
    with mock.patch.object(module, "open_encoder", side_effect=AssertionError):
        known = facts()
        made = model(known, "pdino", "reg", "repa")
        assert made.objective.leaves == {"cls": 64}


def test_frozen_and_apart() -> None:
    known = facts()
    made = model(known, "pdino", "reg", "repa")
    looks(known, made)
    network = known.known_teachers().encoder("animals-vit", sees_all=False).network
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    made.train()
    assert not any(inner.training for inner in network.modules())
    theirs = {id(p) for p in network.parameters()}
    assert not theirs & {id(p) for p in made.parameters()}
    assert not any("teacher" in name for name in made.state_dict())


def test_devices() -> None:
    """Opened on a device, it stays there; opened before, it moves."""
    for early in (False, True):
        all_of_them = Teachers(SIZE)
        teacher = all_of_them.encoder("animals-vit")
        other = all_of_them.module(lambda: nn.Linear(2, 2))
        if early:
            assert teacher.network is teacher.network and other.network.weight.device == CPU
        all_of_them.open(torch.device("meta"))
        assert all(p.is_meta for p in teacher.network.parameters()) and other.network.weight.is_meta
        assert not other.network.training and not other.network.weight.requires_grad


def test_features_have_the_gradient_of_the_images_and_are_float32() -> None:
    teacher = Teachers(SIZE).encoder("animals-vit")
    images = silhouettes().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = teacher(images)
    assert found.patches.dtype == torch.float32 and found.patches.requires_grad
    assert torch.equal(found.patches, encoder()(silhouettes()).patches)
    with torch.no_grad():
        assert not teacher(images).patches.requires_grad


class Bare(VisionEncoder):
    """An encoder without a class token."""

    width, grid = 64, 7

    def forward(self, images: Tensor) -> VisionFeatures:
        return VisionFeatures(images.new_zeros(len(images), 49, 64))


@pytest.mark.parametrize("name", ["reg", "repa"])
def test_class_tokens_are_asked_for_when_it_is_opened(name: str) -> None:
    known = facts()
    if name == "reg":
        RegConfig(encoder="animals-vit").build(known)
    else:
        RepaConfig(encoder="animals-vit", block=1, class_token=True).build(known)
    message = rf"terms\.{name}\.encoder=animals-vit has no class token"
    with (
        mock.patch.object(module, "open_encoder", lambda *_: Bare()),
        pytest.raises(ConfigError, match=message),
    ):
        known.known_teachers().open(CPU)


def test_what_is_asked_after_it_is_opened_is_asked_at_once() -> None:
    teacher = Teachers(SIZE).encoder("animals-vit")
    assert teacher.grid == 7
    with pytest.raises(ConfigError, match="never"):
        teacher.require(mock.Mock(side_effect=ConfigError("never")))


def test_files_of_another_width(tmp_path) -> None:
    """The leaf of REG and the projector of REPA were made for the width of the name."""
    folder = write_encoder(tmp_path / "dino", "dinov2-vit-s", num_hidden_layers=1)
    known = facts(image_size=256, teachers=Teachers(256))
    RegConfig(encoder="dinov2-vit-s", path=str(folder)).build(known)
    with pytest.raises(ConfigError, match=r"terms\.reg: .* width 32, but dinov2-vit-s has 384"):
        known.known_teachers().open(CPU)


def test_messages_name_the_terms() -> None:
    known = facts()
    with pytest.raises(ConfigError, match=r"terms\.reg: unknown encoder 'dinov9'"):
        RegConfig(encoder="dinov9").build(known)
    RegConfig().build(known)
    PdinoConfig().build(known)
    message = r"terms\.reg and terms\.pdino: encoder 'dinov2-vit-b' takes images of 256 px"
    with pytest.raises(ConfigError, match=message):
        known.known_teachers().open(CPU)
