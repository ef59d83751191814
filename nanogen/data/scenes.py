"""The data set `scenes`: coloured silhouettes composed into captioned scenes, with exact truth.

    source = Scenes().build()
    source.read("train", index=0, draw=0).text              # "a red elephant"
    picture = source.compose(parse("two cows"), rng)        # the image, and each object's class,
    picture.objects[0].box                                  # colour and box

Every scene fulfils its caption by GenEval's own rules (arXiv 2310.11513): nothing overlaps, nothing
is drawn that the caption does not ask for, and directions hold beyond GenEval's threshold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import chz
import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from nanogen.data import captions, silhouettes
from nanogen.data.base import Sample
from nanogen.data.captions import ANIMALS, PALETTE, Scene
from nanogen.data.draws import generator
from nanogen.errors import ConfigError
from nanogen.registry import register

VISIBLE = 64
"""opacity from which a pixel belongs to an object's box"""
LONGEST = 0.8
"""longest side of an object, in canvases"""
SHRINK = 0.9
"""smallest random scale of an object, in those of the largest that fits"""
JITTER = 0.1
"""farthest that an object stands from the centre of its slot, in canvases. With slots half a canvas
apart this keeps every direction beyond GenEval's threshold."""


@dataclass(frozen=True)
class Object:
    """What was drawn."""

    name: str
    colour: str
    box: tuple[int, int, int, int]
    """xmin, ymin, xmax, ymax in pixels, the last two exclusive; tight"""


@dataclass(frozen=True)
class Picture:
    """A composed scene."""

    scene: Scene
    image: Tensor
    """uint8 [3, size, size], on white"""
    objects: tuple[Object, ...]
    """in the order of `scene.include`"""


@dataclass(frozen=True)
class Slot:
    """Where one object may stand, in pixels."""

    left: int
    top: int
    width: int
    height: int


class ScenesSource:
    """The opened data set. A split's scenes are composed of that split's silhouettes only."""

    classes = ANIMALS
    captioned = True
    variants = 0

    def __init__(self, size: int, weights: tuple[float, ...]) -> None:
        """`weights` of captions.TAGS, any positive total."""
        self.size = size
        self._edges = np.cumsum(weights)
        recipe = repr((size, weights, PALETTE, VISIBLE, LONGEST, SHRINK, JITTER))
        digest = hashlib.sha256((silhouettes.fingerprint() + recipe).encode()).hexdigest()
        self.fingerprint = f"scenes-1/{digest[:16]}"

    def count(self, split: str) -> int:
        """Number of silhouettes of a split: a nominal size, as every draw is another scene."""
        return len(silhouettes.load(split).labels)

    def read(self, split: str, index: int, draw: int) -> Sample:
        """A scene with its caption; the label is the class of its first object."""
        picture = self.picture(split, index, draw)
        label = ANIMALS.index(picture.objects[0].name)
        return Sample(picture.image, label, captions.caption(picture.scene))

    def picture(self, split: str, index: int, draw: int) -> Picture:
        """The scene that `read` shows, with its objects; a function of its arguments alone."""
        rng = generator(split, index, draw)
        tag = captions.TAGS[np.searchsorted(self._edges, rng.random() * self._edges[-1], "right")]
        return self.compose(captions.draw(tag, rng), rng, split)

    def compose(self, scene: Scene, rng: Generator, split: str = "train") -> Picture:
        """A picture of a scene. Silhouettes, places, scales and free colours are random."""
        wanted = [one for one in scene.include for _ in range(one.count)]
        cuts = [_choose(split, one.name, rng) for one in wanted]
        slots = _slots(self.size, scene, cuts, rng)
        canvas = np.full((3, self.size, self.size), 255, np.uint8)
        objects = []
        for one, cut, slot in zip(wanted, cuts, slots, strict=True):
            colour = one.colour or tuple(PALETTE)[rng.integers(len(PALETTE))]
            box = _paint(canvas, cut, PALETTE[colour], slot, rng)
            objects.append(Object(one.name, colour, box))
        return Picture(scene, torch.from_numpy(canvas), tuple(objects))

    def prompts(self) -> tuple[str, ...]:
        """The captions of the evaluation, see captions.prompts."""
        return captions.prompts()


def _choose(split: str, name: str, rng: Generator) -> Image.Image:
    """A silhouette of a class, mirrored or not."""
    either = _cutouts(split)[name]
    return either[rng.integers(len(either))]


@lru_cache
def _cutouts(split: str) -> dict[str, list[Image.Image]]:
    """Class -> the silhouettes of a split cut to their boxes, each with its mirror image."""
    found: dict[str, list[Image.Image]] = {name: [] for name in ANIMALS}
    opacity, labels = silhouettes.load(split)
    for image, label in zip(opacity, labels, strict=True):
        xmin, ymin, xmax, ymax = _tight(image)
        cut = image[ymin:ymax, xmin:xmax]
        found[ANIMALS[label]] += [Image.fromarray(cut), Image.fromarray(cut[:, ::-1])]
    return found


def _tight(opacity: np.ndarray) -> tuple[int, int, int, int]:
    """The box of what is visible in uint8 [h, w]; all of it if nothing is."""
    visible = opacity >= VISIBLE
    columns, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(1))
    if not len(rows):
        return 0, 0, opacity.shape[1], opacity.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _slots(size: int, scene: Scene, cuts: list[Image.Image], rng: Generator) -> list[Slot]:
    """One slot for each object: the canvas, its halves, or its quarters in random order."""
    halves = [(1, size // 2 - 1), (size // 2 + 1, size - 1)]  # two pixels apart, one from the edge
    whole = (1, size - 1)
    if len(cuts) == 1:
        return [_slot(whole, whole)]
    if len(cuts) > 2:
        quarters = [_slot(x, y) for y in halves for x in halves]
        return [quarters[k] for k in rng.permutation(4)[: len(cuts)]]
    columns = [_slot(x, whole) for x in halves]
    rows = [_slot(whole, y) for y in halves]
    relation = scene.include[-1].position
    if relation is None:
        slots = max(columns, rows, key=lambda slots: _smallest(slots, cuts))
        return slots[::-1] if rng.integers(2) else slots
    # The first object is the one referred to: it stands on the other side.
    slots = columns if relation in ("left of", "right of") else rows
    return slots[::-1] if relation in ("left of", "above") else slots


def _slot(x: tuple[int, int], y: tuple[int, int]) -> Slot:
    return Slot(x[0], y[0], x[1] - x[0], y[1] - y[0])


def _smallest(slots: list[Slot], cuts: list[Image.Image]) -> float:
    """The smaller of the scales at which two silhouettes fit their slots."""
    return min(_fit(slot, cut) for slot, cut in zip(slots, cuts, strict=True))


def _fit(slot: Slot, cut: Image.Image) -> float:
    return min(slot.width / cut.width, slot.height / cut.height)


def _paint(
    canvas: np.ndarray,
    cut: Image.Image,
    colour: tuple[int, int, int],
    slot: Slot,
    rng: Generator,
) -> tuple[int, int, int, int]:
    """Draw a silhouette in its slot of uint8 [3, size, size], and return its tight box."""
    size = canvas.shape[-1]
    scale = min(_fit(slot, cut), LONGEST * size / max(cut.size)) * rng.uniform(SHRINK, 1)
    width, height = (max(1, round(scale * side)) for side in cut.size)
    opacity = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
    x = slot.left + _place(slot.width - width, size, rng)
    y = slot.top + _place(slot.height - height, size, rng)
    missing = 255 - np.asarray(colour, np.uint16)[:, None, None]
    canvas[:, y : y + height, x : x + width] = 255 - (opacity * missing + 127) // 255
    xmin, ymin, xmax, ymax = _tight(opacity)
    return x + xmin, y + ymin, x + xmax, y + ymax


def _place(room: int, size: int, rng: Generator) -> int:
    """Pixels before an object that has `room` to spare: half of it, give or take the jitter."""
    reach = min(room / 2, JITTER * size)
    return round(room / 2 + rng.uniform(-reach, reach))


@register(
    "data", "scenes", summary="coloured animals composed into captioned scenes", licence="MIT"
)
@chz.chz
class Scenes:
    """Text-to-image data that need no download. Each tag has a weight: its share of the scenes."""

    size: int = chz.field(default=40, doc="pixels of a side, 32 to 64")
    single_object: float = chz.field(default=0.1, doc="weight of 'a bear'")
    colors: float = chz.field(default=0.5, doc="weight of 'a red elephant'")
    counting: float = chz.field(default=0.1, doc="weight of 'three cows'")
    two_object: float = chz.field(default=0.1, doc="weight of 'a cow and a dog'")
    position: float = chz.field(default=0.1, doc="weight of 'a cow left of a dog'")
    color_attr: float = chz.field(default=0.1, doc="weight of 'a red cow and a blue dog'")

    def build(self) -> ScenesSource:
        if not 32 <= self.size <= 64:
            raise ConfigError(f"scenes: size={self.size} is out of range; choose 32 to 64")
        weights = tuple(float(getattr(self, tag)) for tag in captions.TAGS)
        if min(weights) < 0 or sum(weights) <= 0:
            raise ConfigError(
                f"scenes: the weights {', '.join(captions.TAGS)} are {weights}; "
                "none may be negative, and one must be above zero"
            )
        return ScenesSource(self.size, weights)
