"""The scene score: colours, detections, ceiling and floor, invariances, and its standard error."""

from __future__ import annotations

import json
import runpy
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from measuring import measured

from nanogen.data.captions import PALETTE, TAGS, parse
from nanogen.data.draws import generator
from nanogen.data.scenes import Scenes
from nanogen.encoders.scene_detector import WEIGHTS, SceneDetector
from nanogen.errors import DataError, MetricError
from nanogen.metrics.base import Context, Observation
from nanogen.metrics.geneval_rules import Detection
from nanogen.metrics.prompted import key_of
from nanogen.metrics.scenes import SceneEval, deranged, real_scenes, tint
from nanogen.types import Request

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_scene_detector.py"


@pytest.fixture(scope="module")
def source():
    return Scenes().build()


@pytest.fixture(scope="module")
def detector():
    return SceneDetector()


@pytest.fixture(scope="module")
def pictures(source):
    """120 held-out scenes with their objects, of the evaluation captions."""
    scenes = [parse(text) for text in source.prompts()[:120]]
    return [
        source.compose(s, generator("held-out", i, 7), "held-out") for i, s in enumerate(scenes)
    ]


@pytest.fixture(scope="module")
def metric(source):
    """A metric whose ceiling and floor have been computed."""
    made = SceneEval(Context(source, torch.device("cpu")))
    made.reference  # noqa: B018
    return made


def scores(metric: SceneEval, images, texts, batch: int, order=None):
    """Scores of images drawn for texts, shown to the harness in batches and in some order."""
    parts = (torch.arange(len(images)) if order is None else order).split(batch)
    batches = [(Request(i, texts=tuple(texts[k] for k in i)), images[i]) for i in parts]
    found = measured([metric], batches, metric.context)
    return {name: one.score for name, one in found.items()}


def test_colours_of_real_scenes_are_read_from_their_boxes(pictures):
    objects = [(picture, thing) for picture in pictures for thing in picture.objects]
    read = [tint(p.image, Detection(o.name, 1.0, o.box)) == o.colour for p, o in objects]
    assert len(read) > 200
    assert sum(read) == len(read)


@pytest.mark.parametrize("colour", PALETTE)
@pytest.mark.parametrize("opacity", [0.2, 0.6, 1.0])
def test_a_pale_tint_keeps_its_colour(colour, opacity):
    full = torch.tensor(PALETTE[colour])[:, None, None]
    image = (255 + opacity * (full - 255)).round().to(torch.uint8).expand(3, 20, 20).clone()
    image[:, :8] = 255
    assert tint(image, Detection("cow", 1.0, (2.0, 2.0, 18.0, 18.0))) == colour


def test_boxes_lie_on_the_objects(pictures, detector):
    images = torch.stack([picture.image for picture in pictures])
    overlaps = []
    for picture, found in zip(pictures, detector.detect(images), strict=True):
        for thing in picture.objects:
            overlaps.append(max((overlap(thing.box, one.box) for one in found), default=0))
    assert torch.tensor(overlaps).mean() > 0.8


def test_boxes_scale_with_the_canvas(detector):
    for size in (32, 56):
        source = Scenes(size=size).build()
        scene = source.compose(
            parse("a cow left of a dog"), generator("held-out", 0, 0), "held-out"
        )
        found = detector.detect(scene.image[None])[0]
        for thing in scene.objects:
            assert max(overlap(thing.box, one.box) for one in found) > 0.6


def test_scores_are_probabilities(source, detector):
    """Of the detections near a score, about that share is right (expected calibration error)."""
    scenes = [source.picture("held-out", i, 99) for i in range(400)]
    found = detector.detect(torch.stack([scene.image for scene in scenes]))
    score, right = [], []
    for scene, detections in zip(scenes, found, strict=True):
        for one in detections:
            there = [o for o in scene.objects if overlap(o.box, one.box) > 0.4]
            score.append(one.score)
            right.append(any(o.name == one.name for o in there))
    score, right = torch.tensor(score), torch.tensor(right).float()
    bins = (score * 10).long()
    gaps = [
        (bins == k).sum() * (score[bins == k].mean() - right[bins == k].mean()).abs()
        for k in bins.unique()
    ]
    assert sum(gaps) / len(score) < 0.05


def test_the_detector_is_frozen(detector):
    assert not detector.train().training
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert sum(parameter.numel() for parameter in detector.parameters()) <= 500_000
    assert WEIGHTS.stat().st_size <= 1_000_000


def test_the_shipped_file_is_half_precision_safetensors():
    data = WEIGHTS.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    assert kinds <= {"F16", "I64"}


def test_a_broken_file_is_one_clear_line(tmp_path):
    broken = tmp_path / "detector.safetensors"
    broken.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(DataError, match="missing or broken"):
        SceneDetector(broken)
    with pytest.raises(DataError, match="missing or broken"):
        SceneDetector(tmp_path / "nothing.safetensors")


def test_ceiling_is_high_and_floor_is_low(metric):
    ceiling, floor = metric.reference.ceiling, metric.reference.floor
    assert set(ceiling) == set(floor) == set(TAGS)
    assert sum(ceiling.values()) / 6 > 0.96
    assert min(ceiling.values()) > 0.9
    assert sum(floor.values()) / 6 < 0.15


def test_real_scenes_reach_the_ceiling_and_shuffled_ones_the_floor(metric, source):
    texts = source.prompts()[:120]
    images = real_scenes(source, texts, "held-out", draw0=5)
    own = scores(metric, images, texts, 50)["scene-eval"]
    assert own.value > 0.94
    assert own.facts["tags"] == ", ".join(TAGS)
    assert own.facts["checker"] > 0.96
    assert scores(metric, images, deranged(texts), 50)["scene-eval"].value < 0.2


def test_scores_do_not_depend_on_batches_or_order(metric, source):
    texts = source.prompts()[:42]
    images = real_scenes(source, texts, "held-out", draw0=3)
    images[::2] = real_scenes(source, deranged(texts), "held-out", draw0=3)[::2]
    whole = scores(metric, images, texts, 42)
    assert 0 < whole["scene-eval"].value < 1
    assert scores(metric, images, texts, 1) == whole
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    assert scores(metric, images, texts, 5, order) == whole


def test_the_main_score_is_the_mean_over_tags(metric):
    """Three of four right among colours, none of two among counts: 0.375 by tag, 0.5 by image."""
    prompts = metric.context.source.prompts()
    texts = [p for p in prompts if parse(p).tag == "colors"][:4]
    texts += [p for p in prompts if parse(p).tag == "counting"][:2]
    keys = torch.tensor([key_of(text) for text in texts])
    values = torch.tensor([[1.0], [1.0], [1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    found = metric.compute({}, {"keys": keys, "values": values})
    assert found["scene-eval"].value == pytest.approx(0.375)
    assert found["scene-eval/image-mean"].value == pytest.approx(0.5)
    assert found["scene-eval/colors"].value == pytest.approx(0.75)
    assert found["scene-eval"].facts["tags"] == "colors, counting"
    assert "scene-eval/position" not in found
    assert found["scene-eval/counting"].standard_error is None


def test_every_deranged_prompt_moves():
    for n in (2, 3, 7, 225):
        prompts = [str(k) for k in range(n)]
        moved = deranged(prompts)
        assert sorted(moved) == sorted(prompts)
        assert not any(a == b for a, b in zip(prompts, moved, strict=True))


def test_samples_without_captions_are_refused(metric):
    seen = Observation(
        torch.zeros(1, 3, 40, 40, dtype=torch.uint8),
        Request(torch.zeros(1, dtype=torch.int64), labels=torch.zeros(1, dtype=torch.int64)),
        lambda name: metric.detector,
    )
    with pytest.raises(MetricError, match="needs images with captions"):
        metric.update(seen)


@pytest.mark.slow
def test_training_learns_and_writes_a_detector(source, tmp_path, capsys):
    script = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    network = script.train(source, steps=24, report=8)
    losses = [float(line.split()[5]) for line in capsys.readouterr().out.splitlines()]
    assert losses[0] > losses[1] > losses[2]
    assert 0.5 <= script.calibrate(network, source) <= 3
    script.write(network, 0.5, tmp_path / "detector.safetensors")
    written = SceneDetector(tmp_path / "detector.safetensors")
    assert written.names == SceneDetector().names
    assert written.counting_threshold == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["detector.safetensors"]


def overlap(a, b) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (area - common)
