"""Scene score: does a sample show the scene that its caption asks for?

GenEval's rules (`geneval_rules`) over our own small detector (`scene-detector`), for the six kinds
of caption of `nanogen.data.captions`. It is not GenEval: another detector, other images, tints for
colours. So every score stands beside what the same checker says of real scenes, composed from
silhouettes that neither the detector nor the model was trained on: the ceiling, scenes with their
own captions; and the floor, scenes with captions that are not theirs.

Images are uint8 [B, 3, S, S].
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nanogen.data.captions import PALETTE, TAGS, Scene, parse
from nanogen.data.draws import generator
from nanogen.data.scenes import ScenesSource
from nanogen.encoders.scene_detector import SceneDetector
from nanogen.errors import MetricError
from nanogen.metrics.base import Score
from nanogen.metrics.geneval_rules import Detection, Rules, Verdict, judge
from nanogen.metrics.prompted import PromptedMetric
from nanogen.metrics.uncertainty import Judged
from nanogen.registry import register
from nanogen.types import Request

DRAWS = 2
"""real scenes of each evaluation caption behind ceiling and floor"""
SEED = 0


@dataclass(frozen=True)
class Bounds:
    """What the checker says of real held-out scenes, by tag and in all (the mean over the tags)."""

    ceiling: Mapping[str, float]
    """scenes with their own captions"""
    floor: Mapping[str, float]
    """the same scenes, each with the caption of another"""


@register("metric", "scene-eval", summary="GenEval's rules over our own detector, on small scenes")
class SceneEval(PromptedMetric):
    """`scene-eval` is the mean over the tags present, as GenEval's published code reports it;
    `scene-eval/image-mean` the share of all images; and `scene-eval/<tag>` the share for one kind
    of caption."""

    name = "scene-eval"
    version = 1
    minimum = 24

    @cached_property
    def detector(self) -> SceneDetector:
        return SceneDetector().to(self.context.device)

    @property
    def source(self) -> ScenesSource:
        """The real scenes; MetricError where the data set is another."""
        if not isinstance(self.context.source, ScenesSource):
            raise MetricError("scene-eval needs the data set scenes; choose another metric")
        return self.context.source

    def check(self, samples: int) -> None:
        super().check(samples)
        _ = self.source

    def check_request(self, request: Request) -> None:
        """Besides: DataError for a caption that is none of a scene."""
        for text in dict.fromkeys(self.texts_of(request)):
            parse(text)

    @cached_property
    def reference(self) -> Bounds:
        """Ceiling and floor on the evaluation captions, `DRAWS` held-out scenes of each."""
        source = self.source
        prompts, others = source.prompts() * DRAWS, deranged(source.prompts()) * DRAWS
        images = real_scenes(source, prompts, "held-out")
        found = []
        for batch in images.split(self.context.batch):
            found += self.detector.detect(batch.to(self.context.device))
        own = _check(self.detector, images, found, prompts)
        wrong = _check(self.detector, images, found, others)
        return Bounds(_shares(prompts, own), _shares(others, wrong))

    def close(self) -> None:
        self.__dict__.pop("detector", None)

    def judge(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        found = self.detector.detect(images.to(self.context.device))
        verdicts = _check(self.detector, images.cpu(), found, texts)
        return torch.tensor([verdict.correct for verdict in verdicts], dtype=torch.float64)

    def tag_of(self, text: str) -> str:
        return parse(text).tag

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        tags = [tag for tag in TAGS if tag in judged.tags()]
        scores = {
            self.name: judged.score_of_tags(self._facts(tags)),
            f"{self.name}/image-mean": judged.score_of_images({}),
        }
        for tag in tags:
            bounds = {"ceiling": self.reference.ceiling[tag], "floor": self.reference.floor[tag]}
            scores[f"{self.name}/{tag}"] = judged.score_of_images(bounds, tag)
        return scores

    def _facts(self, tags: Sequence[str]) -> dict[str, str | int | float]:
        """What a reader must know beside the main score; the bounds are over the same tags as the
        score."""
        ceiling, floor = self.reference.ceiling, self.reference.floor
        return {
            "tags": ", ".join(tags),
            "checker": statistics.fmean(ceiling.values()),
            "ceiling": statistics.fmean(ceiling[tag] for tag in tags),
            "floor": statistics.fmean(floor[tag] for tag in tags),
            "detector": "scene-detector",
            "detector_hash": self.detector.fingerprint,
            "reference_hash": self.context.source.fingerprint,
        }


def real_scenes(source: ScenesSource, prompts: Sequence[str], split: str, draw0: int = 0) -> Tensor:
    """Real scenes that show the given captions, of the silhouettes of a split: uint8 [n, 3, size,
    size].

    Scene i is a function of (split, i, draw0, caption), so other draws give other images of the
    same captions.
    """
    return torch.stack(
        [
            source.compose(parse(text), generator(split, index, draw0), split).image
            for index, text in enumerate(prompts)
        ]
    )


def judge_scene(image: Tensor, found: Sequence[Detection], scene: Scene, rules: Rules) -> Verdict:
    """GenEval's rules for one image, uint8 [3, S, S], with colours read as tints."""
    return judge(found, scene, lambda detection: tint(image, detection), rules)


def tint(image: Tensor, detection: Detection) -> str:
    """The colour of the palette that explains the pixels of a box best.

    A pixel of a tinted silhouette on white is white (1 - a) + colour a with some opacity a in [0,
    1]. For each colour the best a of each pixel is a projection, in closed form; the colour that
    leaves the least squared error over the box wins. `image` is uint8 [3, S, S].
    """
    xmin, ymin, xmax, ymax = detection.box
    rows = slice(int(ymin), max(int(ymin) + 1, round(ymax)))
    columns = slice(int(xmin), max(int(xmin) + 1, round(xmax)))
    away = 255 - image[:, rows, columns].double().flatten(1)  # [3, P]: from white to the pixel
    directions = 255 - torch.tensor(list(PALETTE.values()), dtype=torch.float64)  # [colours, 3]
    opacity = (directions @ away) / directions.square().sum(1, keepdim=True)
    fitted = opacity.clamp(0, 1)[:, None] * directions[:, :, None]  # [colours, 3, P]
    errors = (away - fitted).square().sum(dim=(1, 2))
    return list(PALETTE)[int(errors.argmin())]


def deranged(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts moved along one fixed random cycle, so that none keeps its place."""
    order = np.random.default_rng(SEED).permutation(len(prompts))
    follower = dict(zip(order, np.roll(order, 1), strict=True))
    return tuple(prompts[follower[place]] for place in range(len(prompts)))


def _check(
    detector: SceneDetector, images: Tensor, found: list[list[Detection]], texts: Sequence[str]
) -> list[Verdict]:
    rules = Rules(counting_threshold=detector.counting_threshold)
    return [
        judge_scene(image, detections, parse(text), rules)
        for image, detections, text in zip(images, found, texts, strict=True)
    ]


def _shares(texts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of correct images by tag."""
    by_tag: dict[str, list[bool]] = {}
    for text, verdict in zip(texts, verdicts, strict=True):
        by_tag.setdefault(parse(text).tag, []).append(verdict.correct)
    return {tag: statistics.fmean(verdicts) for tag, verdicts in by_tag.items()}
