"""The grammar of scene captions: what a scene holds, in words and back.

A `Scene` says what an image must show, in the terms of GenEval's metadata (Ghosh et al. 2023,
arXiv 2310.11513): a tag, the objects to include, and the counts to exclude.

    caption(parse("a red cow and a blue dog")) == "a red cow and a blue dog"

`caption` and `parse` are exact inverses on the grammar:

    tag            caption                          drawn beside it
    single_object  a bear                           colour is free
    colors         a red elephant
    counting       three cows                       not four
    two_object     a cow and a dog                  colours are free
    position       a cow left of a dog              colours are free
    color_attr     a red cow and a blue dog
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import permutations, product

from numpy.random import Generator

from nanogen.data.silhouettes import ANIMALS
from nanogen.errors import DataError, suggest

PALETTE = {
    "red": (220, 40, 40),
    "yellow": (240, 195, 0),
    "green": (20, 170, 60),
    "blue": (40, 90, 230),
    "purple": (165, 45, 190),
    "black": (25, 25, 25),
}
"""RGB of full ink. On white, the directions of any two from white differ by more than 20 degrees,
so that a colour is read from the mean of an object however pale its stripes make it."""
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "colors", "counting", "two_object", "position", "color_attr")
PROMPTS = dict(zip(TAGS, (10, 60, 30, 45, 60, 60), strict=True))
"""evaluation prompts of each tag"""


@dataclass(frozen=True)
class Wanted:
    """`count` objects of one class."""

    name: str
    """one of ANIMALS"""
    count: int = 1
    colour: str | None = None
    """one of PALETTE; None: any"""
    position: str | None = None
    """one of RELATIONS: where these stand as seen from the scene's first wanted objects"""


@dataclass(frozen=True)
class Scene:
    """What an image must show: all of `include`, and less than the count of each in `exclude`."""

    tag: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


def caption(scene: Scene) -> str:
    """The words of a scene."""
    first = scene.include[0]
    if scene.tag == "counting":
        number = next(word for word, count in COUNTS.items() if count == first.count)
        return f"{number} {_plural(first.name)}"
    if scene.tag == "position":
        # As in GenEval's metadata, the object that is referred to stands first.
        second = scene.include[1]
        return f"{_noun(second)} {second.position} {_noun(first)}"
    return " and ".join(_noun(wanted) for wanted in scene.include)


def parse(text: str) -> Scene:
    """The scene that a caption describes; any other text is a DataError with the fix."""
    joined = f" (and|{'|'.join(RELATIONS)}) "
    left, word, right = (re.split(joined, text, maxsplit=1) + ["", ""])[:3]
    scene = _parse_two(left, word, right) if word else _parse_one(left)
    if scene is None or caption(scene) != text:
        raise DataError(f"{text!r} is not a caption of a scene; {_help(text)}")
    return scene


def counting(name: str, count: int) -> Scene:
    """`count` animals of one class, and not one more."""
    return Scene("counting", (Wanted(name, count),), (Wanted(name, count + 1),))


def position(name: str, relation: str, other: str) -> Scene:
    """A `name` that stands in `relation` to an `other`."""
    return Scene("position", (Wanted(other), Wanted(name, position=relation)))


def draw(tag: str, rng: Generator) -> Scene:
    """A scene of a tag, uniform over all captions of that tag."""
    name = ANIMALS[rng.integers(len(ANIMALS))]
    if tag == "single_object":
        return Scene(tag, (Wanted(name),))
    if tag == "counting":
        return counting(name, int(rng.integers(2, 2 + len(COUNTS))))
    colours = tuple(PALETTE)
    colour = colours[rng.integers(len(colours))]
    if tag == "colors":
        return Scene(tag, (Wanted(name, colour=colour),))
    other = _another(ANIMALS, name, rng)
    if tag == "two_object":
        return Scene(tag, (Wanted(name), Wanted(other)))
    if tag == "position":
        return position(name, RELATIONS[rng.integers(len(RELATIONS))], other)
    second = Wanted(other, colour=_another(colours, colour, rng))
    return Scene(tag, (Wanted(name, colour=colour), second))


@lru_cache
def prompts() -> tuple[str, ...]:
    """The fixed evaluation captions, without repeats.

    The tags take turns, so that the first 6 k captions hold k of each tag for as long as it has any
    left: any prefix is a fair smaller evaluation.
    """
    queues = [_balanced(tag, PROMPTS[tag]) for tag in TAGS]
    longest = max(PROMPTS.values())
    return tuple(queue[k] for k in range(longest) for queue in queues if k < len(queue))


def _balanced(tag: str, count: int) -> list[str]:
    """`count` captions of a tag in which no word is used much more than another in its place.

    Greedy: the next caption is the one whose words were used least so far. Ties fall to the hash of
    the caption, which never changes, as the order of a random generator may.
    """
    waiting = {caption(scene): _words(scene) for scene in _every(tag)}
    waiting = dict(sorted(waiting.items(), key=lambda item: sha256(item[0].encode()).digest()))
    used: Counter[tuple[int, object]] = Counter()
    chosen = []
    for _ in range(count):
        text = min(waiting, key=lambda text: sum(used[word] for word in waiting[text]))
        used.update(waiting.pop(text))
        chosen.append(text)
    return chosen


def _words(scene: Scene) -> list[tuple[int, object]]:
    """The words of a scene, each with the place of its object."""
    return [
        (place, word)
        for place, wanted in enumerate(scene.include)
        for word in (wanted.name, wanted.count, wanted.colour, wanted.position)
    ]


def _every(tag: str) -> Iterator[Scene]:
    """All scenes of a tag; of two that differ only in the order around "and", one."""
    pairs = list(permutations(ANIMALS, 2))
    unordered = [(a, b) for a, b in pairs if _leads(a, b)]
    if tag == "single_object":
        yield from (Scene(tag, (Wanted(a),)) for a in ANIMALS)
    elif tag == "colors":
        yield from (Scene(tag, (Wanted(a, colour=c),)) for a, c in product(ANIMALS, PALETTE))
    elif tag == "counting":
        yield from (counting(a, n) for a, n in product(ANIMALS, COUNTS.values()))
    elif tag == "two_object":
        yield from (Scene(tag, (Wanted(a), Wanted(b))) for a, b in unordered)
    elif tag == "position":
        yield from (position(a, r, b) for (a, b), r in product(pairs, RELATIONS))
    else:
        for (a, b), (c, d) in product(unordered, permutations(PALETTE, 2)):
            yield Scene(tag, (Wanted(a, colour=c), Wanted(b, colour=d)))


def _leads(name: str, other: str) -> bool:
    """Which of two stands first, such that every animal is first about as often as second."""
    first, second = ANIMALS.index(name), ANIMALS.index(other)
    return (first < second) == ((first + second) % 2 == 0)


def _another(choices: tuple[str, ...], taken: str, rng: Generator) -> str:
    """One of the other choices, each as likely."""
    step = 1 + rng.integers(len(choices) - 1)
    return choices[(choices.index(taken) + step) % len(choices)]


def _noun(wanted: Wanted) -> str:
    words = f"{wanted.colour} {wanted.name}" if wanted.colour else wanted.name
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(name: str) -> str:
    return name if name == "sheep" else f"{name}s"


def _parse_one(text: str) -> Scene | None:
    number, _, plural = text.partition(" ")
    for name in ANIMALS:
        if number in COUNTS and plural == _plural(name):
            return counting(name, COUNTS[number])
    wanted = _parse_noun(text)
    if wanted is None:
        return None
    return Scene("colors" if wanted.colour else "single_object", (wanted,))


def _parse_two(left: str, word: str, right: str) -> Scene | None:
    one, two = _parse_noun(left), _parse_noun(right)
    if one is None or two is None or one.name == two.name:
        return None
    if word != "and":
        return None if one.colour or two.colour else position(one.name, word, two.name)
    if one.colour and two.colour and one.colour != two.colour:
        return Scene("color_attr", (one, two))
    return None if one.colour or two.colour else Scene("two_object", (one, two))


def _parse_noun(text: str) -> Wanted | None:
    article, *colour, name = text.split(" ") if " " in text else ("", text)
    known = article in ("a", "an") and name in ANIMALS and len(colour) <= 1
    if not known or any(word not in PALETTE for word in colour):
        return None
    return Wanted(name, colour=colour[0] if colour else None)


def _help(text: str) -> str:
    """What is allowed instead: the nearest known word, or the grammar."""
    plurals = [_plural(name) for name in ANIMALS]
    known = {
        "a",
        "an",
        "and",
        "of",
        *" ".join(RELATIONS).split(),
        *COUNTS,
        *PALETTE,
        *ANIMALS,
        *plurals,
    }
    unknown = [word for word in text.split() if word not in known]
    if unknown:
        return f"unknown word {unknown[0]!r}, {suggest(unknown[0], known)}"
    return (
        "write 'a bear', 'a red bear', 'three bears', 'a bear and a dog', 'a bear above a dog' or "
        "'a red bear and a blue dog', two different animals (and colours) where there are two; "
        f"animals: {', '.join(ANIMALS)}; colours: {', '.join(PALETTE)}; "
        f"counts: {', '.join(COUNTS)}; relations: {', '.join(RELATIONS)}"
    )
