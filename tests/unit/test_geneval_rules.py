"""GenEval's rules on hand-made boxes, and its relation on golden cases of the published code."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nanogen.metrics.geneval_rules import Detection, Rules, by_class, judge, relations

# Boxes and relations computed with GenEval's published evaluation code.
GOLDEN_RELATIONS = [
    ((0, 0, 10, 10), (50, 0, 60, 10), {"left of"}),
    ((50, 0, 60, 10), (0, 0, 10, 10), {"right of"}),
    ((0, 0, 10, 10), (0, 50, 10, 60), {"above"}),
    ((0, 50, 10, 60), (0, 0, 10, 10), {"below"}),
    ((0, 0, 10, 10), (50, 50, 60, 60), {"left of", "above"}),
    ((0, 0, 100, 100), (10, 0, 110, 100), set()),
    ((0, 0, 100, 100), (20, 0, 120, 100), set()),
    ((0, 0, 100, 100), (30, 0, 130, 100), set()),
    ((0, 0, 100, 100), (50, 0, 150, 100), {"left of"}),
    ((0, 0, 10, 10), (40, 20, 50, 30), {"left of"}),
    ((0, 0, 10, 10), (40, 40, 50, 50), {"left of", "above"}),
    ((5, 5, 15, 15), (5, 5, 15, 15), set()),
    # By hand, about the tolerance of 0.1: (39 - 20) / 39 is less than half, (40 - 20) / 40 is half.
    ((0, 0, 100, 100), (39, 0, 139, 100), set()),
    ((0, 0, 100, 100), (40, 0, 140, 100), set()),
    ((0, 0, 100, 100), (41, 0, 141, 100), {"left of"}),
    # Two detections in real images: a skateboard to a person.
    ((379, 488, 860, 804), (139, 0, 787, 720), {"below"}),
    ((425, 729, 541, 961), (148, 117, 817, 872), {"below"}),
]


@dataclass(frozen=True)
class Thing:
    name: str
    count: int = 1
    colour: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Scene:
    tag: str
    include: tuple[Thing, ...]
    exclude: tuple[Thing, ...] = ()


def found(name: str, score: float = 0.95, x: float = 0, y: float = 0) -> Detection:
    return Detection(name, score, (x, y, x + 10, y + 10))


def colour_by_x(detection: Detection) -> str:
    """Boxes in the left half are red, in the right half blue."""
    return "red" if detection.box[0] < 50 else "blue"


def correct(scene: Scene, *detections: Detection, rules: Rules | None = None) -> bool:
    return judge(detections, scene, colour_by_x, rules or Rules()).correct


@pytest.mark.parametrize(("a", "b", "expected"), GOLDEN_RELATIONS)
def test_relations_agree_with_the_published_code(a, b, expected):
    assert relations(a, b) == expected


def test_single_object_needs_the_class_and_nothing_else():
    scene = Scene("single_object", (Thing("cow"),))
    assert correct(scene, found("cow"), found("dog"), found("cow", x=30))
    assert not correct(scene, found("dog"))
    assert not correct(scene)


def test_two_objects_need_both_classes():
    scene = Scene("two_object", (Thing("cow"), Thing("dog")))
    assert correct(scene, found("cow"), found("dog", x=30))
    assert not correct(scene, found("cow"), found("cow", x=30))


def test_counting_needs_exactly_the_count():
    scene = Scene("counting", (Thing("cow", 2),), (Thing("cow", 3),))
    assert not correct(scene, found("cow"))
    assert correct(scene, found("cow"), found("cow", x=20))
    assert not correct(scene, found("cow"), found("cow", x=20), found("cow", x=40))


def test_colour_is_read_of_the_most_confident_object():
    scene = Scene("colors", (Thing("cow", colour="blue"),))
    assert correct(scene, found("cow", x=60))
    assert not correct(scene, found("cow", x=0))
    assert correct(scene, found("cow", 0.5, x=0), found("cow", 0.6, x=60))
    assert not correct(scene, found("cow", 0.6, x=0), found("cow", 0.5, x=60))


def test_as_many_objects_as_are_wanted_have_the_colour():
    scene = Scene("colors", (Thing("cow", count=2, colour="blue"),))
    assert correct(scene, found("cow", x=60), found("cow", x=80))
    assert not correct(scene, found("cow", x=60), found("cow", x=0))


def test_two_colours_belong_to_their_own_objects():
    scene = Scene("color_attr", (Thing("cow", colour="red"), Thing("dog", colour="blue")))
    assert correct(scene, found("cow", x=0), found("dog", x=60))
    assert not correct(scene, found("cow", x=60), found("dog", x=0))


def test_position_is_of_the_second_object_to_the_first():
    scene = Scene("position", (Thing("cow"), Thing("dog", position="left of")))
    assert correct(scene, found("dog", x=0), found("cow", x=60))
    assert not correct(scene, found("cow", x=0), found("dog", x=60))
    verdict = judge([found("cow", x=0), found("dog", x=60)], scene, colour_by_x)
    assert verdict.reason == "dog is not left of cow"


def test_every_object_must_have_the_relation_to_every_object_of_the_group():
    scene = Scene("position", (Thing("cow", 2), Thing("dog", position="above")))
    assert correct(scene, found("cow", y=50), found("cow", x=20, y=50), found("dog", x=10))
    assert not correct(scene, found("cow", y=50), found("cow", x=60, y=0), found("dog"))


def test_a_relation_to_a_failed_group_fails():
    """The cow is there and the dog is left of it, but a cow of the wrong colour is no group."""
    things = (Thing("cow", colour="red"), Thing("dog", position="left of"))
    verdict = judge([found("dog", x=0), found("cow", x=60)], Scene("position", things), colour_by_x)
    assert not verdict.correct
    assert verdict.reason == "expected red cow, found blue; no target for dog to be left of"


def test_thresholds_are_strict_and_counting_has_its_own():
    one = Scene("single_object", (Thing("cow"),))
    counted = Scene("counting", (Thing("cow"),), (Thing("cow", 2),))
    assert not correct(one, found("cow", 0.3)) and correct(one, found("cow", 0.3001))
    assert not correct(counted, found("cow", 0.9)) and correct(counted, found("cow", 0.9001))
    assert correct(counted, found("cow", 0.95), found("cow", 0.9, x=20))
    assert correct(counted, found("cow", 0.6), rules=Rules(counting_threshold=0.5))


def test_sixteen_of_a_class_are_kept_and_they_are_the_best():
    crowd = [found("cow", 0.31 + 0.01 * i, x=i) for i in range(20)]
    kept = by_class(crowd, 0.3, 16)["cow"]
    assert [detection.box[0] for detection in kept] == list(range(19, 3, -1))
    scene = Scene("single_object", (Thing("cow"),), (Thing("cow", 17),))
    assert correct(scene, *crowd)
    assert not correct(scene, *crowd, rules=Rules(most_per_class=17))


def test_exclusion_ignores_other_classes():
    scene = Scene("counting", (Thing("cow"),), (Thing("cow", 2),))
    assert correct(scene, found("cow"), found("dog", x=20), found("dog", x=40))
    assert judge([found("cow"), found("cow", x=20)], scene, colour_by_x).reason == (
        "expected fewer than 2 cow, found 2"
    )
