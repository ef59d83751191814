"""GenEval on tiny models, end to end; its averages on published counts; what it refuses."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import tiny_geneval
import torch
import transformers
from literal_instances import literal_instances
from measuring import measured
from PIL import Image
from tiny_geneval import PROMPTS, SCENES, SIDE

from nanogen import store
from nanogen.data.scenes import Scenes
from nanogen.errors import ConfigError, MetricError
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Outcomes
from nanogen.metrics.clip_score import CLIP_L
from nanogen.metrics.colour_clip import COLOURS
from nanogen.metrics.geneval import GenEval
from nanogen.metrics.geneval_rules import RELATIONS, relations
from nanogen.metrics.mask2former import MASK2FORMER
from nanogen.metrics.uncertainty import Judged
from nanogen.prompts.geneval import METADATA, NAMES, TAGS
from nanogen.types import Request

FLUX = {
    "single_object": (319, 320),
    "two_object": (336, 396),
    "counting": (239, 320),
    "colors": (294, 376),
    "position": (86, 400),
    "color_attr": (193, 400),
}
"""correct images of FLUX.1-dev, of all images, with the detector of GenEval's own evaluation"""
COUNT = 18


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    """Tiny models and six prompts in a store of this file's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        tiny_geneval.put(patch, tmp_path_factory.mktemp("tiny"))
        yield


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(Scenes().build(), torch.device("cpu"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Three of each prompt, uint8 [18, 3, 24, 24]: soft blots."""
    coarse = torch.rand(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, (24, 24), mode="bicubic")
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


def texts(indices: torch.Tensor) -> tuple[str, ...]:
    return tuple(PROMPTS[int(i) % len(PROMPTS)] for i in indices)


def scores(metric: GenEval, images: torch.Tensor, order: torch.Tensor, batch: int):
    batches = [(Request(i, texts=texts(i)), images[i]) for i in order.split(batch)]
    return {
        name: found.score for name, found in measured([metric], batches, metric.context).items()
    }


@pytest.fixture(scope="module")
def plain(context, images):
    """All scores, of 18 images in one batch."""
    return scores(GenEval(context), images, torch.arange(COUNT), COUNT)


def literal_verdict(scene, found, colour_of) -> bool:
    """The rules once more, step by step as published, from the metadata."""
    threshold = 0.9 if scene["tag"] == "counting" else 0.3
    groups = []
    correct = True
    ranked = sorted((one for one in found if one.score > threshold), key=lambda one: -one.score)
    for wanted in scene["include"]:
        group = [one for one in ranked if NAMES[one.label] == wanted["class"]][: wanted["count"]]
        right = len(group) == wanted["count"]
        if right and "color" in wanted:
            right = all(colour_of(one, wanted["class"]) == wanted["color"] for one in group)
        if right and "position" in wanted:
            relation, target = wanted["position"]
            right = groups[target] is not None and all(
                relation in relations(a.box, b.box) for a in group for b in groups[target]
            )
        groups.append(group if right else None)
        correct &= right
    for wanted in scene.get("exclude", ()):
        alike = [one for one in ranked if NAMES[one.label] == wanted["class"]][:16]
        correct &= len(alike) < wanted["count"]
    return correct


class Literal:
    """The evaluator of DiffusionBench, or GenEval's own, of transformers' processors and loops."""

    def __init__(self, official: bool) -> None:
        self.official = official
        folder = store.find(MASK2FORMER).path
        self.detector = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder)
        self.clip = transformers.CLIPModel.from_pretrained(store.find(CLIP_L).path)
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(store.find(CLIP_L).path)
        side = tiny_geneval.CLIP_SIDE
        self.fit = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @torch.no_grad()
    def correct(self, image: torch.Tensor, scene) -> bool:
        shown = Image.fromarray(image.permute(1, 2, 0).numpy())
        sides = {"shortest_edge": SIDE, "longest_edge": 107}
        processor = transformers.Mask2FormerImageProcessorPil()
        fed = processor(shown, size=sides, return_tensors="pt")
        out = self.detector.eval()(**fed)
        classes, masks = out.class_queries_logits[0], out.masks_queries_logits[0]
        size = tuple(fed["pixel_values"].shape[2:])
        found = literal_instances(
            classes.numpy(), masks.numpy(), size, tuple(image.shape[1:]), self.official
        )
        return literal_verdict(scene, found, lambda one, name: self.colour(shown, one, name))

    def colour(self, shown: Image.Image, one, name: str) -> str:
        canvas = Image.new("RGB", shown.size, color="#999")
        seen = Image.composite(shown, canvas, Image.fromarray(one.mask))
        seen = seen.crop(tuple(int(end) for end in one.box))
        features = self.clip.get_image_features(**self.fit(seen, return_tensors="pt")).pooler_output
        best = []
        for colour in COLOURS:
            captions = [f"a photo of a {colour} {name}", f"a photo of a {colour}-colored {name}"]
            captions.append(f"a photo of a {colour} object")
            tokens = self.tokenizer(captions, padding=True, return_tensors="pt")
            lines = self.clip.get_text_features(**tokens).pooler_output
            mean = (lines / lines.norm(dim=-1, keepdim=True)).mean(0)
            best.append(float(features[0] @ (mean / mean.norm())))
        return COLOURS[int(np.argmax(best))]


@pytest.mark.parametrize("compat", ["official", "reference"])
def test_every_verdict_is_that_of_the_published_steps(context, images, compat):
    metric, literal = GenEval(context, {"compat": compat}), Literal(compat == "official")
    asked = texts(torch.arange(7))
    found = metric.judge(images[:7], asked).tolist()
    expected = [
        float(literal.correct(image, SCENES[PROMPTS.index(text)]))
        for image, text in zip(images[:7], asked, strict=True)
    ]
    assert found == expected
    assert 1 < sum(found) < 7


def test_scores_by_tag_and_their_averages(plain):
    outcomes = plain["geneval"].outcomes
    assert outcomes.prompts == texts(torch.arange(COUNT))
    assert outcomes.tags == tuple(SCENES[i % 6]["tag"] for i in range(COUNT))
    values = np.array(outcomes.values).reshape(-1, 6)
    assert set(values.flat) == {0.0, 1.0}
    for place, tag in enumerate(TAGS):
        score = plain[f"geneval/{tag}"]
        assert score.value == values[:, place].mean() and score.n == 3
        assert score.standard_error is None, "one prompt has no spread"
    assert plain["geneval"].value == pytest.approx(values.mean(0).mean())
    assert plain["geneval/image-mean"].value == pytest.approx(values.mean())
    assert plain["geneval/any-correct"].value == values.max(0).mean()
    assert plain["geneval/any-correct"].n == 6 and plain["geneval"].n == COUNT


def test_facts_say_what_a_score_depends_on(plain, context, images):
    facts = plain["geneval"].facts
    assert facts["compat"] == "official" and facts["precision"] == "fp32"
    assert facts["detector_hash"] == store.find(MASK2FORMER).sha256
    assert facts["clip_hash"] == store.find(CLIP_L).sha256
    assert facts["images_per_prompt"] == 3 and facts["prompts"] == 6
    assert facts["tags"] == ", ".join(TAGS)
    uneven = scores(GenEval(context), images, torch.arange(8), 8)
    assert uneven["geneval"].facts["images_per_prompt"] == "1 to 2"


def test_options_name_the_scores(context, images):
    metric = GenEval(context, {"compat": "reference", "crop": "no"})
    found = scores(metric, images, torch.arange(6), 6)
    title = "geneval[compat=reference,crop=no]"
    assert {title, f"{title}/image-mean", f"{title}/any-correct", f"{title}/colors"} <= set(found)
    assert found[title].facts["compat"] == "reference"
    with pytest.raises(ConfigError, match="compat=ours"):
        harness.choose(["geneval[compat=ours]"], context)


@pytest.mark.parametrize("batch", [1, 7])
def test_neither_batches_nor_order_change_a_bit(context, images, plain, batch):
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    found = scores(GenEval(context), images, order, batch)
    assert found.keys() == plain.keys()
    for name, score in plain.items():
        assert found[name].value == score.value
        assert found[name].standard_error == score.standard_error
    assert found["geneval"].outcomes == plain["geneval"].outcomes


def test_reasons_can_be_asked_for(context, images):
    metric = GenEval(context)
    verdicts = metric.verdicts(images[:12], texts(torch.arange(12)))
    assert any(verdict.correct for verdict in verdicts)
    assert all(verdict.correct == (verdict.reason == "") for verdict in verdicts)
    assert any("2 cow" in verdict.reason for verdict in verdicts[2::6])


def counted(counts) -> Judged:
    """Four images of each prompt, of which so many are correct: as many as fit in each prompt."""
    prompts: list[str] = []
    tags: list[str] = []
    values: list[float] = []
    for tag, (correct, total) in counts.items():
        prompts += [f"{tag} {place // 4}" for place in range(total)]
        tags += [tag] * total
        values += [1.0] * correct + [0.0] * (total - correct)
    return Judged(Outcomes(tuple(prompts), tuple(tags), tuple(values)))


def test_published_counts_of_flux(context):
    found = GenEval(context).scores(counted(FLUX), torch.zeros(0))
    assert found["geneval"].value == pytest.approx(0.67861, abs=1e-5)
    assert found["geneval/image-mean"].value == pytest.approx(0.66320, abs=1e-5)
    for tag, (correct, total) in FLUX.items():
        assert found[f"geneval/{tag}"].value == correct / total
    at_least_one = sum(math.ceil(correct / 4) for correct, _ in FLUX.values())
    assert found["geneval/any-correct"].value == at_least_one / 553
    assert found["geneval/any-correct"].n == 553


def test_standard_errors_are_of_prompts_within_tags(context):
    """All images of a prompt agree here, so the closed form is that of single images."""
    found = GenEval(context).scores(counted(FLUX), torch.zeros(0))
    shares = {tag: correct / total for tag, (correct, total) in FLUX.items()}
    variance = {tag: p * (1 - p) / (FLUX[tag][1] / 4) for tag, p in shares.items()}
    of_tags = math.sqrt(sum(variance.values())) / 6
    weights = {tag: total / 2212 for tag, (_, total) in FLUX.items()}
    of_images = math.sqrt(sum(weights[tag] ** 2 * variance[tag] for tag in FLUX))
    assert found["geneval"].standard_error == pytest.approx(of_tags, rel=0.08)
    assert found["geneval/image-mean"].standard_error == pytest.approx(of_images, rel=0.08)
    assert found["geneval/any-correct"].standard_error == pytest.approx(of_images, rel=0.08)
    position = math.sqrt(variance["position"])
    assert found["geneval/position"].standard_error == pytest.approx(position, rel=0.08)


def test_models_are_opened_late_and_freed(context, images):
    metric = GenEval(context)
    metric.check(6)
    assert not {"detector", "colours"} & set(vars(metric))
    first = metric.judge(images[:6], texts(torch.arange(6)))
    held = [weakref.ref(metric.detector.network), weakref.ref(metric.colours.clip.network)]
    metric.close()
    assert [one() for one in held] == [None, None]
    metric.close()
    assert torch.equal(metric.judge(images[:6], texts(torch.arange(6))), first)


def test_too_few_images_are_refused(context):
    with pytest.raises(
        MetricError, match=r"each of its 6 prompts \(published: 4 of each, 24\), not 5 samples"
    ):
        GenEval(context).check(5)


def test_missing_prompts_are_refused(context, images):
    """As many images as there are prompts do not show all of them."""
    five = tuple(PROMPTS[i % 5] for i in range(COUNT))
    batch = (Request(torch.arange(COUNT), texts=five), images)
    with pytest.raises(MetricError, match="each of its 6 prompts, and only 5 of them"):
        measured([GenEval(context)], [batch], context)
    with pytest.raises(MetricError, match="only 5 of them"):
        GenEval(context).check_request(batch[0])


def test_prompts_of_others_are_refused(context, images):
    batch = (Request(torch.arange(1), texts=("a photo of a zebra",)), images[:1])
    with pytest.raises(MetricError, match="'a photo of a zebra' is not one of its 6 prompts"):
        measured([GenEval(context)], [batch], context)


def test_what_is_missing_is_named(context, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    metric = GenEval(context)
    with pytest.raises(ConfigError, match=MASK2FORMER.name) as problem:
        metric.check(2212)
    assert CLIP_L.name in str(problem.value) and METADATA.name in str(problem.value)


def test_half_precision_runs(images):
    context = Context(Scenes().build(), torch.device("cpu"), precision="bf16")
    found = scores(GenEval(context), images, torch.arange(6), 6)
    assert found["geneval"].facts["precision"] == "bf16"


def test_relations_of_the_prompts_are_those_of_the_rules():
    wanted = [
        one["position"][0] for scene in SCENES for one in scene["include"] if "position" in one
    ]
    assert wanted and set(wanted) <= set(RELATIONS)
