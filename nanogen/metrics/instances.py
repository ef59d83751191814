"""From the queries of a Mask2Former to detections: which class, how sure, where, and which pixels.

    sizes = Sizes(network=(800, 800), image=(1024, 1024))
    found = instances(classes, masks, sizes, names, OFFICIAL)

Each query proposes one mask and a softmax over K classes and "nothing" (Cheng et al. 2022, "Masked-
attention Mask Transformer for Universal Image Segmentation", section 3 and its published code). The
`PICKS` surest pairs of query and class are detections. The score of one is the probability of its
class times the mean probability of its mask's pixels.

GenEval's own evaluation and that of DiffusionBench differ in the size at which a mask is cut out,
in where its box ends, and in rounding: see `OFFICIAL` and `REFERENCE`. Q queries, n detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nanogen.metrics.geneval_rules import Box, Detection

PICKS = 100
LEAST = 0.3
"""what is less sure than GenEval's lowest threshold is not reported"""


@dataclass(frozen=True, eq=False)
class Instance(Detection):
    """A detection with its pixels."""

    mask: Tensor
    """bool [H, W], as large as the image"""


@dataclass(frozen=True)
class Compat:
    """The choices in which two published evaluations differ."""

    logits: bool
    """a mask is cut out at the size of the image; otherwise at that of the network's input, and
    resized to the nearest pixels
    """
    beyond: int
    """how far the right and lower ends of a box lie beyond the last pixel of its mask"""
    digits: int | None
    """to which scores are rounded; None keeps them"""


OFFICIAL = Compat(logits=True, beyond=1, digits=None)
"""mmdetection 2.x, with which GenEval was published"""
REFERENCE = Compat(logits=False, beyond=0, digits=6)
"""the evaluator of DiffusionBench"""


@dataclass(frozen=True)
class Sizes:
    """Heights and widths in pixels."""

    network: tuple[int, int]
    """of what the network was fed"""
    image: tuple[int, int]


def instances(
    classes: Tensor, masks: Tensor, sizes: Sizes, names: Sequence[str], compat: Compat
) -> list[Instance]:
    """The detections of one image that are at least `LEAST` sure, by class probability.

    `classes` are logits [Q, K + 1], the last of "nothing"; `masks` are logits [Q, h, w] of a size
    that the network chose; `names` are those of the K classes. Empty masks are no detections.
    """
    shares = classes.float().softmax(-1)[:, :-1].flatten()
    surest, picks = shares.sort(descending=True, stable=True)
    # No mask makes a score larger than the probability of its class: most pairs need none.
    wanted = surest[:PICKS] >= LEAST
    picks = picks[:PICKS][wanted]
    if not len(picks):
        return []
    query, label = picks // len(names), picks % len(names)
    inside, certainty = _cut_out(masks[query].float(), sizes, compat)
    scores = (shares[picks] * certainty).tolist()
    filled = inside.flatten(1).any(1).tolist()
    boxes = bounds(inside, compat.beyond)
    return [
        Instance(names[k], _rounded(score, compat.digits), box, mask)
        for k, score, full, box, mask in zip(
            label.tolist(), scores, filled, boxes, inside, strict=True
        )
        if full and score >= LEAST
    ]


def _cut_out(logits: Tensor, sizes: Sizes, compat: Compat) -> tuple[Tensor, Tensor]:
    """Logits [n, h, w] -> masks bool [n, H, W] of the image, and the mean probability over each
    mask's pixels, [n].
    """
    logits = _resized(logits, sizes.network)
    if compat.logits:
        logits = _resized(logits, sizes.image)
    inside = logits > 0
    likely = (logits.sigmoid() * inside).flatten(1).sum(1)
    certainty = likely / (inside.flatten(1).sum(1) + 1e-6)
    if not compat.logits:
        nearest = functional.interpolate(inside[:, None].float(), sizes.image, mode="nearest")
        inside = nearest[:, 0] > 0
    return inside, certainty


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, h, w] -> [n, *size], bilinear between the middles of pixels."""
    return functional.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def bounds(masks: Tensor, beyond: int) -> list[Box]:
    """The boxes around masks bool [n, H, W]; that of an empty one means nothing."""
    ends = []
    for axis in (1, 2):
        line = masks.any(axis).byte()  # along x, then along y
        first = line.argmax(1)
        last = line.shape[1] - 1 - line.flip(1).argmax(1)
        ends.append(torch.stack([first, last + beyond], 1))
    found = torch.stack(ends, 2).flatten(1).tolist()
    return [(xmin, ymin, xmax, ymax) for xmin, ymin, xmax, ymax in found]


def _rounded(score: float, digits: int | None) -> float:
    return score if digits is None else round(score, digits)
