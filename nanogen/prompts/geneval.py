"""GenEval: 553 prompts in six tags, and the scene that each asks for, four images of each.

    prompts = registry.get("prompts", "geneval")()
    prompts.scene_of("a photo of a bench")      # Scene(include=(Wanted("bench", 1),), ...)
    prompts.tag_of("a photo of a bench")        # "single_object"

Ghosh et al. 2023, "GenEval: An object-focused framework for evaluating text-to-image alignment",
arXiv 2310.11513. A scene is what `nanogen.metrics.geneval_rules.judge` wants to know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nanogen.errors import DataError
from nanogen.metrics.geneval_rules import RELATIONS
from nanogen.prompts.base import PromptSet
from nanogen.registry import register
from nanogen.store import Asset, find

METADATA = Asset(
    "geneval-prompts",
    "the prompts of GenEval with their scenes",
    "MIT",
    url="https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    size="85 kB",
)
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NAMES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink,
    refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace(
        "\n   ", ""
    ).split(", ")
)
"""the 80 classes of COCO in its order, as GenEval calls them"""


@dataclass(frozen=True)
class Wanted:
    """Objects of one class that a scene must show, or must not."""

    name: str
    """one of `NAMES`"""
    count: int
    colour: str | None = None
    position: str | None = None
    """one of `RELATIONS`, to the first object of the scene"""


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for."""

    prompt: str
    tag: str
    """one of `TAGS`"""
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


@register("prompts", "geneval", summary="GenEval: 553 prompts in six tags", licence="MIT")
class GenEvalPrompts(PromptSet):
    """Reads the store; DataError where its file has another form."""

    name = "geneval"
    images = 4
    assets = (METADATA,)
    count: ClassVar[int] = 553

    def __init__(self) -> None:
        prepared = find(METADATA)
        self.fingerprint = prepared.sha256
        self.scenes = parse(prepared.path.read_text(encoding="utf-8"), str(prepared.path))
        """in the published order"""
        self._by_prompt = {scene.prompt: scene for scene in self.scenes}
        if not len(self._by_prompt) == len(self.scenes) == self.count:
            raise DataError(
                f"{prepared.path} holds {len(self._by_prompt)} unique prompts in "
                f"{len(self.scenes)} lines, not {self.count}; run: nanogen prepare "
                f"{METADATA.name} --from FILE with GenEval's evaluation_metadata.jsonl"
            )

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._by_prompt)

    def scene_of(self, text: str) -> Scene:
        """The scene of one of the prompts; KeyError for any other text."""
        return self._by_prompt[text]

    def tag_of(self, text: str) -> str:
        """The tag of one of the prompts; KeyError for any other text."""
        return self._by_prompt[text].tag


def parse(text: str, where: str) -> tuple[Scene, ...]:
    """The scenes of GenEval's metadata, a JSON object in each line; DataError, with `where` and the
    line, for what has another form.
    """
    scenes = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            scenes.append(_scene(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            reason = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
            raise DataError(
                f"{where}, line {number}, is not a scene of GenEval: {reason}; run: nanogen "
                f"prepare {METADATA.name} --from FILE with its evaluation_metadata.jsonl"
            ) from None
    return tuple(scenes)


def _scene(found: Mapping[str, Any]) -> Scene:
    _check(found["tag"] in TAGS, f"tag {found['tag']!r}")
    _check(isinstance(found["prompt"], str) and found["prompt"] != "", "the prompt is empty")
    include = tuple(_wanted(one, place) for place, one in enumerate(found["include"]))
    _check(bool(include), "it includes nothing")
    exclude = tuple(_wanted(one, 0) for one in found.get("exclude", ()))
    return Scene(found["prompt"], found["tag"], include, exclude)


def _wanted(found: Mapping[str, Any], place: int) -> Wanted:
    """One object; `place` is its index among those that a scene includes."""
    name, count, colour = found["class"], found["count"], found.get("color")
    _check(name in NAMES, f"class {name!r}")
    _check(type(count) is int and count > 0, f"count {count!r}")
    _check(colour is None or isinstance(colour, str), f"colour {colour!r}")
    if "position" not in found:
        return Wanted(name, count, colour)
    relation, target = found["position"]
    # The rules know one group that others are related to: the first.
    _check(relation in RELATIONS and target == 0 < place, f"position {found['position']!r}")
    return Wanted(name, count, colour, relation)


def _check(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)
