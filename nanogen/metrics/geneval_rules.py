"""GenEval's rules: does a set of detections show the wanted scene?

Pure functions of Ghosh et al. 2023, "GenEval: An object-focused framework for evaluating
text-to-image alignment", and its published evaluation code. Nothing here knows of a detector, of
class names, or of how a colour is read: those come from outside, so the same rules judge our small
scenes and photographs of COCO classes.

    scene: include "cow" x 1; include "dog" x 1, left of the first
    judge(detections, scene, colour_of) -> Verdict(correct=False, reason="dog is not left of cow")

Boxes are (xmin, ymin, xmax, ymax) in pixels; y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

Box: TypeAlias = tuple[float, float, float, float]
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Detection:
    """One object that a detector found."""

    name: str
    score: float
    """confidence in [0, 1]"""
    box: Box


class WantedObject(Protocol):
    """Objects of one class that a scene must show (`include`) or must not (`exclude`)."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int:
        """At least so many when included; fewer than so many when excluded."""
        ...

    @property
    def colour(self) -> str | None: ...

    @property
    def position(self) -> str | None:
        """One of `RELATIONS` that every object must have to every one of the scene's first include,
        the only one that GenEval's prompts refer to."""
        ...


class WantedScene(Protocol):
    """What a prompt asks for, as in GenEval's metadata."""

    @property
    def tag(self) -> str: ...

    @property
    def include(self) -> Sequence[WantedObject]: ...

    @property
    def exclude(self) -> Sequence[WantedObject]: ...


@dataclass(frozen=True)
class Rules:
    """The constants of the rules; GenEval's own are the defaults."""

    threshold: float = 0.3
    """a detection counts when its score is strictly above"""
    counting_threshold: float = 0.9
    """the same for scenes with the tag `counting`, where a doubtful object would be one too many"""
    most_per_class: int = 16
    """the most confident detections of a class that are looked at"""


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows its scene; `reason` names every failed rule, and is empty when
    correct."""

    correct: bool
    reason: str


GENEVAL = Rules()
Found = TypeVar("Found", bound=Detection)
"""a detection, with whatever else it takes to read its colour"""


def judge(
    detections: Sequence[Found],
    wanted: WantedScene,
    colour_of: Callable[[Found], str],
    rules: Rules = GENEVAL,
) -> Verdict:
    """Judge one image.

    An included class takes its `count` most confident detections; they must all have the colour
    asked for, and then the relation to the group referred to. A group that failed is no group: a
    relation to it fails as well. Objects that nobody mentions never matter, and extra ones only
    through `exclude`.
    """
    threshold = rules.counting_threshold if wanted.tag == "counting" else rules.threshold
    found = by_class(detections, threshold, rules.most_per_class)
    reasons: list[str] = []
    first: list[Found] | None = None
    for index, one in enumerate(wanted.include):
        group = found.get(one.name, [])[: one.count]
        reason = _failure(group, one, first, colour_of)
        if reason:
            reasons.append(reason)
        elif index == 0:
            first = group
    for one in wanted.exclude:
        seen = len(found.get(one.name, []))
        if seen >= one.count:
            reasons.append(f"expected fewer than {one.count} {one.name}, found {seen}")
    return Verdict(not reasons, "; ".join(reasons))


def by_class(detections: Sequence[Found], threshold: float, most: int) -> dict[str, list[Found]]:
    """Detections with a score strictly above `threshold`, the `most` best of each class, best
    first."""
    found: dict[str, list[Found]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        group = found.setdefault(detection.name, [])
        if detection.score > threshold and len(group) < most:
            group.append(detection)
    return found


def relations(a: Box, b: Box, tolerance: float = 0.1) -> frozenset[str]:
    """How `a` lies to `b`: none, one or two of `RELATIONS`.

    The offset of the centres is first reduced by `tolerance` of both sizes along each axis, so that
    boxes that overlap have no relation; then each direction must make up more than half of the
    unreduced distance.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [(a[i + 2] - a[i]) + (b[i + 2] - b[i]) for i in (0, 1)]
    reduced = [
        math.copysign(max(abs(distance) - tolerance * size, 0.0), distance)
        for distance, size in zip(offset, sizes, strict=True)
    ]
    if max(abs(reduced[0]), abs(reduced[1])) < 1e-3:
        return frozenset()
    x, y = (distance / math.hypot(*offset) for distance in reduced)
    holds = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return frozenset(relation for relation, true in zip(RELATIONS, holds, strict=True) if true)


def _failure(
    group: list[Found],
    wanted: WantedObject,
    first: list[Found] | None,
    colour_of: Callable[[Found], str],
) -> str:
    """Why a group is not what is wanted, or "" when it is. Colour is read only of groups that are
    complete."""
    if len(group) < wanted.count:
        return f"expected {wanted.count} {wanted.name}, found {len(group)}"
    if wanted.colour is not None:
        colours = [colour_of(detection) for detection in group]
        if colours.count(wanted.colour) < wanted.count:
            return f"expected {wanted.colour} {wanted.name}, found {', '.join(colours)}"
    if wanted.position is not None:
        if first is None:
            return f"no target for {wanted.name} to be {wanted.position}"
        if not all(wanted.position in relations(a.box, b.box) for a in group for b in first):
            return f"{wanted.name} is not {wanted.position} {first[0].name}"
    return ""
