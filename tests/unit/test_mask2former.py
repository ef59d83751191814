"""The detector: what it feeds its network is what transformers feeds it, and files are checked."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from literal_instances import literal_instances
from PIL import Image
from tiny_geneval import SIDE, detector
from transformers.image_transforms import get_size_with_aspect_ratio

from nanogen.errors import ConfigError
from nanogen.metrics.instances import OFFICIAL, REFERENCE
from nanogen.metrics.mask2former import Mask2Former, fed_size, preprocessed
from nanogen.prompts.geneval import NAMES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return detector(tmp_path_factory.mktemp("mask2former") / "model")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(Mask2Former, "shortest", SIDE)
    monkeypatch.setattr(Mask2Former, "longest", 107)


def pictures(count: int, height: int = 40, width: int = 40) -> torch.Tensor:
    """Soft coloured blots, uint8 [count, 3, height, width]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


def test_published_sizes():
    assert fed_size(1024, 1024, 800, 1333) == (800, 800)
    assert fed_size(200, 300, 800, 1333) == (800, 1216)
    assert fed_size(256, 1024, 800, 1333) == (352, 1344)
    assert (Mask2Former.shortest, Mask2Former.longest) == (800, 1333)


def test_sizes_as_transformers_computes_them():
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(20, 3000, (2000, 2)), (800, 1000), (1000, 800), (480, 800), (333, 333)]
    for height, width in ((int(h), int(w)) for h, w in sizes):
        whole = get_size_with_aspect_ratio((height, width), 800, 1333)
        expected = tuple(math.ceil(side / 32) * 32 for side in whole)
        assert fed_size(height, width, 800, 1333) == expected, (height, width)


@pytest.mark.parametrize("size", [(40, 40), (128, 128), (40, 57), (100, 300)])
def test_images_are_fed_as_transformers_feeds_them(size):
    images = pictures(2, *size)
    processor = transformers.Mask2FormerImageProcessorPil()
    sides = {"shortest_edge": SIDE, "longest_edge": 107}
    shown = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = processor(shown, size=sides, return_tensors="pt")["pixel_values"]
    found = preprocessed(images, fed_size(*size, SIDE, 107))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("compat", [OFFICIAL, REFERENCE], ids=["official", "reference"])
def test_equal_to_transformers_and_loops_over_pixels(folder, small, compat):
    """The whole way, from bytes to boxes, with the processor and network of transformers."""
    images = pictures(3, 24, 30)
    network = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    processor = transformers.Mask2FormerImageProcessorPil()
    sides = {"shortest_edge": SIDE, "longest_edge": 107}
    found = Mask2Former(folder, CPU, "fp32", compat).detect(images)
    for image, instances in zip(images, found, strict=True):
        shown = Image.fromarray(image.permute(1, 2, 0).numpy())
        fed = processor(shown, size=sides, return_tensors="pt")
        with torch.no_grad():
            out = network(**fed)
        expected = literal_instances(
            out.class_queries_logits[0].numpy(),
            out.masks_queries_logits[0].numpy(),
            tuple(fed["pixel_values"].shape[2:]),
            (24, 30),
            compat is OFFICIAL,
        )
        assert len(instances) == len(expected) > 2
        for one, literal in zip(instances, expected, strict=True):
            assert one.name == NAMES[literal.label]
            assert one.score == pytest.approx(literal.score, abs=1e-5)
            assert one.box == literal.box
            assert np.array_equal(one.mask.numpy(), literal.mask)


def same(found, expected) -> bool:
    return len(found) == len(expected) and all(
        a.name == b.name and a.score == b.score and a.box == b.box and torch.equal(a.mask, b.mask)
        for a, b in zip(found, expected, strict=True)
    )


def test_neither_batches_nor_neighbours_change_a_bit(folder, small):
    images = pictures(5)
    opened = Mask2Former(folder, CPU, "fp32", OFFICIAL)
    together = list(opened.detect(images))
    for image, expected in zip(images, together, strict=True):
        assert same(next(opened.detect(image[None])), expected)
        assert expected and not any(one.mask.requires_grad for one in expected)
        for one in expected:
            assert 0 <= one.box[0] < one.box[2] <= 40 and 0 <= one.box[1] < one.box[3] <= 40


def test_several_images_at_once_find_the_same(folder, small):
    """As on a GPU: the last part is filled up with an image that is there already."""
    images = pictures(5)
    opened = Mask2Former(folder, CPU, "fp32", OFFICIAL)
    alone = list(opened.detect(images))
    opened.at_once = 3
    for found, expected in zip(opened.detect(images), alone, strict=True):
        assert [one.name for one in found] == [one.name for one in expected]
        assert [one.score for one in found] == pytest.approx([e.score for e in expected], abs=1e-4)


def test_half_precision_sees_nearly_the_same(folder, small):
    images = pictures(4)
    half = list(Mask2Former(folder, CPU, "bf16", OFFICIAL).detect(images))
    full = list(Mask2Former(folder, CPU, "fp32", OFFICIAL).detect(images))
    surest = [max(one.score for one in found) for found in full]
    assert [max(one.score for one in found) for found in half] == pytest.approx(surest, abs=0.1)
    assert [one.score for one in half[0]] != [one.score for one in full[0]]


def changed(folder: Path, place: Path, config=None, tensors=None) -> Path:
    """A copy of a model, of which the config or the tensors were edited in place."""
    shutil.copytree(folder, place)
    if config is not None:
        file = place / "config.json"
        fields = json.loads(file.read_text())
        config(fields)
        file.write_text(json.dumps(fields))
    if tensors is not None:
        file = place / "model.safetensors"
        held = safetensors.torch.load_file(file)
        tensors(held)
        safetensors.torch.save_file(held, file, metadata={"format": "pt"})
    return place


def opened(folder: Path) -> Mask2Former:
    return Mask2Former(folder, CPU, "fp32", OFFICIAL)


def test_published_files_hold_tables_that_are_not_needed(folder, tmp_path):
    layer = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    place = changed(
        folder,
        tmp_path / "old",
        tensors=lambda held: held.update({f"{layer}.relative_position_index": torch.zeros(16, 16)}),
    )
    assert opened(place).network.config.num_labels == 80


def test_files_of_another_model_are_refused(folder, tmp_path):
    place = changed(
        folder, tmp_path / "less", tensors=lambda held: held.pop("class_predictor.bias")
    )
    with pytest.raises(ConfigError, match="1 missing, such as class_predictor.bias"):
        opened(place)
    extra = {"head.weight": torch.zeros(2)}
    place = changed(folder, tmp_path / "more", tensors=lambda held: held.update(extra))
    with pytest.raises(ConfigError, match="1 unknown, such as head.weight"):
        opened(place)


def test_published_names_of_classes(folder, tmp_path):
    """Those of the published config.json that differ from GenEval's, by their place in COCO."""
    names = {3: "motorbike", 4: "aeroplane", 57: "sofa", 58: "pottedplant", 60: "diningtable"}
    names |= {62: "tvmonitor", 64: "mouse", 65: "remote", 66: "keyboard"}

    def published(fields):
        fields["id2label"] = {str(i): names.get(i, name) for i, name in enumerate(NAMES)}

    assert opened(changed(folder, tmp_path / "published", published)).network is not None


def test_other_classes_are_refused(folder, tmp_path):
    def swapped(fields):
        names = fields["id2label"]
        names["0"], names["1"] = names["1"], names["0"]

    def renamed(fields):
        fields["id2label"]["0"] = "human"

    with pytest.raises(ConfigError, match="another order"):
        opened(changed(folder, tmp_path / "swapped", swapped))
    with pytest.raises(ConfigError, match="not the 80 of GenEval .such as 'human'"):
        opened(changed(folder, tmp_path / "renamed", renamed))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no Mask2Former"):
        opened(tmp_path)
